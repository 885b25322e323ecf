"""SGD-UCB (ICML 2023): budgets of channels from what they brought, with prices for both constraints.

"Multi-channel Autobidding with Budget and ROI Constraints", Deng et al. Each period every channel gets the
arm with the largest (1 + lam) * (mean + bonus) - (gamma * lam + mu) * budget. lam, the price of the ROI
constraint (value >= gamma * spend), and mu, that of the budget constraint, then take a projected gradient
step along the constraints of the period. Values and budgets are in whatever unit the caller chose.

R problems at once, C channels, K arms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from headwater.feature_store.config import Config
from headwater.models.budgets.concave import ConcaveFit
from headwater.models.budgets.grid import (
    Floats,
    even_arms,
    nearest_arm,
    num_arms,
    with_midpoints,
)
from headwater.models.budgets.pacer import Limits, Paced, choose_under_total
from headwater.models.budgets.statistics import ArmMeans

_FIRST_HORIZON = 64
_BLOCK = 512
_STATE = ("lam_R", "mu_R", "price_R", "period_R", "horizon_R", "budget_sum_RC", "largest_RC")


class SgdUcbConfig(Config):
    """Settings of SGD-UCB."""

    horizon: int | None = Field(default=None, gt=0)
    """Periods to come; when absent 64 are assumed, and twice as many each time they are over."""
    arms: int | None = Field(default=None, ge=2)
    """Amounts to choose among; when absent about the cube root of the horizon."""
    bonus: float = Field(default=0.1, ge=0)
    """Factor of the bonus of uncertain arms; 1 is the theory's."""
    dual_step: float | None = Field(default=None, gt=0)
    """Step of both prices; 1 / sqrt(horizon) when absent."""
    max_roi_price: float = Field(default=20.0, gt=0)
    """Cap of lam: where it is reached, no split may meet the target."""
    max_budget_price: float = Field(default=100.0, gt=0)
    """Cap of mu."""
    window: int | None = Field(default=None, gt=1)
    """Periods that means are over, for channels that change; all when absent."""
    smooth: bool = False
    """Fit a concave, rising curve through the means of a channel, and choose by it."""
    learn_spend: bool = False
    """Price the spend seen at an arm, not its amount, for channels that do not spend their budgets."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A budget problem for each of R rows."""

    total_R: Floats
    """Budget of a period, of all channels together."""
    target_R: Floats
    """Target ROI, gamma: value for each unit of spend, 0 where there is none."""
    range_RC: Floats | None = None
    """Largest value that a channel may bring in a period; learned where absent."""


class SgdUcb:
    """SGD-UCB over R problems of C channels; `state` and `restore` save and load it exactly."""

    def __init__(self, config: SgdUcbConfig, problem: Problem, num_channels: int) -> None:
        self.config = config
        self.problem = problem
        num_rows = len(problem.total_R)
        self.lam_R = np.zeros(num_rows)
        """Price of the ROI constraint."""
        self.mu_R = np.zeros(num_rows)
        """Price of the budget constraint."""
        self.price_R = np.zeros(num_rows)
        """What one more unit of total would have gained in the last paced choice."""
        self.period_R = np.zeros(num_rows, dtype=np.int64)
        """Periods chosen so far."""
        self.horizon_R = np.full(num_rows, config.horizon or _FIRST_HORIZON)
        self.budget_sum_RC = np.zeros((num_rows, num_channels))
        self.largest_RC = np.zeros((num_rows, num_channels))
        count = config.arms or num_arms(int(self.horizon_R[0]))
        self.arm_K = even_arms(float(problem.total_R.max()), count)
        """Amounts, shape (K,), shared by all problems."""
        self.means = ArmMeans(num_rows, num_channels, count, config.window)
        self._fit = ConcaveFit(self.means.count_RCK.shape) if config.smooth else None

    def curve(self) -> Floats:
        """Return the estimated value of each arm, shape (R, C, K)."""
        if self._fit is None:
            return self.means.value_RCK
        return self._fit.fit(self.arm_K, self.means.value_RCK, self.means.count_RCK)

    def optimistic(self) -> Floats:
        """Return estimate and bonus of each arm, shape (R, C, K); an arm never tried counts as tried once."""
        return self._optimistic(self.curve(), slice(None))

    def indices(self, budget_price_R: Floats) -> Iterator[tuple[slice, Floats]]:
        """Yield (1 + lam) * (mean + bonus) - (gamma * lam + price) * spend of each arm, by blocks of rows.

        Blocks fit into the processor's cache, which is several times as fast as all at once.
        """
        curve_RCK = self.curve()
        price_R = self.problem.target_R * self.lam_R + budget_price_R
        for first in range(0, len(price_R), _BLOCK):
            rows = slice(first, first + _BLOCK)
            index_RCK = self._optimistic(curve_RCK, rows)
            index_RCK *= (1 + self.lam_R[rows])[:, None, None]
            spend = self.means.spend_RCK[rows] if self.config.learn_spend else self.arm_K
            index_RCK -= price_R[rows, None, None] * spend
            yield rows, index_RCK

    def _optimistic(self, curve_RCK: Floats, rows: slice) -> Floats:
        log_R = 2 * np.log(self.horizon_R[rows])
        size_RC = self.config.bonus * self._range()[rows] * np.sqrt(log_R)[:, None]
        # In place: a new array of this size costs as much as the arithmetic.
        optimistic_RCK = size_RC[..., None] * self.means.doubt_RCK[rows]
        optimistic_RCK += curve_RCK[rows]
        return optimistic_RCK

    def unpaced(self) -> Floats:
        """Return budgets as published, shape (R, C): nothing keeps their sum below the total.

        While a channel has arms that were never tried, it tries the next one; channels start apart, so
        that they are not all at the total at once.
        """
        arm_RC = np.concatenate([index.argmax(2) for _, index in self.indices(self.mu_R)])
        if self.means.count_RCK.all():
            return self._count(self.arm_K[arm_RC])
        channels = np.arange(self.means.count_RCK.shape[1])
        num_arms = len(self.arm_K)
        start_RC = (self.period_R[:, None] + channels) % num_arms
        order_RCK = (start_RC[..., None] + np.arange(num_arms)) % num_arms
        new_RCK = np.take_along_axis(self.means.count_RCK == 0, order_RCK, 2)
        first_RC = np.take_along_axis(order_RCK, new_RCK.argmax(2)[..., None], 2)[..., 0]
        arm_RC = np.where(new_RCK.any(2), first_RC, arm_RC)
        return self._count(self.arm_K[arm_RC])

    def paced(self, limits: Limits) -> Paced:
        """Return budgets that never add up to more than the total, by the same index.

        The total is kept by the choice itself, so its price is what the next step would gain, and not mu.
        In the first periods, one for each channel and more until a value was seen, shares of a half, a
        quarter, .. go around.
        """
        blocks = [
            choose_under_total(index, self.arm_K, limits.of(rows), guess_R=self.price_R[rows])
            for rows, index in self.indices(np.zeros_like(self.lam_R))
        ]
        chosen = Paced(
            np.concatenate([block.budget_RC for block in blocks]),
            np.concatenate([block.price_R for block in blocks]),
        )
        self.price_R = chosen.price_R
        first_R = (self.period_R < self.budget_sum_RC.shape[1]) | ~self.largest_RC.any(1)
        if first_R.any():
            split_RC = np.where(first_R[:, None], self._first_split(limits), chosen.budget_RC)
            chosen = Paced(split_RC, chosen.price_R)
        self._count(chosen.budget_RC)
        return chosen

    def observe(self, budget_RC: Floats, value_RC: Floats, spend_RC: Floats | None = None) -> None:
        """Learn what budgets brought, of any earlier period; NaN where nothing is known of a channel.

        A budget between two arms counts for the nearest. `spend_RC` is what was spent of it, all when absent.
        """
        spend_RC = budget_RC if spend_RC is None else spend_RC
        known_RC = ~np.isnan(value_RC)
        self.means.add(nearest_arm(self.arm_K, budget_RC), value_RC, spend_RC)
        value_RC = np.where(known_RC, value_RC, 0.0)
        spend_RC = np.where(known_RC, spend_RC, 0.0)
        self.largest_RC = np.maximum(self.largest_RC, np.abs(value_RC))
        step_R = self.config.dual_step or 1 / np.sqrt(self.horizon_R)
        roi_R = value_RC.sum(1) - self.problem.target_R * spend_RC.sum(1)
        budget_R = self.problem.total_R - spend_RC.sum(1)
        self.lam_R = np.clip(self.lam_R - step_R * roi_R, 0, self.config.max_roi_price)
        self.mu_R = np.clip(self.mu_R - step_R * budget_R, 0, self.config.max_budget_price)

    def mean_budgets(self) -> Floats:
        """Return rho_bar, the mean of the budgets chosen so far, shape (R, C): for use after learning."""
        return self.budget_sum_RC / np.maximum(self.period_R, 1)[:, None]

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Return all that was learned, by name."""
        state: dict[str, NDArray[np.generic]] = {name: getattr(self, name) for name in _STATE}
        state |= self.means.state()
        state["arm_K"] = self.arm_K
        if self._fit is not None:
            state["weight_RCK"] = self._fit.weight_RCK
        return {name: array.copy() for name, array in state.items()}

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take a state over: what follows is bitwise what would have followed there."""
        for name in _STATE:
            setattr(self, name, np.array(state[name]))
        self.means.restore(state)
        self.arm_K = np.array(state["arm_K"], dtype=np.float64)
        if self._fit is not None:
            self._fit.weight_RCK = np.array(state["weight_RCK"], dtype=np.float64)

    def _range(self) -> Floats:
        given = self.problem.range_RC
        return self.largest_RC if given is None else given

    def _first_split(self, limits: Limits) -> Floats:
        """Return the floors and shares of a half, a quarter, .. of the rest, within the ceilings."""
        num_channels = self.budget_sum_RC.shape[1]
        place_RC = (self.period_R[:, None] + np.arange(num_channels)) % num_channels
        budget_RC = limits.floor_RC.copy()
        # What a ceiling keeps out goes to the others: each round closes one channel at least.
        for _ in range(num_channels):
            rest_R = np.maximum(0, limits.total_R - budget_RC.sum(1))
            share_RC = np.where(budget_RC < limits.ceiling_RC, 0.5 ** (place_RC + 1), 0.0)
            share_RC /= np.maximum(share_RC.sum(1, keepdims=True), 1e-300)
            budget_RC = np.minimum(budget_RC + share_RC * rest_R[:, None], limits.ceiling_RC)
        return budget_RC

    def _count(self, budget_RC: Floats) -> Floats:
        """Count a period with these budgets, and double the horizon where it is over."""
        self.period_R = self.period_R + 1
        self.budget_sum_RC = self.budget_sum_RC + budget_RC
        if self.config.horizon is None:
            self.horizon_R = np.where(self.period_R >= self.horizon_R, 2, 1) * self.horizon_R
            wanted = num_arms(int(self.horizon_R.min()))
            if self.config.arms is None and wanted >= 2 * len(self.arm_K) - 1:
                self.arm_K = with_midpoints(self.arm_K)
                self.means.insert_midpoints()
                if self._fit is not None:
                    self._fit.insert_midpoints()
        return budget_RC
