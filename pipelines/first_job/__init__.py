"""The first job for data: a look at it, a guess, and the file."""
