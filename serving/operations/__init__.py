"""The operations that the service can be asked for, with no protocol in them."""
