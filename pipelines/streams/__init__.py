"""Streams: Kafka topics into the online store and files, nothing lost and nothing counted twice."""
