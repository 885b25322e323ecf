"""Budgets of advertising channels: SGD-UCB, the hard total, exact responses, and what to compare with.

R problems at once (advertisers, or seeds), C channels, K arms. numpy and float64 throughout, no torch.
"""
