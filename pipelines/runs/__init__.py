"""Runs: their folder, their checkpoints, and the trained network in them."""
