"""Budgets chosen under a hard total: the steepest steps first, over the arms that fit what is left.

From its floor each channel climbs the upper hull of its index. The steepest step of all channels is taken
first, so slopes are merged in falling order; where a step does not fit what is left, its channel looks for
one that does. For concave indices and a total on the grid this is the optimum over all combinations of
arms; for others it is the optimum of the hulls, less at most one step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headwater.models.budgets.grid import Floats, Ints

_ABOVE = (1.01, 1.1, 1.5)
"""Factors on the guessed price at which a climb may start."""
_SMALLEST = 1e-300
_ROUNDING = 1e-12
"""Share of the total by which a sum of amounts may miss it by rounding."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the choice: the total of each problem, floor and ceiling of each channel."""

    total_R: Floats
    floor_RC: Floats
    ceiling_RC: Floats

    @classmethod
    def of_total(cls, total_R: Floats, num_channels: int) -> Limits:
        """Return the limits of a total alone."""
        shape = (len(total_R), num_channels)
        return cls(total_R, np.zeros(shape), np.full(shape, np.inf))

    def of(self, rows: slice) -> Limits:
        """Return the limits of some of the problems."""
        return Limits(self.total_R[rows], self.floor_RC[rows], self.ceiling_RC[rows])


@dataclass(frozen=True, slots=True)
class Paced:
    """Budgets under the total."""

    budget_RC: Floats
    price_R: Floats
    """Gain in index of one more unit of money: slope of the first step that did not fit; 0 where all did."""


def choose_under_total(
    index_RCK: Floats,
    arm_K: Floats,
    limits: Limits,
    *,
    target_R: Floats | None = None,
    guess_R: Floats | None = None,
) -> Paced:
    """Return the budgets that maximise the summed index and never add up to more than the total.

    Money that no step fits goes to the channel whose step was the steepest of those that did not fit.
    Steps that gain nothing are not taken: among equal choices the lowest budget. With `target_R` the
    index is read as value, and budgets end where it would fall below target x spend.

    `guess_R`, prices near those to come out, as the last ones, saves steps: the climb then starts at the
    arms that a somewhat higher price leaves, where they fit.
    """
    climb = _Climb(index_RCK, arm_K, limits, target_R)
    if guess_R is not None and target_R is None:
        climb.start(guess_R)
    climb.look_everywhere()
    climb.run()
    return climb.result()


class _Climb:
    """State of a choice: where each channel is, its steepest next step, and what is left."""

    def __init__(
        self, index_RCK: Floats, arm_K: Floats, limits: Limits, target_R: Floats | None
    ) -> None:
        self.index_RCK = index_RCK
        self.arm_K = arm_K
        self.floor_RC, self.ceiling_RC = limits.floor_RC, limits.ceiling_RC
        self.is_bounded = bool(limits.floor_RC.any() or np.isfinite(limits.ceiling_RC).any())
        self.target_R = target_R
        self.amount_RC = limits.floor_RC.copy()
        self.left_R = limits.total_R - self.amount_RC.sum(1)
        self.tiny_R = _ROUNDING * limits.total_R
        # No step costs less; one from a floor may cost anything.
        self.least_R = self.tiny_R
        if not self.is_bounded:
            self.least_R = np.full(len(self.tiny_R), np.diff(arm_K).min()) - self.tiny_R
        self.at_RC: Ints = np.searchsorted(arm_K, self.amount_RC, side="right") - 1
        num_rows, num_channels, _ = index_RCK.shape
        self.slope_RC = np.empty((num_rows, num_channels))
        self.next_RC = np.empty((num_rows, num_channels), dtype=np.int64)
        self.blocked_R = np.full(num_rows, -1)
        self.price_R = np.zeros(num_rows)
        if target_R is not None:
            here_RC = np.take_along_axis(index_RCK, self.at_RC[..., None], 2)[..., 0]
            self.slack_R = here_RC.sum(1) - target_R * self.amount_RC.sum(1)

    def start(self, guess_R: Floats) -> None:
        """Start at the arms that a price above the guess leaves, where they fit; else at the floors."""
        for factor in _ABOVE:
            rows = np.nonzero((self.amount_RC == self.floor_RC).all(1))[0]
            if not len(rows):
                return
            whole = len(rows) == len(guess_R)
            index_NCK = self.index_RCK if whole else self.index_RCK[rows]
            net_NCK = index_NCK - (factor * guess_R[rows])[:, None, None] * self.arm_K
            floor_NC = self.floor_RC[rows]
            if self.is_bounded:
                barred_NCK = (self.arm_K < floor_NC[..., None]) | (
                    self.arm_K > self.ceiling_RC[rows][..., None]
                )
                net_NCK[barred_NCK] = -np.inf
                # The floor stands in the place of the arm at or below it.
                low_NC = self.at_RC[rows][..., None]
                held = (
                    np.take_along_axis(index_NCK, low_NC, 2)
                    - (factor * guess_R[rows, None] * floor_NC)[..., None]
                )
                np.put_along_axis(net_NCK, low_NC, held, 2)
            arm_NC = net_NCK.argmax(2)
            amount_NC = np.maximum(self.arm_K[arm_NC], floor_NC)
            left_N = self.left_R[rows] + floor_NC.sum(1) - amount_NC.sum(1)
            fits = left_N >= 0
            self.at_RC[rows[fits]] = arm_NC[fits]
            self.amount_RC[rows[fits]] = amount_NC[fits]
            self.left_R[rows[fits]] = left_N[fits]

    def look_everywhere(self) -> None:
        """Find the steepest step of every channel."""
        rows, channels = np.indices(self.at_RC.shape).reshape(2, -1)
        self._look(rows, channels, np.full(len(rows), np.inf))

    def run(self) -> None:
        """Take steps until none is left that gains and fits."""
        rows = np.arange(len(self.left_R))
        while True:
            channels = self.slope_RC[rows].argmax(1)
            gains = self.slope_RC[rows, channels] > 0
            rows, channels = rows[gains], channels[gains]
            out = self.left_R[rows] < self.least_R[rows]
            self._block(rows[out], channels[out])
            rows, channels = rows[~out], channels[~out]
            if not len(rows):
                return
            arms = self.next_RC[rows, channels]
            fits = self.arm_K[arms] - self.amount_RC[rows, channels] <= (
                self.left_R[rows] + self.tiny_R[rows]
            )
            self._block(rows[~fits], channels[~fits])
            self._step(rows[fits], channels[fits], arms[fits])
            self._look(rows, channels, np.where(fits, np.inf, self.left_R[rows]))
            if self.target_R is not None:
                self.slope_RC[rows[self.slack_R[rows] <= 0]] = -np.inf

    def result(self) -> Paced:
        """Return the budgets, after what is left went where the steepest step that did not fit was."""
        rows = np.nonzero(self.blocked_R >= 0)[0]
        if self.target_R is not None:
            rows = rows[self.slack_R[rows] > 0]
        channels = self.blocked_R[rows]
        room = self.ceiling_RC[rows, channels] - self.amount_RC[rows, channels]
        self.amount_RC[rows, channels] += np.maximum(0, np.minimum(self.left_R[rows], room))
        return Paced(self.amount_RC, self.price_R)

    def _step(self, rows: Ints, channels: Ints, arms: Ints) -> None:
        """Climb to the next arms, or as far as the values cover the target."""
        amount = self.arm_K[arms]
        cost = amount - self.amount_RC[rows, channels]
        if self.target_R is not None:
            lost = (self.target_R[rows] - self.slope_RC[rows, channels]) * cost
            short = lost > self.slack_R[rows]
            cost[short] *= np.maximum(0, self.slack_R[rows[short]]) / lost[short]
            amount = np.where(short, self.amount_RC[rows, channels] + cost, amount)
            self.slack_R[rows] = np.where(short, 0, self.slack_R[rows] - lost)
        self.left_R[rows] -= cost
        self.amount_RC[rows, channels] = amount
        self.at_RC[rows, channels] = arms

    def _look(self, rows: Ints, channels: Ints, left: Floats) -> None:
        """Find the steepest step of each channel that fits its ceiling and `left`."""
        num_channels = self.index_RCK.shape[1]
        if len(rows) == self.at_RC.size:
            index_NK = self.index_RCK.reshape(len(rows), -1)
        else:
            index_NK = self.index_RCK.reshape(self.at_RC.size, -1)[rows * num_channels + channels]
        amount_N = self.amount_RC[rows, channels]
        here_N = index_NK[np.arange(len(rows)), self.at_RC[rows, channels]]
        cost_NK = self.arm_K - amount_N[:, None]
        slope_NK = index_NK - here_N[:, None]
        tiny_N = self.tiny_R[rows]
        if self.is_bounded or np.isfinite(left).any():
            reach_N = np.minimum(left, self.ceiling_RC[rows, channels] - amount_N) + tiny_N
            barred_NK = (cost_NK <= tiny_N[:, None]) | (cost_NK > reach_N[:, None])
            np.copyto(cost_NK, np.inf, where=barred_NK)
        else:
            # Lower arms have a lower index, since each step gained: below 0 whatever the cost.
            np.maximum(cost_NK, tiny_N[:, None] + _SMALLEST, out=cost_NK)
        slope_NK /= cost_NK
        best_N = slope_NK.argmax(1)
        self.next_RC[rows, channels] = best_N
        self.slope_RC[rows, channels] = slope_NK[np.arange(len(rows)), best_N]

    def _block(self, rows: Ints, channels: Ints) -> None:
        """Remember the first step of each problem that did not fit."""
        first = self.blocked_R[rows] < 0
        rows, channels = rows[first], channels[first]
        self.blocked_R[rows] = channels
        self.price_R[rows] = self.slope_RC[rows, channels]
