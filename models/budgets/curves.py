"""Response of a channel to its budget and target ROI: what it buys of its auctions, and what that costs.

A channel that is given a budget buys its auctions by value for money, the best first, and a part of the
last: a fractional knapsack. Value as a function of budget is then rising, concave and piecewise linear. All
of it is exact, in O(n log n).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from headwater.models.budgets.grid import Floats


@dataclass(frozen=True, slots=True)
class Curve:
    """A rising, concave, piecewise linear curve: its corners from spend 0 on."""

    spend_P: Floats
    value_P: Floats

    def value(self, budget: Floats | float) -> Floats:
        """Return the value at each budget; beyond the last corner nothing is left to buy."""
        return np.asarray(np.interp(budget, self.spend_P, self.value_P))

    def spent(self, budget: Floats | float) -> Floats:
        """Return what is spent of each budget."""
        return np.minimum(budget, self.spend_P[-1])

    def slopes(self) -> Floats:
        """Return value for money of each piece, falling."""
        return np.diff(self.value_P) / np.diff(self.spend_P)


def budget_curve(value_N: Floats, cost_N: Floats) -> Curve:
    """Return value by budget of single-item auctions: each bought at most once, in part where money ends."""
    free = cost_N <= 0
    value, cost = value_N[~free], cost_N[~free]
    order = np.argsort(-value / cost, kind="stable")
    spend_P = np.concatenate([[0.0], np.cumsum(cost[order])])
    return Curve(spend_P, value_N[free].sum() + np.concatenate([[0.0], np.cumsum(value[order])]))


def concave_hull(spend_N: Floats, value_N: Floats) -> Curve:
    """Return the least rising concave curve above all points, from spend 0 on.

    What is reached by mixing points over time. A point at spend 0 is assumed, of value 0 where none is given.
    """
    order = np.lexsort((-value_N, spend_N))
    corners = [(0.0, max(0.0, float(value_N[spend_N <= 0].max(initial=0.0))))]
    for spend, value in zip(spend_N[order].tolist(), value_N[order].tolist(), strict=True):
        if spend <= corners[-1][0] or value <= corners[-1][1]:
            continue
        while len(corners) > 1 and _slope(corners[-2], corners[-1]) <= _slope(
            corners[-2], (spend, value)
        ):
            corners.pop()
        corners.append((spend, value))
    spend_P, value_P = np.array(corners).T
    return Curve(spend_P, value_P)


def multi_item_curve(auctions: Sequence[tuple[Floats, Floats]]) -> Curve:
    """Return value by budget of auctions with several options each, given as (values, costs).

    One option of an auction is bought, or a mixture of them: its hull. Pieces of all hulls are bought by
    value for money.
    """
    hulls = [concave_hull(cost_N, value_N) for value_N, cost_N in auctions]
    return merged(hulls)


def merged(curves: Sequence[Curve]) -> Curve:
    """Return the largest summed value by summed spend: all pieces by value for money."""
    gain = np.concatenate([np.diff(curve.value_P) for curve in curves])
    cost = np.concatenate([np.diff(curve.spend_P) for curve in curves])
    order = np.argsort(-gain / cost, kind="stable")
    start = sum(float(curve.value_P[0]) for curve in curves)
    return Curve(
        np.concatenate([[0.0], np.cumsum(cost[order])]),
        start + np.concatenate([[0.0], np.cumsum(gain[order])]),
    )


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Return the mean value by budget over equally likely curves."""
    spend_P = np.unique(np.concatenate([curve.spend_P for curve in curves]))
    return Curve(spend_P, np.mean([curve.value(spend_P) for curve in curves], axis=0))


def roi_spend(curve: Curve, target: float) -> float:
    """Return the largest spend at which value still covers target x spend."""
    slack_P = curve.value_P - target * curve.spend_P
    if slack_P[-1] >= 0:
        return float(curve.spend_P[-1])
    # Concave, and not negative at 0: it is crossed once, on the way down.
    last = int(np.nonzero(slack_P >= 0)[0][-1])
    share = slack_P[last] / (slack_P[last] - slack_P[last + 1])
    return float(curve.spend_P[last] + share * (curve.spend_P[last + 1] - curve.spend_P[last]))


def respond(curve: Curve, *, target: float = 0.0, budget: float = np.inf) -> tuple[float, float]:
    """Return value and spend of a channel that is given a target ROI, a budget, or both.

    It buys along its curve while the value covers target x spend and the budget lasts.
    """
    spend = min(budget, roi_spend(curve, target))
    return float(curve.value(spend)), float(curve.spent(spend))


def _slope(start: tuple[float, float], end: tuple[float, float]) -> float:
    return (end[1] - start[1]) / (end[0] - start[0])
