"""The best that can be reached when every channel's response is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from headwater.models.budgets.curves import Curve, merged, respond, roi_spend
from headwater.models.budgets.grid import Floats


@dataclass(frozen=True, slots=True)
class Optimum:
    """The best split of a total, with the prices of both constraints."""

    budget_C: Floats
    value: float
    roi_price: float
    """lam*: value gained for each unit by which value may fall short of target x spend."""
    budget_price: float
    """mu*: value gained for one more unit of total."""


def optimum(curves: Sequence[Curve], total: float, target: float = 0.0) -> Optimum:
    """Return the budgets that maximise value with value >= target x spend and spend <= total.

    Pieces of all curves are bought by value for money; since the merged curve is concave, the ROI
    constraint only ends the buying earlier. Equal to the linear program over pieces, and to that over
    single auctions. A channel's budget is what it is to spend, so unspent budget is none.
    """
    whole = merged(curves)
    bound = roi_spend(whole, target)
    # What gains nothing is not bought.
    useful = float(np.diff(whole.spend_P)[whole.slopes() > 0].sum())
    spend = min(total, bound, useful)
    budget_C = _fill(curves, spend)
    value = float(sum(curve.value(budget) for curve, budget in zip(curves, budget_C, strict=True)))
    roi_price = budget_price = 0.0
    if spend < useful:
        place = int(np.searchsorted(whole.spend_P, spend, side="right")) - 1
        slope = float(whole.slopes()[place])
        if spend == total:
            budget_price = slope
        elif slope < target:
            roi_price = slope / (target - slope)
    return Optimum(budget_C, value, roi_price, budget_price)


def roi_only(curves: Sequence[Curve], total: float, target: float, targets: Floats) -> float:
    """Return the best value when channels are given target ROIs alone, each one of `targets`; a search.

    Channels reach few points that way, so the best may be arbitrarily far below `optimum`. The cost is the
    product over channels of the number of targets.
    """
    value_X, spend_X = np.zeros(1), np.zeros(1)
    for curve in curves:
        reached = np.unique([respond(curve, target=float(each)) for each in targets], axis=0)
        value_X = (value_X[:, None] + reached[:, 0]).ravel()
        spend_X = (spend_X[:, None] + reached[:, 1]).ravel()
    feasible = (spend_X <= total) & (value_X >= target * spend_X)
    return float(value_X[feasible].max(initial=0.0))


def _fill(curves: Sequence[Curve], spend: float) -> Floats:
    """Return what each channel spends when pieces are bought by value for money."""
    cost = np.concatenate([np.diff(curve.spend_P) for curve in curves])
    slope = np.concatenate([curve.slopes() for curve in curves])
    channel = np.repeat(np.arange(len(curves)), [len(curve.spend_P) - 1 for curve in curves])
    order = np.argsort(-slope, kind="stable")
    before = np.concatenate([[0.0], np.cumsum(cost[order])[:-1]])
    bought = np.clip(spend - before, 0.0, cost[order])
    spent_C = np.zeros(len(curves))
    np.add.at(spent_C, channel[order], bought)
    return spent_C
