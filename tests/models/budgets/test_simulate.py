"""Policies on simulated markets: under the total everywhere, and above the plain splits where they learn."""

from __future__ import annotations

import numpy as np
import pytest

from headwater.models.budgets.baselines import (
    ExploreThenCommit,
    GreedyMarginal,
    HillCurves,
    Known,
    Paced,
    Policy,
    Proportional,
    Thompson,
    fit_hill,
)
from headwater.models.budgets.environment import KINDS, Kind, Market, Setting
from headwater.models.budgets.sgd_ucb import Problem, SgdUcbConfig
from headwater.models.budgets.simulate import simulate


def policies(problem: Problem, horizon: int) -> dict[str, Policy]:
    return {
        "equal": Known.equal(problem, 4),
        "proportional": Proportional(problem, 4),
        "commit": ExploreThenCommit(problem, 4, horizon, 1),
        "greedy": GreedyMarginal(problem, 4, horizon, 1),
        "thompson": Thompson(problem, 4, horizon, 1),
        "hill": HillCurves(problem, 4, horizon, 1),
        "paced": Paced(SgdUcbConfig(horizon=horizon, smooth=True), problem, 4),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_market_answers_as_its_curves(kind: Kind) -> None:
    market = Market(Setting(kind=kind), 3, 5, seed=1)
    budget_RC = np.random.default_rng(0).random((3, 4)) * 0.9
    for period in range(5):
        value_RC = market.value(period, budget_RC)
        for row, channel in np.ndindex(3, 4):
            curve = market.curves[row][channel][market.draws_TRC[period, row, channel]]
            expected = float(curve.value(budget_RC[row, channel]))
            assert value_RC[row, channel] == pytest.approx(expected)


def test_no_policy_is_ever_above_the_total() -> None:
    setting = Setting(target=1.2, drift="switching", delay_periods=5)
    market = Market(setting, 3, 40, seed=2)
    for name, policy in policies(Problem(np.ones(3), market.target_R), 40).items():
        found = simulate(market, policy)
        assert found.most_spent <= 1 + 1e-9, name
        assert np.isfinite(found.share_R).all(), name


def test_oracle_reaches_itself_and_learning_beats_the_equal_split() -> None:
    market = Market(Setting(), 8, 300, seed=3)
    problem = Problem(np.ones(8), market.target_R)
    best = np.array([each.budget_C for each in market.optima(0)])
    assert simulate(market, Known(best)).share_R == pytest.approx(np.ones(8))
    made = policies(problem, 300)
    assert simulate(market, made["paced"]).share_R.mean() > (
        simulate(market, made["equal"]).share_R.mean() + 0.02
    )


def test_markets_repeat_and_share_channels_where_asked() -> None:
    first, second = (Market(Setting(), 2, 10, seed=4) for _ in range(2))
    assert np.array_equal(first.draws_TRC, second.draws_TRC)
    assert first.optima(0)[0].value == second.optima(0)[0].value
    shared = Market(Setting(), 2, 10, seed=4, shared=True)
    assert shared.optima(0)[0].value == shared.optima(0)[1].value


def test_seasons_and_switches_move_the_best_split() -> None:
    for drift in ("switching", "seasonal"):
        market = Market(Setting(drift=drift), 1, 100, seed=5)
        early, late = market.optima(0)[0].budget_C, market.optima(60)[0].budget_C
        assert np.abs(early - late).sum() > 0.1


def test_hill_curve_is_found_again() -> None:
    arm_K = np.linspace(0, 2, 15)
    true = 3 * arm_K**1.3 / (0.6**1.3 + arm_K**1.3)
    assert fit_hill(arm_K, true, np.ones(15)) == pytest.approx(true, abs=0.02)
