"""Arms: the amounts among which the budget of a channel is chosen."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def num_arms(horizon: int) -> int:
    """Return the number of arms for so many periods: it grows as their cube root."""
    # A cube root that is whole may come out a little above.
    return max(2, math.ceil(horizon ** (1 / 3) - 1e-9) + 1)


def even_arms(total: float, count: int) -> Floats:
    """Return `count` amounts from 0 to `total`, evenly apart, shape (K,)."""
    return np.linspace(0.0, total, count)


def with_midpoints(arm_K: Floats) -> Floats:
    """Return the arms with one more between each two: shape (2K - 1,), old arm k at 2k."""
    finer = np.empty(2 * len(arm_K) - 1)
    finer[::2] = arm_K
    finer[1::2] = (arm_K[1:] + arm_K[:-1]) / 2
    return finer


def nearest_arm(arm_K: Floats, amount: Floats) -> Ints:
    """Return the number of the arm nearest to each amount; of two equally near, the lower."""
    middle = (arm_K[1:] + arm_K[:-1]) / 2
    return np.searchsorted(middle, amount, side="left")
