"""The report of a run: one self-contained HTML page from its `evaluation.json` and `job.toml`.

`docs/metrics.md` describes `evaluation.json`; this module only arranges what is in it.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from headwater.feature_store.errors import RunError
from headwater.pipelines.prepared import time_text
from headwater.pipelines.reporting import plots
from headwater.pipelines.reporting.page import count, duration, megabytes, number, render
from headwater.pipelines.runs.run import Run, run_folder
from headwater.pipelines.training.plateau import unfinished

EVALUATION_NAME = "evaluation.json"
REPORT_NAME = "report.html"
FORMAT_VERSION = 1

METRICS = {
    "auc": "a positive is scored above a negative; 0.5 is chance",
    "gauc": "the same within each group, by its rows",
    "logloss": "surprise at the labels, in nats; lower is better",
    "ne": "logloss over that of a constant; below 1 beats it",
    "ece": "mean distance of probability and rate over 15 bins",
    "calibration": "mean probability over positive rate; 1 is right",
}
"""Metric to what it says, in the order of the tables."""

_SLICE_ROWS = 24


def write_report(run_dir: Run | Path | str) -> Path:
    """Write `report.html` into a run that was evaluated, and return its path.

    Raises RunError where the run has no readable `evaluation.json` or `job.toml`.
    """
    run_dir = run_folder(run_dir, "write_report: run_dir")
    evaluation, job = read_evaluation(run_dir)
    splits = evaluation["splits"]
    last = "test" if "test" in splits else "valid"
    gates = _by(evaluation["gates"], "gate")
    importance = _importance(evaluation["importance"])
    rate_splits, rates = _rates(evaluation["rates"])
    context: dict[str, Any] = {
        "evaluation": evaluation,
        "run": run_dir.resolve().name,
        "splits": splits,
        "tiles": _tiles(evaluation, last),
        "facts": _facts(evaluation, tomllib.loads(job)),
        "metrics": list(_metric_rows(splits)),
        "importance": importance,
        "importance_top": max((abs(row["auc_drop"]) for row in importance), default=0.0),
        "gates": gates,
        "gates_top": max((abs(row["mean"] - 1) for row in evaluation["gates"]), default=0.0),
        "rate_splits": rate_splits,
        "rates": rates,
        "slice_split": last,
        "slices": _slices(splits[last]["slices"]),
        "job": job,
        "unfinished": unfinished(evaluation["training"]),
        "plots": {
            "learning": plots.learning_curves(
                evaluation["history"], evaluation["training"]["best_epoch"]
            ),
            "roc": plots.roc(splits),
            "calibration": plots.calibration(splits),
            "histogram": plots.histogram(last, splits[last]),
        },
    }
    context["sections"] = list(_sections(context))
    return render("report.html.j2", run_dir / REPORT_NAME, context)


def read_evaluation(run_dir: Path) -> tuple[dict[str, Any], str]:
    """Return a run's evaluation and its resolved job as TOML text."""
    if not run_dir.is_dir():
        raise RunError(f"{run_dir}: no such run folder.")
    path = run_dir / EVALUATION_NAME
    try:
        evaluation = json.loads(path.read_bytes())
        job = (run_dir / "job.toml").read_text(encoding="utf-8")
        tomllib.loads(job)
    except FileNotFoundError as error:
        raise RunError(
            f"{error.filename}: no such file. A report needs a run that was evaluated: "
            f"`headwater evaluate --run {run_dir}`."
        ) from None
    except (ValueError, UnicodeDecodeError) as error:
        raise RunError(
            f"{run_dir}: evaluation.json or job.toml is damaged: {error}. "
            f"Write it again by `headwater evaluate --run {run_dir}`."
        ) from error
    if not isinstance(evaluation, dict) or evaluation.get("format_version") != FORMAT_VERSION:
        raise RunError(
            f"{path}: not an evaluation of format {FORMAT_VERSION}. "
            f"Write it again by `headwater evaluate --run {run_dir}`."
        )
    return evaluation, job


def _sections(context: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Yield anchor and title of each section that the page will have."""
    titles = {
        "trained": "Training",
        "metrics": "Metrics",
        "learning": "Learning",
        "scores": "Scores",
        "importance": "Importance",
        "gates": "Gates",
        "rates": "Missing and unknown",
        "slices": "Slices",
        "job": "Job",
    }
    optional = ("importance", "gates", "rates", "slices")
    yield from (item for item in titles.items() if item[0] not in optional or context[item[0]])


def _tiles(evaluation: Mapping[str, Any], last: str) -> list[tuple[str, str]]:
    split, training = evaluation["splits"][last], evaluation["training"]
    return [
        (number(split["metrics"]["auc"]), f"AUC, {last} rows"),
        (number(split["metrics"]["logloss"]), f"logloss, {last} rows"),
        (count(training["parameters"]), "parameters"),
        (count(training["rows_per_second"]), "training rows a second"),
        (megabytes(training["peak_rss_mb"]), "peak memory"),
        (duration(training["seconds"]), "training time"),
    ]


def _facts(evaluation: Mapping[str, Any], job: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what was trained, as label and text."""
    training, data = evaluation["training"], job["data"]
    source = "source" if "source" in data else "train"
    features = [column["name"] for column in job["features"]["columns"]]
    rows = (f"{count(rows)} {name}" for name, rows in evaluation["data"]["rows"].items())
    times = evaluation["data"]["time_range_ms"]
    stopped = {
        "plateau": "no further improvement",
        "epochs": "all epochs done",
    }.get(training["stopped"], training["stopped"])
    if training.get("still_improving"):
        stopped = f"{stopped}, still improving"
    epochs = (
        f"{training['epochs']} ({count(training['steps'])} steps), best {training['best_epoch']} "
        f"by {training['monitor']} {number(training['best'])}; stopped: {stopped}"
    )
    processes = (
        "1 process" if training["world_size"] == 1 else f"{training['world_size']} processes"
    )
    machine = f"{training['device']}, {training['precision']}, {processes}, seed {training['seed']}"
    facts = [
        ("data", ", ".join(_list(data[source]))),
        ("split", _split_text(data.get("split"))),
        ("rows", ", ".join(rows)),
        ("training rows from", "no time column" if times is None else _period(times)),
        ("label", job["features"]["label"]),
        (f"{len(features)} features", ", ".join(features)),
        ("model", f"{evaluation['model']}, {count(training['parameters'])} parameters"),
        ("epochs", epochs),
        ("machine", machine),
    ]
    if training["peak_cuda_mb"]:
        facts.append(("peak GPU memory", megabytes(training["peak_cuda_mb"])))
    return facts


def _period(times: Sequence[int]) -> str:
    first, last = map(time_text, times)
    return f"{first} to {last} UTC"


def _split_text(split: Mapping[str, Any] | None) -> str:
    if split is None:
        return "files of their own"
    told = ((key, value) for key, value in split.items() if key != "by" and key != value)
    settings = "; ".join(f"{key} {_values_text(value)}" for key, value in told)
    return f"by {split['by']} ({settings})"


def _values_text(value: Any) -> str:
    """Return a setting, or the values of a list; none where it is empty."""
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)


def _metric_rows(splits: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    for name, meaning in METRICS.items():
        cells = [
            {"value": split["metrics"].get(name), "interval": split["intervals"].get(name)}
            for split in splits.values()
        ]
        if any(cell["value"] is not None for cell in cells):
            yield {"name": name, "meaning": meaning, "cells": cells}


def _importance(importance: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return the columns by falling importance, without those that have none (a single class)."""
    columns = importance["columns"] if importance else []
    known = [row for row in columns if row["auc_drop"] is not None]
    return sorted(known, key=lambda row: -row["auc_drop"])


def _rates(rates: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[tuple[str, list[Any]]]]:
    """Return the splits, and for each column its missing and then its unknown rates by split."""
    splits = list(dict.fromkeys(row["split"] for row in rates))
    table = {(row["column"], row["split"]): row for row in rates}
    columns = dict.fromkeys(row["column"] for row in rates)
    return splits, [
        (
            column,
            [
                table[column, split][kind] if (column, split) in table else None
                for kind in ("missing", "unknown")
                for split in splits
            ],
        )
        for column in columns
    ]


def _slices(slices: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Any], int]]:
    """Return each column's largest slices in the order of codes, and how many are left out."""
    result: list[tuple[str, list[Any], int]] = []
    for column, rows in _by(slices, "column"):
        kept = sorted(rows, key=lambda row: -row["rows"])[:_SLICE_ROWS]
        kept.sort(key=lambda row: row["code"])
        result.append((column, kept, len(rows) - len(kept)))
    return result


def _by(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[str, list[Any]]]:
    groups: dict[str, list[Any]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return list(groups.items())


def _list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
