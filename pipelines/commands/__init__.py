"""The commands of the command line: thin, each calls the Python API."""
