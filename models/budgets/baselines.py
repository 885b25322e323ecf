"""Other ways to split a total, to compare with: each chooses budgets and then sees what they brought.

All keep the total, and know what SGD-UCB knows: the values of budgets that were chosen. `Known` with the
optimum is the reference line.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from scipy.optimize import least_squares

from headwater.models.budgets.concave import ConcaveFit
from headwater.models.budgets.grid import Floats, even_arms, nearest_arm, num_arms
from headwater.models.budgets.pacer import Limits, choose_under_total
from headwater.models.budgets.sgd_ucb import Problem, SgdUcb, SgdUcbConfig
from headwater.models.budgets.statistics import ArmMeans


class Policy(Protocol):
    """A way to choose budgets, of R problems at once."""

    def choose(self) -> Floats:
        """Return budgets of the next period, shape (R, C)."""
        ...

    def observe(self, budget_RC: Floats, value_RC: Floats) -> None:
        """Learn what the budgets of a period brought."""
        ...


class Paced:
    """SGD-UCB under the hard total."""

    def __init__(self, config: SgdUcbConfig, problem: Problem, num_channels: int) -> None:
        self.learner = SgdUcb(config, problem, num_channels)
        self.observe = self.learner.observe
        self._limits = Limits.of_total(problem.total_R, num_channels)

    def choose(self) -> Floats:
        """Return budgets of the next period."""
        return self.learner.paced(self._limits).budget_RC


class Known:
    """The same budgets in each period: equal shares, or what an oracle found."""

    def __init__(self, budget_RC: Floats) -> None:
        self._budget_RC = budget_RC

    @classmethod
    def equal(cls, problem: Problem, num_channels: int) -> Known:
        """Return the equal split."""
        return cls(np.repeat(problem.total_R[:, None] / num_channels, num_channels, axis=1))

    def choose(self) -> Floats:
        """Return the budgets."""
        return self._budget_RC

    def observe(self, budget_RC: Floats, value_RC: Floats) -> None:
        """Learn nothing."""


class Proportional:
    """Budgets proportional to the value for money that was observed so far."""

    def __init__(self, problem: Problem, num_channels: int) -> None:
        self._total_R = problem.total_R
        self._value_RC = np.zeros((len(problem.total_R), num_channels))
        self._spend_RC = np.zeros_like(self._value_RC)

    def choose(self) -> Floats:
        """Return equal shares at first, then shares by observed ROI."""
        roi_RC = self._value_RC / np.maximum(self._spend_RC, 1e-12)
        roi_RC[self._spend_RC.sum(1) == 0] = 1.0
        sum_R = roi_RC.sum(1, keepdims=True)
        share_RC = np.where(sum_R > 0, roi_RC / np.where(sum_R > 0, sum_R, 1), 1 / roi_RC.shape[1])
        return share_RC * self._total_R[:, None]

    def observe(self, budget_RC: Floats, value_RC: Floats) -> None:
        """Add up values and spend."""
        self._value_RC += value_RC
        self._spend_RC += budget_RC


class _Fitted:
    """Statistics over arms, and budgets that are best for curves made of them."""

    def __init__(self, problem: Problem, num_channels: int, horizon: int, seed: int) -> None:
        self.problem = problem
        num_rows = len(problem.total_R)
        self.arm_K = even_arms(float(problem.total_R.max()), num_arms(horizon))
        self.means = ArmMeans(num_rows, num_channels, len(self.arm_K), None)
        self.square_RC = np.zeros((num_rows, num_channels))
        self.rng = np.random.default_rng(seed)
        self.period = 0
        self.smoother = ConcaveFit(self.means.count_RCK.shape)

    def observe(self, budget_RC: Floats, value_RC: Floats) -> None:
        """Count the values for the arms nearest to the budgets."""
        self.means.add(nearest_arm(self.arm_K, budget_RC), value_RC, budget_RC)
        self.square_RC = np.maximum(self.square_RC, value_RC**2)

    def random_split(self) -> Floats:
        """Return an evenly drawn split of the total."""
        share_RC = self.rng.dirichlet(np.ones(self.square_RC.shape[1]), len(self.square_RC))
        return share_RC * self.problem.total_R[:, None]

    def best(self, curve_RCK: Floats) -> Floats:
        """Return the budgets that are best if the curves were right."""
        limits = Limits.of_total(self.problem.total_R, curve_RCK.shape[1])
        target_R = self.problem.target_R if self.problem.target_R.any() else None
        return choose_under_total(curve_RCK, self.arm_K, limits, target_R=target_R).budget_RC

    def smooth(self) -> Floats:
        """Return concave, rising curves through the means."""
        return self.smoother.fit(self.arm_K, self.means.value_RCK, self.means.count_RCK)


class ExploreThenCommit(_Fitted):
    """Random splits for about T^(2/3) periods, then the best for the curves that they showed."""

    def __init__(self, problem: Problem, num_channels: int, horizon: int, seed: int) -> None:
        super().__init__(problem, num_channels, horizon, seed)
        self._explore = int(np.ceil(horizon ** (2 / 3) / 2))
        self._kept: Floats | None = None

    def choose(self) -> Floats:
        """Return a random split, or the one that is kept."""
        self.period += 1
        if self.period <= self._explore:
            return self.random_split()
        if self._kept is None:
            self._kept = self.best(self.smooth())
        return self._kept


class GreedyMarginal(_Fitted):
    """The steepest gains of fitted curves first; now and then a random split."""

    def choose(self) -> Floats:
        """Return a random split with chance t^(-1/3), else the best for the fitted curves."""
        self.period += 1
        if self.rng.random() < self.period ** (-1 / 3):
            return self.random_split()
        return self.best(self.smooth())


class Thompson(_Fitted):
    """The best budgets for curves drawn from what is believed of each arm."""

    def choose(self) -> Floats:
        """Return the best budgets for normal draws around the means."""
        self.period += 1
        if self.period <= self.square_RC.shape[1]:
            return self.random_split()
        count_RCK = np.maximum(self.means.count_RCK, 0.5)
        scale_RCK = 0.3 * np.sqrt(self.square_RC)[..., None] / np.sqrt(count_RCK)
        drawn = self.rng.standard_normal(scale_RCK.shape)
        return self.best(self.means.value_RCK + scale_RCK * drawn)


class HillCurves(_Fitted):
    """Hill curves fitted by least squares at doubling times, as tools of media-mix modelling do."""

    def __init__(self, problem: Problem, num_channels: int, horizon: int, seed: int) -> None:
        super().__init__(problem, num_channels, horizon, seed)
        self._curve_RCK = self.means.value_RCK

    def choose(self) -> Floats:
        """Return random splits for ten periods, then the best for the last fit."""
        self.period += 1
        if self.period <= 10:
            return self.random_split()
        if self.period == 11 or (self.period & (self.period - 1)) == 0:
            self._curve_RCK = self._fit_all()
        return self.best(self._curve_RCK)

    def _fit_all(self) -> Floats:
        shape = self.means.count_RCK.shape
        curves = [
            fit_hill(self.arm_K, self.means.value_RCK[place], self.means.count_RCK[place])
            for place in np.ndindex(shape[:2])
        ]
        return np.array(curves).reshape(shape)


def fit_hill(arm_K: Floats, mean_K: Floats, count_K: Floats) -> Floats:
    """Return scale * a^p / (half^p + a^p) at the arms, fitted by weighted least squares."""
    top, span = max(float(mean_K.max()), 1e-9), float(arm_K[-1])
    weight_K = np.sqrt(count_K)

    def curve(parameters: Floats) -> Floats:
        scale, half, power = np.exp(parameters)
        raised = (arm_K / span) ** power
        return top * scale * raised / (half**power + raised)

    def residual(parameters: Floats) -> Floats:
        return weight_K * (curve(parameters) - mean_K) / top

    found = least_squares(residual, np.zeros(3), bounds=([-4, -5, -1.6], [4, 3, 1.1]), max_nfev=40)
    return curve(found.x)
