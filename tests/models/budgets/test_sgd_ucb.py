"""SGD-UCB: its steps, its identities and what it converges to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.models.budgets.grid import Floats, num_arms
from headwater.models.budgets.pacer import Limits
from headwater.models.budgets.sgd_ucb import Problem, SgdUcb, SgdUcbConfig


def learner(
    rows: int = 1,
    channels: int = 2,
    *,
    total: float = 1.0,
    target: float = 0.0,
    **settings: object,
) -> SgdUcb:
    config = SgdUcbConfig.model_validate({"horizon": 1000, **settings})
    problem = Problem(np.full(rows, total), np.full(rows, target), np.ones((rows, channels)))
    return SgdUcb(config, problem, channels)


def run(sgd: SgdUcb, periods: int, scale_C: Floats, seed: int = 0, *, pace: bool = False) -> None:
    """Let channels bring scale * sqrt(budget), with noise."""
    rng = np.random.default_rng(seed)
    limits = Limits.of_total(sgd.problem.total_R, len(scale_C))
    for _ in range(periods):
        budget_RC = sgd.paced(limits).budget_RC if pace else sgd.unpaced()
        noise = rng.uniform(0.8, 1.2, budget_RC.shape)
        sgd.observe(budget_RC, scale_C * np.sqrt(budget_RC) * noise)


def test_arms_grow_as_the_cube_root_of_the_horizon() -> None:
    assert [num_arms(10**power) for power in (3, 4, 5, 6)] == [11, 23, 48, 101]


def test_one_step_of_the_prices() -> None:
    sgd = learner(total=3.0, target=2.0, dual_step=0.1)
    sgd.lam_R[:] = sgd.mu_R[:] = 0.5
    sgd.observe(np.array([[1.0, 1.0]]), np.array([[3.0, 2.0]]))
    assert sgd.lam_R == pytest.approx([0.4])
    assert sgd.mu_R == pytest.approx([0.4])


def test_choice_is_the_best_arm_of_the_lagrangian_whatever_is_added_to_a_channel() -> None:
    sgd = learner(channels=3, target=1.5, bonus=0.0, arms=7)
    rng = np.random.default_rng(1)
    values = rng.random((1, 3, 7)).cumsum(2)
    sgd.lam_R[:], sgd.mu_R[:] = 0.7, 1.2
    chosen: list[list[float]] = []
    for added, scale in ((0.0, 1.0), (5.0, 1.0), (0.0, 2.0)):
        sgd.means.count_RCK[:] = 1
        sgd.means.value_RCK[:] = values + added
        # Doubling 1 + lam and gamma * lam + mu together leaves the choice.
        sgd.lam_R[:] = scale * 1.7 - 1
        sgd.mu_R[:] = scale * (1.5 * 0.7 + 1.2) - 1.5 * sgd.lam_R
        chosen.append(sgd.unpaced()[0].tolist())
    by_hand = (1.7 * values[0] - (1.5 * 0.7 + 1.2) * sgd.arm_K).argmax(1)
    assert chosen == [sgd.arm_K[by_hand].tolist()] * 3


def test_every_arm_is_tried_once_apart_and_means_are_the_empirical_ones() -> None:
    sgd = learner(channels=3, arms=5)
    seen: list[tuple[Floats, Floats]] = []
    rng = np.random.default_rng(2)
    for period in range(60):
        budget, value = sgd.unpaced(), rng.random((1, 3))
        sgd.observe(budget, value)
        seen.append((budget, value))
        if period == 4:
            assert np.all(sgd.means.count_RCK == 1)
    assert len({float(amount) for amount in seen[0][0][0]}) == 3
    assert np.all(sgd.means.count_RCK.sum(2) == 60)
    for channel, arm in np.ndindex(3, 5):
        values = [v[0, channel] for b, v in seen if b[0, channel] == sgd.arm_K[arm]]
        assert sgd.means.value_RCK[0, channel, arm] == pytest.approx(np.mean(values))


@given(seed=st.integers(0, 2**32 - 1), target=st.floats(0, 4), pace=st.booleans())
@settings(max_examples=15, deadline=None)
def test_telescoping_bounds_hold_on_every_path(seed: int, target: float, pace: bool) -> None:
    sgd = learner(2, 3, target=target, horizon=100)
    rng = np.random.default_rng(seed)
    limits = Limits.of_total(sgd.problem.total_R, 3)
    over_R, short_R, inside_lam, inside_mu = np.zeros(2), np.zeros(2), np.ones(2), np.ones(2)
    for _ in range(100):
        budget = sgd.paced(limits).budget_RC if pace else sgd.unpaced()
        value = rng.random((2, 3)) * budget * 3
        lam_R, mu_R = sgd.lam_R, sgd.mu_R
        sgd.observe(budget, value)
        over_R += budget.sum(1) - 1
        short_R += target * budget.sum(1) - value.sum(1)
        inside_lam *= np.isclose(sgd.lam_R, lam_R - 0.1 * (value.sum(1) - target * budget.sum(1)))
        inside_mu *= np.isclose(sgd.mu_R, mu_R - 0.1 * (1 - budget.sum(1)))
        assert np.all(sgd.lam_R >= 0)
        assert np.all(sgd.mu_R >= 0)
        if pace:
            assert np.all(budget.sum(1) <= 1 + 1e-12)
    assert np.all(over_R / 100 <= sgd.mu_R / (0.1 * 100) + 1e-9)
    assert np.all(short_R / 100 <= sgd.lam_R / (0.1 * 100) + 1e-9)
    # Equal where no price was ever projected.
    assert np.allclose((over_R / 10 - sgd.mu_R)[inside_mu > 0], 0)
    assert np.allclose((short_R / 10 - sgd.lam_R)[inside_lam > 0], 0)


def test_one_channel_without_target_spends_the_total() -> None:
    sgd = learner(channels=1)
    run(sgd, 1000, np.array([1.0]))
    assert sgd.lam_R[0] == 0
    assert sgd.mean_budgets()[0, 0] == pytest.approx(1.0, abs=0.12)


@pytest.mark.parametrize("smooth", [False, True])
def test_equal_channels_get_equal_budgets_and_a_poor_one_little(smooth: bool) -> None:
    sgd = learner(channels=3, smooth=smooth, arms=9)
    run(sgd, 500, np.array([1.0, 1.0, 0.02]), pace=True)
    first, second, poor = sgd.mean_budgets()[0]
    assert first == pytest.approx(second, abs=0.12)
    assert poor < 0.12


def restored_learner(chosen: dict[str, object]) -> SgdUcb:
    config = SgdUcbConfig.model_validate({"horizon": 1000, **chosen})
    return SgdUcb(config, Problem(np.ones(2), np.ones(2), np.ones((2, 3))), 3)


def test_restored_state_goes_on_bitwise() -> None:
    choices: tuple[dict[str, object], ...] = ({}, {"smooth": True, "window": 50}, {"horizon": None})
    for chosen in choices:
        whole = restored_learner(chosen)
        run(whole, 70, np.array([1.0, 0.7, 0.4]), pace=True)
        other = restored_learner(chosen)
        other.restore(whole.state())
        run(whole, 80, np.array([1.0, 0.7, 0.4]), seed=5, pace=True)
        run(other, 80, np.array([1.0, 0.7, 0.4]), seed=5, pace=True)
        for name, array in whole.state().items():
            assert np.array_equal(array, other.state()[name]), name
            assert array.dtype in (np.float64, np.int64)


def test_unknown_horizon_doubles_and_refines_the_arms() -> None:
    sgd = learner(horizon=None)
    before = sgd.arm_K
    run(sgd, 600, np.array([1.0, 0.5]), pace=True)
    assert sgd.horizon_R[0] == 1024
    assert len(sgd.arm_K) == 2 * len(before) - 1
    assert np.array_equal(sgd.arm_K[::2], before)


def test_window_beats_all_time_means_after_a_switch() -> None:
    reached: list[float] = []
    for window in (None, 60):
        sgd = learner(rows=4, channels=2, window=window, smooth=True, arms=6)
        run(sgd, 300, np.array([1.0, 0.1]), pace=True)
        before = sgd.budget_sum_RC
        run(sgd, 200, np.array([0.1, 1.0]), pace=True)
        reached.append(float((sgd.budget_sum_RC - before)[:, 1].mean()))
    assert reached[1] > reached[0] + 20


def test_feedback_that_comes_50_periods_late_still_teaches() -> None:
    sgd = learner(channels=2, target=1.0)
    limits = Limits.of_total(np.ones(1), 2)
    waiting: list[Floats] = []
    for period in range(1000):
        waiting.append(sgd.paced(limits).budget_RC)
        if period >= 50:
            budget = waiting[period - 50]
            sgd.observe(budget, np.array([2.0, 0.3]) * np.sqrt(budget))
    assert sgd.lam_R[0] < 5
    assert sgd.mean_budgets()[0, 0] > 0.65


def test_target_that_nothing_meets_runs_into_the_cap() -> None:
    sgd = learner(channels=2, target=5.0, dual_step=0.5)
    for _ in range(100):
        budget = sgd.unpaced()
        sgd.observe(budget, np.minimum(1.0, budget))
    assert sgd.lam_R[0] == sgd.config.max_roi_price or sgd.unpaced().sum() == 0


def test_channel_without_news_is_left_out() -> None:
    sgd = learner(channels=2, arms=3)
    sgd.observe(np.array([[0.5, 0.5]]), np.array([[1.0, np.nan]]))
    assert sgd.means.count_RCK.sum(2).tolist() == [[1.0, 0.0]]


def test_learned_spend_frees_money_that_a_channel_never_spends() -> None:
    sgd = learner(channels=1, target=1.0, arms=3, learn_spend=True)
    for _ in range(9):
        sgd.observe(sgd.unpaced(), np.array([[0.4]]), np.array([[0.2]]))
    sgd.lam_R[:] = 1.0
    ((_, index),) = sgd.indices(np.zeros(1))
    assert index.max() == pytest.approx(2 * sgd.optimistic().max() - sgd.means.spend_RCK[0, 0, 2])
