"""Simulated channels: auctions drawn from a seed, whose responses to any budget are exact.

R seeds at once, each with its own auctions: S realisations of those of each channel, of which every period
draws one. The total is 1, and no channel has auctions for less than that, so that budgets are always spent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from headwater.models.budgets.curves import (
    Curve,
    budget_curve,
    concave_hull,
    mean_curve,
    multi_item_curve,
)
from headwater.models.budgets.grid import Floats
from headwater.models.budgets.oracle import Optimum, optimum

Kind = Literal["second_price", "first_price", "multi_item", "bad_bidding"]
KINDS: tuple[Kind, ...] = ("second_price", "first_price", "multi_item", "bad_bidding")
_REALISATIONS = 4


@dataclass(frozen=True, slots=True)
class Setting:
    """A kind of simulated market."""

    kind: Kind = "second_price"
    num_channels: int = 4
    auctions: int = 12
    target: float = 0.0
    """Target ROI as a share of the best split's ROI without one: above 1 it binds."""
    drift: Literal["none", "switching", "seasonal"] = "none"
    delay_periods: int = 0


class Market:
    """The channels of R seeds over `horizon` periods; with `shared` all have the same, and draws differ."""

    def __init__(
        self, setting: Setting, num_rows: int, horizon: int, seed: int, *, shared: bool = False
    ) -> None:
        self.setting = setting
        self.horizon = horizon
        rng = np.random.default_rng([seed, num_rows])
        self.curves = [
            [_channel(setting, rng) for _ in range(setting.num_channels)]
            for _ in range(1 if shared else num_rows)
        ]
        if shared:
            self.curves *= num_rows
        self.means = [[mean_curve(channel) for channel in row] for row in self.curves]
        corners = max(len(c.spend_P) for row in self.curves for ch in row for c in ch)
        shape = (num_rows, setting.num_channels, _REALISATIONS, corners)
        self._spend, self._value = np.zeros(shape), np.zeros(shape)
        for place in np.ndindex(shape[:3]):
            curve = self.curves[place[0]][place[1]][place[2]]
            # The last corner again, so that all have equally many.
            self._spend[place] = np.pad(curve.spend_P, (0, corners - len(curve.spend_P)), "edge")
            self._value[place] = np.pad(curve.value_P, (0, corners - len(curve.value_P)), "edge")
        self.draws_TRC = rng.integers(_REALISATIONS, size=(horizon, *shape[:2]), dtype=np.int8)
        unbound = [optimum(row, 1.0) for row in self.means]
        roi_R = np.array([best.value / max(best.budget_C.sum(), 1e-12) for best in unbound])
        self.target_R = setting.target * roi_R

    def scale(self, period: int) -> Floats:
        """Return the factor on each channel's value in a period, shape (C,)."""
        channels = np.arange(self.setting.num_channels)
        if self.setting.drift == "switching":
            turn = 2 * period // self.horizon
            return np.where((channels + turn) % 2 == 0, 1.0, 0.4)
        if self.setting.drift == "seasonal":
            phase = 2 * np.pi * (2 * period / self.horizon + channels / len(channels))
            return 1.0 + 0.6 * np.sin(phase)
        return np.ones(len(channels))

    def value(self, period: int, budget_RC: Floats) -> Floats:
        """Return what budgets bring in a period, shape (R, C)."""
        draw = self.draws_TRC[period][..., None, None]
        spend = np.take_along_axis(self._spend, draw, 2)[:, :, 0]
        value = np.take_along_axis(self._value, draw, 2)[:, :, 0]
        place = (spend[..., 1:] <= budget_RC[..., None]).sum(2)[..., None]
        place = np.minimum(place, spend.shape[2] - 2)
        low, high = (np.take_along_axis(spend, place + i, 2)[..., 0] for i in (0, 1))
        start, end = (np.take_along_axis(value, place + i, 2)[..., 0] for i in (0, 1))
        share = np.clip((budget_RC - low) / np.where(high > low, high - low, 1.0), 0, 1)
        return (start + share * (end - start)) * self.scale(period)

    def optima(self, period: int) -> list[Optimum]:
        """Return the best split of each seed in a period, for the mean over its draws."""
        scale_C = self.scale(period)
        found: list[Optimum] = []
        for row, target in zip(self.means, self.target_R, strict=True):
            scaled = [
                Curve(curve.spend_P, curve.value_P * scale)
                for curve, scale in zip(row, scale_C, strict=True)
            ]
            found.append(optimum(scaled, 1.0, float(target)))
        return found


def _channel(setting: Setting, rng: np.random.Generator) -> list[Curve]:
    """Return the curves of one channel's realisations."""
    quality = rng.uniform(0.5, 2.0)
    return [_curve(setting, quality, rng) for _ in range(_REALISATIONS)]


def _curve(setting: Setting, quality: float, rng: np.random.Generator) -> Curve:
    count = setting.auctions
    cost = rng.gamma(2.0, 1.0, count)
    # More than the total in each realisation, so that it is always spent.
    cost *= rng.uniform(1.2, 2.0) / cost.sum()
    value = quality * cost * rng.lognormal(0.0, 0.8, count)
    match setting.kind:
        case "second_price":
            return budget_curve(value, cost)
        case "first_price":
            # It bids a share of value and pays what it bids, and mixes shares where it must.
            order = np.argsort(cost / value)
            share = (cost / value)[order]
            return concave_hull(share * np.cumsum(value[order]), np.cumsum(value[order]))
        case "multi_item":
            options = rng.uniform(0.3, 1.0, (count, 3))
            options[:, 0] = 1.0
            return multi_item_curve(
                [
                    (v * option**0.5, c * option)
                    for v, c, option in zip(value, cost, options, strict=True)
                ]
            )
        case "bad_bidding":
            # Its order is only loosely that of value for money.
            order = np.argsort(-(value / cost) * rng.lognormal(0.0, 0.7, count))
            return concave_hull(np.cumsum(cost[order]), np.cumsum(value[order]))
