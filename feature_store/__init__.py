"""What a feature is: schema, encoders as programs with two compilers, encoded shards."""
