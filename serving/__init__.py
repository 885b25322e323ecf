"""The online service: releases, scoring, batching and protocols; no torch, polars or onnx."""
