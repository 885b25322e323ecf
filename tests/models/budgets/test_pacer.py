"""Choices under a hard total: equal to dynamic programming, within every bound."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.models.budgets.grid import Floats, even_arms
from headwater.models.budgets.pacer import Limits, choose_under_total


def concave(rng: np.random.Generator, channels: int, arms: int) -> Floats:
    slopes = np.sort(rng.normal(0.5, 1.0, (1, channels, arms - 1)), axis=2)[..., ::-1]
    return np.concatenate([np.zeros((1, channels, 1)), slopes.cumsum(2)], axis=2)


def by_dynamic_programming(index_CK: Floats, places: int) -> float:
    """Return the best summed index over arms k_1 + .. + k_C <= places."""
    best = np.zeros(places + 1)
    for index_K in index_CK:
        best = np.array(
            [max(best[p - k] + index_K[k] for k in range(p + 1)) for p in range(places + 1)]
        )
    return float(best[-1])


def gained(index_CK: Floats, arm_K: Floats, budget_C: Floats) -> float:
    return sum(float(np.interp(b, arm_K, row)) for b, row in zip(budget_C, index_CK, strict=True))


@pytest.mark.parametrize("seed", range(30))
def test_concave_choice_equals_dynamic_programming(seed: int) -> None:
    rng = np.random.default_rng(seed)
    channels, arms = int(rng.integers(1, 6)), int(rng.integers(2, 14))
    arm_K = even_arms(7.0, arms)
    index = concave(rng, channels, arms)
    chosen = choose_under_total(index, arm_K, Limits.of_total(np.array([7.0]), channels))
    best = by_dynamic_programming(index[0], arms - 1)
    assert gained(index[0], arm_K, chosen.budget_RC[0]) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("seed", range(30))
def test_any_choice_misses_dynamic_programming_by_less_than_a_step_of_the_hull(seed: int) -> None:
    rng = np.random.default_rng(seed)
    arm_K = even_arms(1.0, 8)
    index = rng.random((1, 3, 8)).cumsum(2)
    chosen = choose_under_total(index, arm_K, Limits.of_total(np.array([1.0]), 3))
    best = by_dynamic_programming(index[0], 7)
    assert gained(index[0], arm_K, chosen.budget_RC[0]) >= best - np.diff(index).max() * 3


def test_many_problems_at_once_are_chosen_as_one_by_one() -> None:
    rng = np.random.default_rng(8)
    arm_K = even_arms(1.0, 9)
    index = rng.random((40, 4, 9)).cumsum(2) - 2 * arm_K
    total_R = rng.uniform(0.3, 1.0, 40)
    together = choose_under_total(index, arm_K, Limits.of_total(total_R, 4))
    for row in range(40):
        alone = choose_under_total(
            index[row : row + 1], arm_K, Limits.of_total(total_R[row : row + 1], 4)
        )
        assert np.array_equal(alone.budget_RC[0], together.budget_RC[row])
        assert alone.price_R[0] == together.price_R[row]


@given(
    seed=st.integers(0, 2**32 - 1),
    channels=st.integers(1, 5),
    arms=st.integers(2, 9),
    share=st.floats(0.05, 1.5),
    aimed=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_bounds_hold_for_any_index(
    seed: int, channels: int, arms: int, share: float, aimed: bool
) -> None:
    rng = np.random.default_rng(seed)
    total_R = share * np.ones(3)
    floor_RC = rng.random((3, channels)) * share / channels * (rng.random((3, channels)) < 0.5)
    ceiling_RC = floor_RC + rng.random((3, channels)) * (rng.random((3, channels)) < 0.7)
    index = rng.normal(0, 1, (3, channels, arms)).cumsum(2)
    chosen = choose_under_total(
        index,
        even_arms(1.0, arms),
        Limits(total_R, floor_RC, ceiling_RC),
        target_R=np.ones(3) if aimed else None,
    )
    assert np.all(chosen.budget_RC.sum(1) <= total_R * (1 + 1e-9))
    assert np.all(chosen.budget_RC >= floor_RC)
    assert np.all(chosen.budget_RC <= ceiling_RC + 1e-9)


def test_fixed_channel_keeps_its_amount_and_the_rest_is_chosen() -> None:
    arm_K = even_arms(10.0, 11)
    index = np.array([[10 * arm_K, 2 * arm_K, 1 * arm_K]])
    limits = Limits(np.array([10.0]), np.array([[2.5, 0.0, 1.0]]), np.array([[2.5, 4.0, 10.0]]))
    chosen = choose_under_total(index, arm_K, limits)
    assert chosen.budget_RC[0] == pytest.approx([2.5, 4.0, 3.5])


def test_equal_gains_and_gains_of_nothing_take_the_lowest_budget() -> None:
    arm_K = even_arms(1.0, 5)
    flat = np.array([[[0.0, 1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0]]])
    chosen = choose_under_total(flat, arm_K, Limits.of_total(np.array([1.0]), 2))
    assert chosen.budget_RC.tolist() == [[0.25, 0.0]]
    assert chosen.price_R.tolist() == [0.0]


def test_target_ends_the_choice_where_value_no_longer_covers_it() -> None:
    arm_K = even_arms(1.0, 101)
    index = np.array([[np.minimum(arm_K, 0.2) * 3 + np.maximum(arm_K - 0.2, 0) * 0.5, 0.4 * arm_K]])
    chosen = choose_under_total(
        index, arm_K, Limits.of_total(np.array([1.0]), 2), target_R=np.array([1.25])
    )
    best = max(
        gained(index[0], arm_K, np.array(pair))
        for pair in product(arm_K, arm_K)
        if sum(pair) <= 1 and gained(index[0], arm_K, np.array(pair)) >= 1.25 * sum(pair)
    )
    assert gained(index[0], arm_K, chosen.budget_RC[0]) == pytest.approx(best, abs=0.01)


def test_what_no_step_fits_goes_to_the_steepest_that_did_not() -> None:
    arm_K = even_arms(1.0, 5)
    index = np.array([[4 * arm_K, 1 * arm_K]])
    chosen = choose_under_total(index, arm_K, Limits.of_total(np.array([0.6]), 2))
    assert chosen.budget_RC[0] == pytest.approx([0.6, 0.0])
    assert chosen.price_R[0] == pytest.approx(4.0)


@given(seed=st.integers(0, 2**32 - 1), bounded=st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_guessed_price_changes_nothing_but_the_work(seed: int, bounded: bool) -> None:
    rng = np.random.default_rng(seed)
    index = rng.normal(0.1, 1, (6, 3, 8)).cumsum(2)
    limits = Limits.of_total(rng.uniform(0.3, 1.2, 6), 3)
    if bounded:
        limits = Limits(limits.total_R, rng.uniform(0, 0.1, (6, 3)), rng.uniform(0.1, 0.9, (6, 3)))
    plain = choose_under_total(index, even_arms(1.0, 8), limits)
    guess_R = plain.price_R * rng.uniform(0.3, 3, 6)
    guessed = choose_under_total(index, even_arms(1.0, 8), limits, guess_R=guess_R)
    assert guessed.budget_RC == pytest.approx(plain.budget_RC, abs=1e-9)
    assert guessed.price_R == pytest.approx(plain.price_R)
