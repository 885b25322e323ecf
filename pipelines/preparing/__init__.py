"""From raw data to encoded shards: staging, splits, the fit and encoding."""
