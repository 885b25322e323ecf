"""Tuning: search over settings of a job by trials, each a training of its own."""
