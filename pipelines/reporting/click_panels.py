"""Sections of the report of a click model: learning, scores, importance, gates and slices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from headwater.pipelines.evaluation.records import ClickEvaluation, Slice
from headwater.pipelines.family import Panel
from headwater.pipelines.reporting import plots
from headwater.pipelines.reporting.report import last_split

_SLICE_ROWS = 24


def click_panels(evaluation: ClickEvaluation) -> Iterable[Panel]:
    """Yield the sections that an evaluation has something for."""
    splits, training = evaluation.splits, evaluation.training
    last = last_split(evaluation)
    learning = plots.learning_curves(
        evaluation.history,
        training.best_epoch,
        title="AUC on validation rows",
        metrics={"auc": "AUC", "gauc": "grouped AUC"},
        rates={"lr_sparse": "embedding tables", "lr_dense": "other weights"},
    )
    yield Panel(
        "learning",
        "Learning",
        "learning.html.j2",
        {"plot": learning, "unfinished": training.remedy},
    )
    pictures = (
        ("ROC curves", plots.roc(splits)),
        ("Calibration", plots.calibration(splits)),
        ("Histogram of scores", plots.histogram(last, splits[last])),
    )
    groups = {name: split.groups for name, split in splits.items() if split.groups}
    scores = {"splits": splits, "groups": groups, "pictures": pictures}
    yield Panel("scores", "Scores", "scores.html.j2", scores)
    if sample := evaluation.importance:
        columns = sorted(sample.columns, key=lambda row: -row.auc_drop)
        top = max(abs(row.auc_drop) for row in columns)
        shown = {"sample": sample, "columns": columns, "top": top}
        yield Panel("importance", "Importance of columns", "importance.html.j2", shown)
    if evaluation.gates:
        top = max(abs(row.mean - 1) for row in evaluation.gates)
        shown = {"gates": _by(evaluation.gates, "gate"), "top": top}
        yield Panel("gates", "Gates", "gates.html.j2", shown)
    if slices := _slices(splits[last].slices):
        yield Panel(
            "slices", f"Slices of {last} rows", "slices.html.j2", {"split": last, "slices": slices}
        )


def _slices(slices: Sequence[Slice]) -> list[tuple[str, list[Any], int]]:
    """Return each column's largest slices in the order of codes, and how many are left out."""
    result: list[tuple[str, list[Any], int]] = []
    for column, rows in _by(slices, "column"):
        kept = sorted(rows, key=lambda row: -row.rows)[:_SLICE_ROWS]
        kept.sort(key=lambda row: row.code)
        result.append((column, kept, len(rows) - len(kept)))
    return result


def _by(rows: Sequence[Any], key: str) -> list[tuple[str, list[Any]]]:
    groups: dict[str, list[Any]] = {}
    for row in rows:
        groups.setdefault(getattr(row, key), []).append(row)
    return list(groups.items())
