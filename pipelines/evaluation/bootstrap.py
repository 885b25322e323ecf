"""95 % intervals by the bootstrap: of AUC and log loss over rows, of means over users.

For AUC and log loss scores are sorted once and drawn as counts. Rows of equal score and equal label are
exchangeable, so a resample is not N row numbers but how often each distinct (score, label) pair occurs: a
multinomial draw. Cost is per distinct pair, not per row, and the draw is exact up to `MAX_BINS` distinct
scores; beyond, scores are first put into bins of equal count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headwater.pipelines.evaluation.metrics import Floats, Labels, chunks, losses

RESAMPLES = 200
MAX_BINS = 1 << 16


@dataclass(frozen=True, slots=True)
class Intervals:
    """(low, high) of each metric; NaN where no resample had both classes."""

    auc: tuple[float, float]
    logloss: tuple[float, float]


def intervals(
    label_N: Labels,
    logit_N: Floats,
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> Intervals:
    """Return percentile intervals of AUC and log loss over seeded resamples of the rows.

    Memory: two sorted copies of the scores (8 bytes a row) and a few arrays of 2 `MAX_BINS`.
    A resample of one class has no AUC and is left out of the AUC's interval.
    """
    rows = len(label_N)
    if not rows:
        return Intervals((np.nan, np.nan), (np.nan, np.nan))
    count_2S, loss_2S = _pairs(label_N, logit_N)
    num_bins = len(count_2S) // 2
    rng = np.random.default_rng(seed)
    aucs, loglosses = np.full(resamples, np.nan), np.empty(resamples)
    share_2S = count_2S / rows
    for i in range(resamples):
        drawn_2S = rng.multinomial(rows, share_2S)
        negative_S, positive_S = drawn_2S[:num_bins], drawn_2S[num_bins:]
        below_S = np.cumsum(negative_S) - negative_S
        pairs = int(positive_S.sum()) * int(negative_S.sum())
        if pairs:
            aucs[i] = int((positive_S * (2 * below_S + negative_S)).sum()) / (2 * pairs)
        loglosses[i] = float(drawn_2S @ loss_2S) / rows
    tails = [(1 - level) / 2, (1 + level) / 2]
    return Intervals(_percentiles(aucs, tails), _percentiles(loglosses, tails))


def mean_intervals(
    values: Mapping[str, NDArray[np.float64]],
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float] | None]:
    """Return percentile intervals of the mean of each (Q,) values over seeded resamples of the Q places.

    All are resampled together. NaN takes no part in a mean; None where every value is NaN, or there is none.
    """
    value_QV = np.stack(list(values.values()), axis=1)
    places, defined_QV = len(value_QV), np.isfinite(value_QV)
    both_QV = np.concatenate([np.where(defined_QV, value_QV, 0), defined_QV], axis=1)
    rng = np.random.default_rng(seed)
    drawn_RV = np.zeros((resamples, both_QV.shape[1]))
    for i in range(resamples if places else 0):
        drawn_Q = np.bincount(rng.integers(0, places, places), minlength=places)
        drawn_RV[i] = drawn_Q @ both_QV
    sum_RV, count_RV = np.split(drawn_RV, 2, axis=1)
    with np.errstate(invalid="ignore"):
        mean_RV = sum_RV / count_RV
    tails = [(1 - level) / 2, (1 + level) / 2]
    return {
        name: _percentiles(mean_RV[:, i], tails) if defined_QV[:, i].any() else None
        for i, name in enumerate(values)
    }


def _pairs(label_N: Labels, logit_N: Floats) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return count and mean loss of each (bin, label) pair: S bins of negatives, S of positives."""
    lower_S = np.unique(logit_N)
    if len(lower_S) > MAX_BINS:
        ordered_N = np.sort(logit_N)
        lower_S = np.unique(
            ordered_N[np.linspace(0, len(ordered_N) - 1, MAX_BINS).astype(np.int64)]
        )
    num_bins = len(lower_S)
    count_2S = np.zeros(2 * num_bins, np.int64)
    loss_2S = np.zeros(2 * num_bins)
    for part in chunks(len(label_N)):
        bin_B = np.searchsorted(lower_S, logit_N[part], side="right") - 1
        pair_B = bin_B + num_bins * label_N[part].astype(np.int64)
        count_2S += np.bincount(pair_B, minlength=2 * num_bins)
        loss_2S += np.bincount(
            pair_B, weights=losses(label_N[part], logit_N[part]), minlength=2 * num_bins
        )
    return count_2S, loss_2S / np.maximum(count_2S, 1)


def _percentiles(values: NDArray[np.float64], tails: list[float]) -> tuple[float, float]:
    defined = values[np.isfinite(values)]
    if not len(defined):
        return np.nan, np.nan
    low, high = np.quantile(defined, tails)
    return float(low), float(high)
