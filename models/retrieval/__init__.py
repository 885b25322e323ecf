"""Models that answer a query with items."""
