"""The exported graph and what proves it: the parts of `export`."""
