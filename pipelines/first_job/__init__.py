"""A look at data and a guess at a job: the parts of `init`."""
