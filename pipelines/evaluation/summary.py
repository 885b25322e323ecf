"""Summary of the scores of one split: curves, bins, intervals and slices, as the report draws them.

`docs/metrics.md` has the layout.
"""

from __future__ import annotations

import numpy as np

from headwater.feature_store import schema as fs
from headwater.pipelines.evaluation import metrics
from headwater.pipelines.evaluation.bootstrap import intervals
from headwater.pipelines.evaluation.metrics import chunks, losses, sigmoid
from headwater.pipelines.evaluation.records import (
    CalibrationBin,
    ClickSplit,
    GroupCounts,
    Histogram,
    Roc,
    Slice,
)
from headwater.pipelines.evaluation.scores import Scores

CALIBRATION_BINS = 20
HISTOGRAM_BINS = 50
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def summarise(scores: Scores, columns: list[fs.EncodedColumn], *, seed: int = 0) -> ClickSplit:
    """Return everything the report shows of a split; `columns` are those of `slices_NS`."""
    rows = scores.measured()
    sums, groups = rows.totals, rows.groups
    bounds = intervals(scores.label_N, scores.logit_N, seed=seed)
    fpr, tpr = metrics.roc_curve(scores.label_N, scores.logit_N)
    return ClickSplit(
        rows=sums.rows,
        positives=sums.positives,
        base_rate=sums.base_rate,
        mean_prob=sums.mean_prob,
        metrics={**rows.values},
        groups=None
        if groups is None
        else GroupCounts(
            used=groups.used,
            skipped=groups.skipped,
            rows_used=groups.rows_used,
            rows_missing=groups.rows_missing,
        ),
        intervals={
            name: None if np.isnan(pair[0]) else pair
            for name, pair in (("auc", bounds.auc), ("logloss", bounds.logloss))
        },
        roc=Roc(fpr=fpr.tolist(), tpr=tpr.tolist()),
        calibration_bins=_calibration_bins(scores),
        histogram=_histogram(scores),
        slices=[row for i, column in enumerate(columns) for row in _slices(scores, i, column)],
    )


def _calibration_bins(scores: Scores) -> list[CalibrationBin]:
    """Return bins of equal count by score; equal scores share a bin, so tied bins are larger."""
    if not len(scores.logit_N):
        return []
    ordered = np.sort(scores.logit_N)
    starts = np.arange(1, CALIBRATION_BINS) * len(ordered) // CALIBRATION_BINS
    edges = np.unique(ordered[starts])
    rows, positives = np.zeros(len(edges) + 1, np.int64), np.zeros(len(edges) + 1, np.int64)
    prob = np.zeros(len(edges) + 1)
    for part in chunks(len(ordered)):
        label, logit = scores.label_N[part], scores.logit_N[part]
        index = np.searchsorted(edges, logit, side="right")
        rows += np.bincount(index, minlength=len(rows))
        positives += np.bincount(index[label != 0], minlength=len(rows))
        prob += np.bincount(index, weights=sigmoid(logit), minlength=len(rows))
    return [
        CalibrationBin(
            mean_prob=float(prob[i] / rows[i]),
            rate=float(positives[i] / rows[i]),
            rows=int(rows[i]),
        )
        for i in np.flatnonzero(rows)
    ]


def _histogram(scores: Scores) -> Histogram:
    """Return counts per class in equal bins of the probability."""
    counts = np.zeros((2, HISTOGRAM_BINS), np.int64)
    for part in chunks(len(scores.logit_N)):
        index = (sigmoid(scores.logit_N[part]) * HISTOGRAM_BINS).astype(np.int64)
        index = np.minimum(index, HISTOGRAM_BINS - 1)
        for label in (0, 1):
            chosen = index[scores.label_N[part] == label]
            counts[label] += np.bincount(chosen, minlength=HISTOGRAM_BINS)
    edges = np.linspace(0, 1, HISTOGRAM_BINS + 1)
    return Histogram(edges=edges.tolist(), negative=counts[0].tolist(), positive=counts[1].tolist())


def _slices(scores: Scores, index: int, column: fs.EncodedColumn) -> list[Slice]:
    """Return the metrics of each value of a slice column that occurs."""
    code_N = np.asarray(scores.slices_NS[:, index])
    groups = metrics.group_auc(scores.label_N, scores.logit_N, code_N)
    loss, prob = np.zeros(256), np.zeros(256)
    for part in chunks(len(code_N)):
        label, logit = scores.label_N[part], scores.logit_N[part]
        loss += np.bincount(code_N[part], weights=losses(label, logit), minlength=256)
        prob += np.bincount(code_N[part], weights=sigmoid(logit), minlength=256)
    return [
        Slice(
            column=column.name,
            value=name_code(column, int(code)),
            code=int(code),
            rows=int(rows),
            positives=int(positives),
            auc=float(auc),
            logloss=float(loss[code] / rows),
            mean_prob=float(prob[code] / rows),
            rate=float(positives / rows),
        )
        for code, rows, positives, auc in zip(
            groups.group_G, groups.rows_G, groups.positives_G, groups.auc_G, strict=True
        )
    ]


def name_code(column: fs.EncodedColumn, code: int) -> str:
    """Return what a code means to a reader: the value, the interval, or the code where it has no name."""
    if code == fs.MISSING_CODE:
        return "(missing)"
    if code == fs.UNKNOWN_CODE:
        return "(unknown)"
    position = code - fs.FIRST_CODE
    coding = [step for step in column.steps if not isinstance(step, fs.Missing | fs.Pad)]
    match coding:
        case [fs.Lookup(keys=keys, codes=None)]:
            return str(keys[position])
        case [fs.Edges(values=edges)]:
            if position == 0:
                return f"below {edges[0]:g}" if edges else "any"
            if position == len(edges):
                return f"from {edges[-1]:g}"
            return f"{edges[position - 1]:g} to {edges[position]:g}"
        case [fs.Calendar(part=part)]:
            return _name_time(part, position)
        case _:
            return f"code {code}"


def _name_time(part: str, position: int) -> str:
    if part == "hour":
        return f"{position:02d}:00"
    if part == "weekday":
        return WEEKDAYS[position]
    if part == "weekend":
        return ("weekday", "weekend")[position]
    return f"{WEEKDAYS[position // 24][:3]} {position % 24:02d}:00"
