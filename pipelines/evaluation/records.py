"""Records of an evaluation, as `evaluation.json` holds them; `docs/metrics.md` describes the file."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from headwater.pipelines.runs.records import Epoch, TrainingRecord, Values

FORMAT_VERSION = 2


class SplitEvaluation(msgspec.Struct, frozen=True, kw_only=True):
    """Measures of one split."""

    rows: int
    metrics: Values
    intervals: dict[str, tuple[float, float] | None] = {}
    """Low and high end of the metrics that have an interval."""


class DataSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of each split, and from when to when training goes."""

    rows: dict[str, int]
    time_range_ms: tuple[int, int] | None


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """Shares of missing and of unknown rows of a column in a split."""

    column: str
    split: str
    missing: float
    unknown: float | None
    """None for a dense column."""


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """`evaluation.json`: the fields that all families share."""

    format_version: int = FORMAT_VERSION
    family: str
    name: str
    """Name of the job."""
    model: str
    """Type of the model."""
    headwater_version: str
    training: TrainingRecord
    data: DataSummary
    history: list[Epoch]
    splits: Mapping[str, SplitEvaluation]
    rates: list[Rates]


class GroupCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Groups behind grouped AUC."""

    used: int
    skipped: int
    rows_used: int
    rows_missing: int


class Roc(msgspec.Struct, frozen=True, kw_only=True):
    """Points of the ROC curve; none with one class."""

    fpr: list[float]
    tpr: list[float]


class CalibrationBin(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of neighbouring scores."""

    mean_prob: float
    rate: float
    rows: int


class Histogram(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of rows by class in equal bins of the probability."""

    edges: list[float]
    negative: list[int]
    positive: list[int]


class Slice(msgspec.Struct, frozen=True, kw_only=True):
    """Rows with one value of a column."""

    column: str
    value: str
    code: int
    rows: int
    positives: int
    auc: float | None
    logloss: float
    mean_prob: float
    rate: float


class ClickSplit(SplitEvaluation, frozen=True, kw_only=True):
    """Measures of a click model on one split."""

    positives: int
    base_rate: float | None
    mean_prob: float | None
    groups: GroupCounts | None
    roc: Roc
    calibration_bins: list[CalibrationBin]
    histogram: Histogram
    slices: list[Slice]


class ColumnImportance(msgspec.Struct, frozen=True, kw_only=True):
    """AUC that is lost when a column is shuffled among the rows."""

    column: str
    auc_drop: float


class Importance(msgspec.Struct, frozen=True, kw_only=True):
    """Permutation importance on a sample."""

    split: str
    rows: int
    auc: float
    columns: list[ColumnImportance]


class Gate(msgspec.Struct, frozen=True, kw_only=True):
    """Values that a gate gives one feature."""

    gate: str
    column: str
    mean: float
    std: float


class ClickEvaluation(Evaluation, frozen=True, kw_only=True):
    """`evaluation.json` of a click model."""

    splits: Mapping[str, ClickSplit]
    importance: Importance | None
    """None where the sample has one class only."""
    gates: list[Gate]
    """Empty where the model has none."""
