"""Rules of a job: pure functions to a list of problems, which `validate` and the steps both call."""
