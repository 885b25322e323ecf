"""Predictions, metrics and what explains them: the parts of `evaluate`."""
