"""Training: the loop, its plateau rule, and what it says when a loss is not finite."""
