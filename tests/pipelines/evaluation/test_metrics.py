"""Metrics equal scikit-learn's on the same predictions, ties and saturated scores included."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve

from headwater.pipelines.evaluation import bootstrap, metrics
from headwater.pipelines.evaluation.bootstrap import intervals
from headwater.pipelines.evaluation.metrics import (
    Totals,
    auc,
    group_auc,
    roc_curve,
    sigmoid,
    totals,
)

Rows = tuple[NDArray[np.uint8], NDArray[np.float32]]

few_scores = st.sampled_from([-30.0, -1.5, -0.0, 0.0, 0.25, 0.5, 17.0])
any_score = st.floats(-40, 40, width=32)


@st.composite
def rows(draw: st.DrawFn, *, both: bool = True) -> Rows:
    """Labels and float32 logits, often tied; with both classes unless told otherwise."""
    size = draw(st.integers(2, 60))
    label = draw(arrays.arrays(np.uint8, size, elements=st.integers(0, 1)))
    score = draw(
        arrays.arrays(np.float32, size, elements=draw(st.sampled_from([few_scores, any_score])))
    )
    if both:
        label[0], label[1] = 0, 1
    return label, score


@given(rows())
def test_auc_is_scikit_learns(data: Rows) -> None:
    label, score = data
    assert auc(label, score) == pytest.approx(roc_auc_score(label, score), abs=1e-12)


@given(rows())
def test_logloss_is_scikit_learns_on_the_same_probabilities(data: Rows) -> None:
    label, score = data
    # scikit-learn takes log(1 - p) of a rounded p, which costs digits as p nears 1.
    score = np.clip(score, -12, 12)
    expected = log_loss(label, sigmoid(score))
    assert totals(label, score).logloss == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(rows())
def test_calibration_error_is_that_of_scikit_learns_bins(data: Rows) -> None:
    label, score = data
    prob = sigmoid(score)
    rate, mean = calibration_curve(label, prob, n_bins=metrics.ECE_BINS)
    edges = np.linspace(0, 1, metrics.ECE_BINS + 1)[1:-1]
    share = np.bincount(np.searchsorted(edges, prob)) / len(prob)
    expected = float(np.abs(rate - mean) @ share[share > 0])
    assert totals(label, score).expected_calibration_error == pytest.approx(expected, abs=1e-12)


@given(rows(), st.integers(1, 7))
def test_grouped_auc_is_scikit_learns_in_each_group(data: Rows, num_groups: int) -> None:
    label, score = data
    group = (np.arange(len(label)) * 7919) % num_groups - 3
    found = group_auc(label, score, group)
    assert found.rows_G.sum() == len(label)
    expected, weight = [], []
    for i, key in enumerate(found.group_G):
        members = group == key
        assert found.rows_G[i] == members.sum()
        assert found.positives_G[i] == label[members].sum()
        if len(set(label[members])) == 2:
            expected.append(roc_auc_score(label[members], score[members]))
            weight.append(members.sum())
            assert found.auc_G[i] == pytest.approx(expected[-1], abs=1e-12)
        else:
            assert np.isnan(found.auc_G[i])
    assert found.used == len(expected)
    assert found.used + found.skipped == len(set(group))
    assert found.rows_used == sum(weight)
    if expected:
        assert found.weighted_auc == pytest.approx(np.average(expected, weights=weight), abs=1e-12)
    else:
        assert np.isnan(found.weighted_auc)


@given(rows(both=False), st.integers(0, 60))
def test_merged_totals_are_totals_of_all_rows(data: Rows, cut: int) -> None:
    label, score = data
    left, right, whole = Totals(), Totals(), totals(label, score)
    left.add(label[:cut], score[:cut])
    right.add(label[cut:], score[cut:])
    left.merge(right)
    assert left.rows == whole.rows
    assert left.loss == pytest.approx(whole.loss)
    assert left.expected_calibration_error == pytest.approx(whole.expected_calibration_error)
    np.testing.assert_array_equal(left.bin_rows, whole.bin_rows)


def test_metrics_do_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    label, score = _planted(1000)
    whole = auc(label, score), totals(label, score).logloss
    monkeypatch.setattr(metrics, "CHUNK", 37)
    assert auc(label, score) == whole[0]
    assert totals(label, score).logloss == pytest.approx(whole[1], rel=1e-14)


def test_hand_made_values() -> None:
    label = np.array([0, 0, 1, 1], np.uint8)
    assert auc(label, np.array([0.1, 0.4, 0.35, 0.8], np.float32)) == 0.75
    even = np.zeros(4, np.float32)
    assert auc(label, even) == 0.5
    found = totals(label, even)
    assert found.logloss == pytest.approx(np.log(2))
    assert found.normalised_entropy == pytest.approx(1.0)
    assert found.expected_calibration_error == 0.0
    assert found.calibration == pytest.approx(1.0)


def test_one_class_and_no_rows_are_not_defined() -> None:
    ones = np.ones(3, np.uint8)
    score = np.arange(3, dtype=np.float32)
    assert np.isnan(auc(ones, score))
    assert np.isnan(totals(ones, score).normalised_entropy)
    assert np.isnan(totals(1 - ones, score).calibration)
    assert len(roc_curve(ones, score)[0]) == 0
    nothing = np.empty(0, np.uint8), np.empty(0, np.float32)
    assert np.isnan(totals(*nothing).logloss)
    assert np.isnan(group_auc(*nothing, np.empty(0, np.int64)).weighted_auc)
    assert np.isnan(intervals(*nothing).logloss[0])


def test_saturated_logits_have_a_finite_loss() -> None:
    label = np.array([0, 1], np.uint8)
    assert totals(label, np.array([200.0, -200.0], np.float32)).logloss == 200.0


@given(rows())
def test_roc_points_lie_on_scikit_learns_curve(data: Rows) -> None:
    label, score = data
    fpr, tpr = roc_curve(label, score)
    expected_fpr, expected_tpr, _ = sklearn_roc_curve(label, score, drop_intermediate=False)
    known = set(zip(expected_fpr.round(9), expected_tpr.round(9), strict=True))
    assert set(zip(fpr.round(9), tpr.round(9), strict=True)) <= known
    assert np.trapezoid(tpr, fpr) == pytest.approx(auc(label, score), abs=1e-9)


def test_roc_of_many_rows_has_few_points_and_the_same_area() -> None:
    label, score = _planted(20_000)
    fpr, tpr = roc_curve(label, score, points=500)
    assert len(fpr) <= 500
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(tpr, fpr) == pytest.approx(auc(label, score), abs=1e-4)


def test_intervals_are_those_of_resampled_rows() -> None:
    label, score = _planted(400)
    rng = np.random.default_rng(1)
    aucs, loglosses = [], []
    for _ in range(1000):
        drawn = rng.integers(len(label), size=len(label))
        aucs.append(auc(label[drawn], score[drawn]))
        loglosses.append(totals(label[drawn], score[drawn]).logloss)
    found = intervals(label, score, resamples=1000)
    # Two estimates of a percentile from 1000 resamples differ by about a tenth of a standard error.
    assert found.auc == pytest.approx(
        np.quantile(aucs, [0.025, 0.975]), abs=0.3 * float(np.std(aucs))
    )
    expected = np.quantile(loglosses, [0.025, 0.975])
    assert found.logloss == pytest.approx(expected, abs=0.3 * float(np.std(loglosses)))


def test_intervals_repeat_with_their_seed_and_bins_hardly_move_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    label, score = _planted(5000)
    exact = intervals(label, score, seed=3)
    assert intervals(label, score, seed=3) == exact
    assert intervals(label, score, seed=4) != exact
    monkeypatch.setattr(bootstrap, "MAX_BINS", 1000)
    binned = intervals(label, score, seed=3)
    assert binned.auc == pytest.approx(exact.auc, abs=5e-3)
    assert binned.logloss == pytest.approx(exact.logloss, abs=5e-3)


def _planted(size: int) -> Rows:
    """Rows whose logits are calibrated but for noise."""
    rng = np.random.default_rng(0)
    score = rng.normal(-1, 1.5, size).astype(np.float32)
    label = (rng.random(size) < sigmoid(score)).astype(np.uint8)
    return label, score
