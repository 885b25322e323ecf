"""Settings by which a network learns, for every strategy and table mode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class LearnSettings:
    """Learning rates, penalties and bounds; sparse are those of embeddings."""

    sparse_lr: float
    dense_lr: float
    sparse_l2: float = 0.0
    dense_l2: float = 0.0
    clip_norm: float = 10.0
    """Global norm to which gradients are scaled down."""
    precision: Precision = "float32"
    """Of the forward pass."""
