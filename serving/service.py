"""The parts that the operations share: releases, the queue of the runners with its bounds, and metrics."""

from __future__ import annotations

from dataclasses import dataclass

from headwater.serving.admission import Admission
from headwater.serving.batching import Batcher
from headwater.serving.metrics import Metrics
from headwater.serving.registry import Registry


@dataclass(slots=True)
class Service:
    """One serving process."""

    registry: Registry
    admission: Admission
    batcher: Batcher
    metrics: Metrics
    draining: bool = False

    @property
    def is_ready(self) -> bool:
        """True from the first release that is ready until the service is told to stop."""
        return not self.draining and self.registry.is_ready()
