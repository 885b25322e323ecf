"""Batches that retrieval models learn from, and the queries that they are asked."""
