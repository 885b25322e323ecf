"""Metrics of a click model from labels and float32 logits: exact and vectorised.

N rows, G groups, P positives, M negatives. Everything takes NumPy arrays, memory-mapped ones too,
and works through them in chunks of `CHUNK` rows where it can. A value that is not defined is NaN;
whoever writes JSON writes null. `METRICS`, at the end, lists them; `docs/metrics.md` has the definitions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headwater.feature_store.schema import INT64_MIN
from headwater.pipelines.family import Metric

Floats = NDArray[np.float32] | NDArray[np.float64]
Labels = NDArray[np.uint8]

CHUNK = 1 << 20
"""Rows worked on at a time: a few float64 arrays of this length are all that streaming needs."""
ECE_BINS = 15


def sigmoid(logit_N: Floats) -> NDArray[np.float64]:
    """Return probabilities in float64, without overflow for any logit."""
    z = np.asarray(logit_N, dtype=np.float64)
    e = np.exp(-np.abs(z))
    return np.where(z >= 0, 1.0, e) / (1.0 + e)


def losses(label_N: Labels, logit_N: Floats) -> NDArray[np.float64]:
    """Return the log loss of each row, float64: `log(1 + exp(z)) - y z`, finite if the logit is."""
    z = np.asarray(logit_N, dtype=np.float64)
    return np.maximum(z, 0.0) - z * label_N + np.log1p(np.exp(-np.abs(z)))


@dataclass(slots=True)
class Totals:
    """Sums over rows from which logloss, normalised entropy and calibration follow."""

    rows: int = 0
    positives: int = 0
    loss: float = 0.0
    prob: float = 0.0
    bin_rows: NDArray[np.int64] = field(default_factory=lambda: np.zeros(ECE_BINS, np.int64))
    bin_positives: NDArray[np.int64] = field(default_factory=lambda: np.zeros(ECE_BINS, np.int64))
    bin_prob: NDArray[np.float64] = field(default_factory=lambda: np.zeros(ECE_BINS))

    def add(self, label_N: Labels, logit_N: Floats) -> None:
        """Add rows; labels 0 or 1."""
        prob_N = sigmoid(logit_N)
        self.rows += len(label_N)
        self.positives += int(np.count_nonzero(label_N))
        self.loss += float(losses(label_N, logit_N).sum())
        self.prob += float(prob_N.sum())
        # A probability on an edge belongs to the bin below, as in scikit-learn's calibration_curve.
        inner = np.linspace(0.0, 1.0, ECE_BINS + 1)[1:-1]
        bin_N = np.searchsorted(inner, prob_N)
        self.bin_rows += np.bincount(bin_N, minlength=ECE_BINS)
        self.bin_positives += np.bincount(bin_N[label_N != 0], minlength=ECE_BINS)
        self.bin_prob += np.bincount(bin_N, weights=prob_N, minlength=ECE_BINS)

    def merge(self, other: Totals) -> None:
        """Add the rows of another part."""
        self.rows += other.rows
        self.positives += other.positives
        self.loss += other.loss
        self.prob += other.prob
        self.bin_rows += other.bin_rows
        self.bin_positives += other.bin_positives
        self.bin_prob += other.bin_prob

    @property
    def base_rate(self) -> float:
        """Share of positives."""
        return self.positives / self.rows if self.rows else math.nan

    @property
    def mean_prob(self) -> float:
        """Mean predicted probability."""
        return self.prob / self.rows if self.rows else math.nan

    @property
    def logloss(self) -> float:
        """Mean log loss in nats."""
        return self.loss / self.rows if self.rows else math.nan

    @property
    def normalised_entropy(self) -> float:
        """Logloss over the entropy of the base rate (He et al., 2014); NaN with one class."""
        if not 0 < self.positives < self.rows:
            return math.nan
        rate = self.base_rate
        return self.logloss / -(rate * math.log(rate) + (1 - rate) * math.log1p(-rate))

    @property
    def expected_calibration_error(self) -> float:
        """Mean over rows of |mean probability - rate| of the row's bin (Guo et al., 2017)."""
        if not self.rows:
            return math.nan
        return float(np.abs(self.bin_prob - self.bin_positives).sum() / self.rows)

    @property
    def calibration(self) -> float:
        """Mean probability over base rate (He et al., 2014); NaN without positives."""
        return self.prob / self.positives if self.positives else math.nan


def totals(label_N: Labels, logit_N: Floats) -> Totals:
    """Return the sums over all rows, chunk by chunk."""
    result = Totals()
    for part in chunks(len(label_N)):
        result.add(label_N[part], logit_N[part])
    return result


def auc(label_N: Labels, score_N: Floats) -> float:
    """Return the exact area under the ROC curve, ties counting one half; NaN with one class.

    Memory: one float32 copy of the scores (4 bytes a row), sorted class by class, and a chunk.
    """
    positive_P, negative_M = _by_class(label_N, score_N)
    return _auc_of_sorted(positive_P, negative_M)


def _by_class(label_N: Labels, score_N: Floats) -> tuple[Floats, Floats]:
    """Return the scores of positives and of negatives, each sorted ascending."""
    is_positive_N = np.asarray(label_N, dtype=bool)
    positive_P, negative_M = score_N[is_positive_N], score_N[~is_positive_N]
    positive_P.sort()
    negative_M.sort()
    return positive_P, negative_M


def _auc_of_sorted(positive_P: Floats, negative_M: Floats) -> float:
    """Return the AUC; pairs are counted as integers, so only the last division rounds."""
    if not len(positive_P) or not len(negative_M):
        return math.nan
    twice = 0
    for part in chunks(len(positive_P)):
        below = np.searchsorted(negative_M, positive_P[part], side="left")
        up_to = np.searchsorted(negative_M, positive_P[part], side="right")
        twice += int(below.sum()) + int(up_to.sum())
    return twice / (2 * len(positive_P) * len(negative_M))


def roc_curve(
    label_N: Labels, score_N: Floats, points: int = 500
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return false and true positive rates at up to `points` thresholds, from (0, 0) to (1, 1).

    Points are exact; they are taken at even steps of the two rates. Empty arrays with one class.
    """
    positive_P, negative_M = _by_class(label_N, score_N)
    if not len(positive_P) or not len(negative_M):
        return np.empty(0), np.empty(0)
    half = (points - 2) // 2
    steps = [
        np.linspace(0, len(side) - 1, half).astype(np.int64) for side in (positive_P, negative_M)
    ]
    thresholds = np.union1d(positive_P[steps[0]], negative_M[steps[1]])[::-1]
    fpr = 1 - np.searchsorted(negative_M, thresholds, side="left") / len(negative_M)
    tpr = 1 - np.searchsorted(positive_P, thresholds, side="left") / len(positive_P)
    # The lowest threshold kept may lie above the smallest score, so the end is added.
    curve = np.unique(np.stack([np.r_[0.0, fpr, 1.0], np.r_[0.0, tpr, 1.0]], axis=1), axis=0)
    return curve[:, 0], curve[:, 1]


@dataclass(frozen=True, slots=True)
class Groups:
    """Counts and AUC of each group, ascending by `group_G`; NaN for a group of one class."""

    group_G: NDArray[np.int64]
    rows_G: NDArray[np.int64]
    positives_G: NDArray[np.int64]
    auc_G: NDArray[np.float64]
    rows_missing: int
    """Rows without a group, which are in none of the counts."""

    @property
    def used(self) -> int:
        """Groups with both classes."""
        return int(np.isfinite(self.auc_G).sum())

    @property
    def skipped(self) -> int:
        """Groups of one class."""
        return len(self.auc_G) - self.used

    @property
    def rows_used(self) -> int:
        """Rows of groups with both classes."""
        return int(self.rows_G[np.isfinite(self.auc_G)].sum())

    @property
    def weighted_auc(self) -> float:
        """AUC over groups with both classes, weighted by their rows; NaN where there is none."""
        has_both = np.isfinite(self.auc_G)
        if not has_both.any():
            return math.nan
        return float(np.average(self.auc_G[has_both], weights=self.rows_G[has_both]))


def group_auc(
    label_N: Labels, score_N: NDArray[np.float32], group_N: NDArray[np.integer]
) -> Groups:
    """Return counts and exact AUC per group; rows of group INT64_MIN have none and are left out.

    Of the ranks in a group, the positives' own pairs taken away: sums of halves, exact in float64 up to
    2^26 rows a group. Memory: about 50 bytes a row.
    """
    columns = {"group": group_N, "score": score_N, "label": label_N}
    rows = pl.LazyFrame(columns, schema_overrides={"group": pl.Int64, "label": pl.Boolean})
    # Added, so that -0.0 ties with 0.0.
    rank = (pl.col("score") + 0.0).rank("average")
    groups = (
        rows.filter(pl.col("group") != INT64_MIN)
        .group_by("group")
        .agg(
            pl.len().cast(pl.Int64).alias("rows"),
            pl.col("label").sum().cast(pl.Int64).alias("positives"),
            rank.filter(pl.col("label")).sum().alias("ranks"),
        )
        .sort("group")
        .collect()
    )
    group_G, rows_G, positives_G, ranks_G = (each.to_numpy() for each in groups.get_columns())
    with np.errstate(invalid="ignore"):
        auc_G = (ranks_G - positives_G * (positives_G + 1) / 2) / (
            positives_G * (rows_G - positives_G)
        )
    return Groups(group_G, rows_G, positives_G, auc_G, len(group_N) - int(rows_G.sum()))


def chunks(rows: int) -> Iterator[slice]:
    """Yield slices of `CHUNK` rows that cover `rows`."""
    for start in range(0, rows, CHUNK):
        yield slice(start, min(start + CHUNK, rows))


@dataclass(frozen=True, slots=True)
class Measured:
    """Rows of a split, and what several metrics take from them, computed once."""

    label_N: Labels
    logit_N: NDArray[np.float32]
    totals: Totals
    groups: Groups | None
    """None where the job names no group."""

    @classmethod
    def of(
        cls, label_N: Labels, logit_N: NDArray[np.float32], group_N: NDArray[np.int64] | None
    ) -> Self:
        """Return rows with the sums and groups that metrics take from them."""
        groups = None if group_N is None else group_auc(label_N, logit_N, group_N)
        return cls(label_N, logit_N, totals(label_N, logit_N), groups)

    @property
    def values(self) -> dict[str, float]:
        """Metrics by name; NaN where one is not defined, absent where the job asks for none."""
        found = {name: metric.of(self) for name, metric in METRICS.items()}
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClickMetric(Metric):
    """A metric of click models."""

    of: Callable[[Measured], float | None]
    """Its value; NaN where it is not defined, None where the job does not ask for it."""


METRICS: Mapping[str, ClickMetric] = {
    "auc": ClickMetric(
        label="AUC",
        meaning="a positive is scored above a negative; 0.5 is chance",
        of=lambda rows: auc(rows.label_N, rows.logit_N),
    ),
    "gauc": ClickMetric(
        label="grouped AUC",
        meaning="the same within each group, by its rows",
        undefined="no group has rows of both classes, so grouped AUC is not defined. "
        "Set train.monitor = 'auc', or group by another column in features.group.",
        of=lambda rows: None if rows.groups is None else rows.groups.weighted_auc,
    ),
    "logloss": ClickMetric(
        label="logloss",
        meaning="surprise at the labels, in nats; lower is better",
        best="low",
        of=lambda rows: rows.totals.logloss,
    ),
    "ne": ClickMetric(
        label="normalised entropy",
        meaning="logloss over that of a constant; below 1 beats it",
        best="low",
        of=lambda rows: rows.totals.normalised_entropy,
    ),
    "ece": ClickMetric(
        label="ECE",
        meaning="mean distance of probability and rate over 15 bins",
        best="low",
        of=lambda rows: rows.totals.expected_calibration_error,
    ),
    "calibration": ClickMetric(
        label="calibration",
        meaning="mean probability over positive rate; 1 is right",
        best=1.0,
        of=lambda rows: rows.totals.calibration,
    ),
}
"""By name, in the order of tables."""
