"""Responses of channels equal linear programs over their auctions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linprog

from headwater.models.budgets.curves import (
    budget_curve,
    concave_hull,
    mean_curve,
    merged,
    multi_item_curve,
    respond,
)
from headwater.models.budgets.grid import Floats
from headwater.models.budgets.oracle import optimum, roi_only


def auctions(rng: np.random.Generator, count: int) -> tuple[Floats, Floats]:
    """Return values and costs, some of which are 0."""
    value, cost = rng.gamma(2.0, 1.0, count), rng.gamma(2.0, 1.0, count)
    return value, np.where(rng.random(count) < 0.15, 0.0, cost)


def best_by_lp(value_N: Floats, cost_N: Floats, target: float, budget: float) -> float:
    """Return the value of the linear program over single auctions."""
    rows = [target * cost_N - value_N, cost_N]
    limits = [0.0, budget]
    if not np.isfinite(budget):
        rows, limits = rows[:1], limits[:1]
    found = linprog(-value_N, A_ub=np.array(rows), b_ub=limits, bounds=(0, 1))
    assert found.status == 0
    return float(-found.fun)


@pytest.mark.parametrize("seed", range(40))
def test_response_equals_the_linear_program(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(5):
        value, cost = auctions(rng, 8)
        curve = budget_curve(value, cost)
        budget, target = float(rng.uniform(0, cost.sum())), float(rng.uniform(0, 4))
        assert curve.value(budget) == pytest.approx(best_by_lp(value, cost, 0, budget), abs=1e-9)
        reached, spent = respond(curve, target=target)
        assert reached == pytest.approx(best_by_lp(value, cost, target, np.inf), abs=1e-9)
        assert reached >= target * spent - 1e-9
        both, _ = respond(curve, target=target, budget=budget)
        assert both == pytest.approx(best_by_lp(value, cost, target, budget), abs=1e-9)


def test_curve_is_concave_and_starts_at_the_free_auctions() -> None:
    value, cost = auctions(np.random.default_rng(3), 60)
    curve = budget_curve(value, cost)
    assert np.all(np.diff(curve.slopes()) <= 1e-12)
    assert curve.value(0.0) == pytest.approx(value[cost == 0].sum())
    assert curve.spent(1e9) == pytest.approx(cost.sum())


def test_target_lowers_value_and_a_single_auction_is_bought_or_not() -> None:
    value, cost = auctions(np.random.default_rng(4), 20)
    reached = [
        respond(budget_curve(value, cost), target=gamma)[0] for gamma in np.arange(0, 6, 0.1)
    ]
    assert np.all(np.diff(reached) <= 1e-12)
    single = budget_curve(np.array([3.0]), np.array([2.0]))
    assert {respond(single, target=gamma) for gamma in (0.0, 1.0, 1.5, 1.6, 9.0)} == {
        (3.0, 2.0),
        (0.0, 0.0),
    }


@pytest.mark.parametrize("seed", range(30))
def test_budgets_alone_reach_the_global_optimum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = [auctions(rng, 6) for _ in range(3)]
    value, cost = (np.concatenate([pair[i] for pair in found]) for i in (0, 1))
    target, total = float(rng.uniform(0, 3)), float(rng.uniform(0.5, cost.sum()))
    curves = [budget_curve(*pair) for pair in found]
    best = optimum(curves, total, target)
    assert best.value == pytest.approx(best_by_lp(value, cost, target, total), abs=1e-7)
    assert best.budget_C.sum() <= total + 1e-9
    assert best.value >= target * best.budget_C.sum() - 1e-9
    # ROI levers beside budgets add nothing, and looser constraints never take value away.
    assert roi_only(curves, total, target, np.linspace(0, 5, 12)) <= best.value + 1e-9
    assert optimum(curves, total * 1.1, target).value >= best.value - 1e-9
    assert optimum(curves, total, target * 0.9).value >= best.value - 1e-9


def test_prices_are_the_gains_of_looser_constraints() -> None:
    rng = np.random.default_rng(11)
    curves = [budget_curve(*auctions(rng, 30)) for _ in range(3)]
    bound_by_budget = optimum(curves, 5.0)
    more = optimum(curves, 5.0 + 1e-6)
    assert bound_by_budget.roi_price == 0
    assert (more.value - bound_by_budget.value) / 1e-6 == pytest.approx(
        bound_by_budget.budget_price, rel=1e-4
    )
    bound_by_roi = optimum(curves, 1e9, 2.0)
    assert bound_by_roi.budget_price == 0
    assert bound_by_roi.roi_price > 0
    assert bound_by_roi.value == pytest.approx(2.0 * bound_by_roi.budget_C.sum())


def test_roi_alone_fails_where_a_full_purchase_breaks_the_budget() -> None:
    eps = 1e-3
    curves = [budget_curve(np.array([each]), np.array([each])) for each in (2.0, eps)]
    best = optimum(curves, 1.0, 1.0).value
    assert best == pytest.approx(1.0)
    assert roi_only(curves, 1.0, 1.0, np.linspace(0, 3, 301)) / best < 1.1 * eps


def test_roi_alone_fails_where_only_a_part_meets_the_target() -> None:
    share, size = 0.02, 200.0
    curves = [
        budget_curve(np.array([1.0]), np.array([0.0])),
        budget_curve(np.array([size]), np.array([(1 + share) * size])),
    ]
    best = optimum(curves, 1e6, 1.0).value
    assert best == pytest.approx(51.0)
    reached = roi_only(curves, 1e6, 1.0, np.linspace(0, 3, 301))
    assert reached / best == pytest.approx(share / (1 + share))
    assert respond(curves[1], target=0.98) == pytest.approx((200.0, 204.0))
    assert respond(curves[1], target=0.99) == (0.0, 0.0)


@pytest.mark.parametrize("seed", range(10))
def test_several_items_an_auction_equal_the_linear_program(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = [(rng.gamma(2.0, 1.0, 3), rng.gamma(2.0, 1.0, 3)) for _ in range(6)]
    curve = multi_item_curve(found)
    value, cost = (np.concatenate([pair[i] for pair in found]) for i in (0, 1))
    budget = float(rng.uniform(0, cost.sum() / 2))
    rows = np.vstack([cost, np.kron(np.eye(6), np.ones(3))])
    best = linprog(-value, A_ub=rows, b_ub=[budget, *np.ones(6)], bounds=(0, 1))
    assert curve.value(budget) == pytest.approx(-best.fun, abs=1e-9)
    assert np.all(np.diff(curve.slopes()) <= 1e-9)


def test_hull_lies_above_all_points_and_touches_its_corners() -> None:
    rng = np.random.default_rng(0)
    spend, value = rng.random(50), rng.random(50)
    hull = concave_hull(spend, value)
    assert np.all(hull.value(spend) >= value - 1e-12)
    corners = set(zip(spend.tolist(), value.tolist(), strict=True)) | {(0.0, 0.0)}
    assert set(zip(hull.spend_P.tolist(), hull.value_P.tolist(), strict=True)) <= corners


def test_a_fixed_budget_is_judged_on_the_mean_curve() -> None:
    curves = [budget_curve(np.array([value]), np.array([1.0])) for value in (10.0, 1.0)]
    assert optimum([mean_curve(curves)], 0.5).value == pytest.approx(2.75)
    assert optimum([merged(curves)], 1.0).value / 2 == pytest.approx(5.0)


def test_values_that_are_all_too_high_by_a_factor_leave_the_order_but_not_the_split() -> None:
    rng = np.random.default_rng(5)
    value, cost = auctions(rng, 30)
    other = auctions(rng, 30)
    assert budget_curve(3 * value, cost).spend_P == pytest.approx(budget_curve(value, cost).spend_P)
    right = optimum([budget_curve(value, cost), budget_curve(*other)], 10.0)
    wrong = optimum([budget_curve(3 * value, cost), budget_curve(*other)], 10.0)
    assert wrong.budget_C[0] > right.budget_C[0]
