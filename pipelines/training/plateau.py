"""When an epoch was an improvement, when learning rates drop, and when training stops.

An evaluation that does not improve on the best one by more than `min_delta` counts, and the loop then
lowers the learning rates; an improvement resets the count; at `patience` in a row training stops.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from headwater.pipelines.job import Train


def monitored(metrics: Mapping[str, float], monitor: str) -> float:
    """Return the value to be maximised: `auc`, `gauc`, minus `logloss`, or `auc-logloss`."""
    if monitor == "auc-logloss":
        return metrics["auc"] - metrics["logloss"]
    return -metrics["logloss"] if monitor == "logloss" else metrics[monitor]


def unfinished(training: Mapping[str, Any]) -> str | None:
    """Return what to do about a training that `epochs` ended while it still improved; None for others.

    `training` is the record in metrics.json.
    """
    if not training.get("still_improving"):
        return None
    epochs: int = training["epochs"]
    return (
        f"still improving: train.epochs = {epochs} ended training, and its last epoch was the best by "
        f"{training['monitor']}. Train again with more, as --set train.epochs={2 * epochs}"
    )


@dataclass(slots=True)
class Plateau:
    """The state over epochs; it is part of a checkpoint. Values are those of `monitored`."""

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
