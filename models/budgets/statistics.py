"""Means of what each arm brought, over all periods or over the last ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from headwater.models.budgets.grid import Floats, Ints

_STATE = ("count_RCK", "value_RCK", "spend_RCK")


class ArmMeans:
    """Counts and means of value and spend, by problem, channel and arm.

    With `window`, what is older counts less: weights fall by 1 - 1/window a period, so that a mean is over
    about the last `window` periods.
    """

    def __init__(self, num_rows: int, num_channels: int, arms: int, window: int | None) -> None:
        shape = (num_rows, num_channels, arms)
        self.count_RCK = np.zeros(shape)
        """Observations of an arm, or the sum of their weights."""
        self.doubt_RCK = np.ones(shape)
        """1 / sqrt(count), of an arm never tried as if tried once; kept, as roots of all take long."""
        self.value_RCK = np.zeros(shape)
        self.spend_RCK = np.zeros(shape)
        self._keep = 1.0 if window is None else 1.0 - 1.0 / window

    def add(self, arm_RC: Ints, value_RC: Floats, spend_RC: Floats) -> None:
        """Count one observation of an arm of each channel; NaN values are none."""
        if self._keep < 1:
            self.count_RCK *= self._keep
            self.doubt_RCK = _doubt(self.count_RCK)
        rows, channels = np.nonzero(~np.isnan(value_RC))
        place = (rows, channels, arm_RC[rows, channels])
        count = self.count_RCK[place] + 1
        self.count_RCK[place] = count
        self.doubt_RCK[place] = _doubt(count)
        for mean_RCK, seen_RC in ((self.value_RCK, value_RC), (self.spend_RCK, spend_RC)):
            old = mean_RCK[place]
            mean_RCK[place] = old + (seen_RC[rows, channels] - old) / count

    def insert_midpoints(self) -> None:
        """Make room for an arm between each two, which nothing is known of."""
        found: dict[str, Floats] = {}
        for name, coarse in self.state().items():
            found[name] = np.zeros((*coarse.shape[:2], 2 * coarse.shape[2] - 1))
            found[name][..., ::2] = coarse
        self.restore(found)

    def state(self) -> dict[str, Floats]:
        """Return the arrays by name."""
        return {name: getattr(self, name) for name in _STATE}

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take the arrays of a state over."""
        for name in _STATE:
            setattr(self, name, np.array(state[name], dtype=np.float64))
        self.doubt_RCK = _doubt(self.count_RCK)


def _doubt(count: Floats) -> Floats:
    return 1 / np.sqrt(np.maximum(count, 1.0))
