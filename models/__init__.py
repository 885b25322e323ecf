"""Learned parts: embedding tables from a schema, layers, and the models built on them."""
