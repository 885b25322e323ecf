"""The online store: what streams write and the service looks up. Light: neither polars nor onnx."""
