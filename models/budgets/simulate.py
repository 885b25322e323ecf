"""A policy on a simulated market, beside the best split that knows it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from headwater.models.budgets.baselines import Policy
from headwater.models.budgets.environment import Market
from headwater.models.budgets.grid import Floats


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a policy reached on each seed."""

    share_R: Floats
    """Value, less lam* x what it lacks of the target, as a share of the oracle's on the same draws."""
    most_spent: float
    """The largest sum of budgets of any period; the total is 1."""
    budget_TC: Floats
    """Mean budgets over seeds, by period."""


def simulate(market: Market, policy: Policy) -> Outcome:
    """Run a policy over all periods; what a period brought comes `delay_periods` later."""
    num_rows = len(market.target_R)
    waiting: deque[tuple[Floats, Floats]] = deque()
    value_R, best_R, slack_R, price_R = np.zeros((4, num_rows))
    most_spent, budgets = 0.0, np.zeros((market.horizon, market.setting.num_channels))
    known: tuple[bytes, Floats] | None = None
    for period in range(market.horizon):
        scale = market.scale(period).tobytes()
        # Seasons turn slowly: the oracle follows them a hundred times.
        if known is None or (
            known[0] != scale and (period % max(1, market.horizon // 100) == 0 or period == 0)
        ):
            optima = market.optima(period)
            known = scale, np.array([best.budget_C for best in optima])
            price_R = np.array([best.roi_price for best in optima])
        budget_RC = policy.choose()
        seen_RC = market.value(period, budget_RC)
        waiting.append((budget_RC, seen_RC))
        if len(waiting) > market.setting.delay_periods:
            policy.observe(*waiting.popleft())
        most_spent = max(most_spent, float(budget_RC.sum(1).max()))
        budgets[period] = budget_RC.mean(0)
        value_R = value_R + seen_RC.sum(1)
        slack_R = slack_R + seen_RC.sum(1) - market.target_R * budget_RC.sum(1)
        best_R = best_R + market.value(period, known[1]).sum(1)
    paid_R = value_R + price_R * np.minimum(0, slack_R)
    return Outcome(paid_R / best_R, most_spent, budgets)
