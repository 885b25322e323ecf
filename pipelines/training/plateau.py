"""Rule of improvement: which epochs count, when learning rates drop, and when training stops.

An evaluation that does not improve on the best one by more than `min_delta` counts, and the loop then
lowers the learning rates; an improvement resets the count; at `patience` in a row training stops.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from headwater.pipelines.job import Train


@dataclass(slots=True)
class Plateau:
    """The state over epochs; it is part of a checkpoint. Values are to be maximised."""

    min_delta: float
    patience: int
    best: float = -math.inf
    best_epoch: int = 0
    waited: int = 0

    @classmethod
    def of(cls, train: Train) -> Plateau:
        """Return the state before the first epoch."""
        return cls(train.min_delta, train.patience)

    def update(self, value: float, epoch: int) -> bool:
        """Take the evaluation after `epoch` (from 1); return whether it is the best so far."""
        if value > self.best + self.min_delta:
            self.best, self.best_epoch, self.waited = value, epoch, 0
            return True
        self.waited += 1
        return False

    @property
    def stopped(self) -> bool:
        """True when `patience` evaluations in a row brought nothing."""
        return self.waited >= self.patience

    def state(self) -> dict[str, Any]:
        """Return the state as plain values."""
        return asdict(self)
