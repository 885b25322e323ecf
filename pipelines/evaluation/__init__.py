"""Evaluation of a run: predictions, metrics, and what explains them."""
