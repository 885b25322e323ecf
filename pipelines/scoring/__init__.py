"""Scores for the rows of a file, by a release."""
