"""The protocols over HTTP: a file decodes requests, calls an operation, and encodes its answer."""
