"""Features: schema, encoders as programs with two compilers, encoded shards."""
