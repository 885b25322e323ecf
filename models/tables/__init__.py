"""Embedding tables: where columns lie in a batch, and three ways to hold and learn them."""
