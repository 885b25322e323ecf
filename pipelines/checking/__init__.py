"""Checks of a job against its data, before hours of work are spent."""
