"""kafka-python for the type checker, which has types of another version of it."""

from __future__ import annotations

import importlib
from typing import Any

_kafka: Any = importlib.import_module("kafka")
_sticky: Any = importlib.import_module("kafka.coordinator.assignors.cooperative_sticky")

KafkaAdminClient: Any = _kafka.KafkaAdminClient
KafkaConsumer: Any = _kafka.KafkaConsumer
KafkaProducer: Any = _kafka.KafkaProducer
ConsumerRebalanceListener: Any = _kafka.ConsumerRebalanceListener
OffsetAndMetadata: Any = _kafka.OffsetAndMetadata
TopicPartition: Any = _kafka.TopicPartition
CooperativeStickyAssignor: Any = _sticky.CooperativeStickyAssignor
