"""Raw data on its way to shards and tensors: the parts of `prepare`."""
