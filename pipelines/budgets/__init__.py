"""Budgets over time: records of spend and conversions in, allocations under a hard total out."""
