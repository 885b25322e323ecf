"""The report of a run: one self-contained HTML page from its `evaluation.json` and `job.toml`.

`docs/metrics.md` describes `evaluation.json`; this module only arranges what is in it. The sections between
metrics and job are those of the run's family.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from headwater.feature_store.errors import RunError
from headwater.pipelines.evaluation.records import FORMAT_VERSION, Evaluation, Rates
from headwater.pipelines.family import FAMILIES, Family, find_family
from headwater.pipelines.prepared import time_text
from headwater.pipelines.reporting.page import count, duration, megabytes, number, render
from headwater.pipelines.runs.run import EVALUATION, Run, run_folder

REPORT_NAME = "report.html"


def write_report(run_dir: Run | Path | str) -> Path:
    """Write `report.html` into a run that was evaluated, and return its path.

    Raises RunError where the run has no readable `evaluation.json` or `job.toml`.
    """
    run_dir = run_folder(run_dir, "write_report: run_dir")
    evaluation, job = read_evaluation(run_dir)
    family = find_family(evaluation.family)
    panels = list(family.panels(evaluation, run_dir))
    rate_splits, rates = _rates(evaluation.rates)
    sections = [("trained", "Training"), ("metrics", "Metrics")]
    sections += [(panel.anchor, panel.title) for panel in panels]
    sections += [("rates", "Missing and unknown")] if rates else []
    context: dict[str, Any] = {
        "evaluation": evaluation,
        "run": run_dir.resolve().name,
        "splits": evaluation.splits,
        "tiles": _tiles(evaluation, family),
        "facts": _facts(evaluation, tomllib.loads(job), family),
        "metrics": list(_metric_rows(evaluation, family)),
        "panels": panels,
        "rate_splits": rate_splits,
        "rates": rates,
        "job": job,
        "sections": [*sections, ("job", "Job")],
    }
    return render("report.html.j2", run_dir / REPORT_NAME, context)


def read_evaluation(run_dir: Path) -> tuple[Evaluation, str]:
    """Return a run's evaluation and its resolved job as TOML text."""
    if not run_dir.is_dir():
        raise RunError(f"{run_dir}: no such run folder.")
    path = run_dir / EVALUATION
    again = f"Write it again by `headwater evaluate --run {run_dir}`."
    try:
        content = path.read_bytes()
        head = msgspec.json.decode(content, type=_Head)
        job = (run_dir / "job.toml").read_text(encoding="utf-8")
        tomllib.loads(job)
        if head.format_version == FORMAT_VERSION and head.family in FAMILIES:
            kind = find_family(head.family).evaluation
            return msgspec.json.decode(content, type=kind), job
    except FileNotFoundError as error:
        raise RunError(
            f"{error.filename}: no such file. A report needs a run that was evaluated: "
            f"`headwater evaluate --run {run_dir}`."
        ) from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise RunError(
            f"{run_dir}: evaluation.json or job.toml is damaged: {error}. {again}"
        ) from error
    of_family = f" of family {head.family}" if head.family else ""
    raise RunError(
        f"{path}: found an evaluation of format {head.format_version}{of_family}, "
        f"expected format {FORMAT_VERSION} of family {' or '.join(FAMILIES)}. {again}"
    )


class _Head(msgspec.Struct):
    """The fields by which the rest of the file is read."""

    format_version: int = 1
    family: str = ""


def last_split(evaluation: Evaluation) -> str:
    """Return the split that a report is about: test where there is one."""
    return "test" if "test" in evaluation.splits else "valid"


def _tiles(evaluation: Evaluation, family: Family) -> list[tuple[str, str]]:
    split, training = last_split(evaluation), evaluation.training
    values = evaluation.splits[split].metrics
    return [
        *(
            (number(values[name]), f"{family.metrics[name].label}, {split} rows")
            for name in family.headline
            if name in values
        ),
        (count(training.parameters), "parameters"),
        (count(training.rows_per_second), "training rows a second"),
        (megabytes(training.peak_rss_mb), "peak memory"),
        (duration(training.seconds), "training time"),
    ]


def _facts(evaluation: Evaluation, job: Mapping[str, Any], family: Family) -> list[tuple[str, str]]:
    """Return what was trained, as label and text."""
    training, data = evaluation.training, job["data"]
    source = "source" if "source" in data else "train"
    rows = (f"{count(rows)} {name}" for name, rows in evaluation.data.rows.items())
    times = evaluation.data.time_range_ms
    stopped = {
        "plateau": "no further improvement",
        "epochs": "all epochs done",
        "solved": "solved in closed form",
    }.get(training.stopped, training.stopped)
    if training.still_improving:
        stopped = f"{stopped}, still improving"
    epochs = (
        f"{training.epochs} ({count(training.steps)} steps), best {training.best_epoch} "
        f"by {training.monitor} {number(training.best)}; stopped: {stopped}"
    )
    processes = "1 process" if training.world_size == 1 else f"{training.world_size} processes"
    machine = f"{training.device}, {training.precision}, {processes}, seed {training.seed}"
    facts = [
        ("data", ", ".join(_list(data[source]))),
        ("split", _split_text(data.get("split"))),
        ("rows", ", ".join(rows)),
        ("training rows from", "no time column" if times is None else _period(times)),
        *family.facts(job),
        ("model", f"{evaluation.model}, {count(training.parameters)} parameters"),
        ("epochs", epochs),
        ("machine", machine),
    ]
    if training.peak_cuda_mb:
        facts.append(("peak GPU memory", megabytes(training.peak_cuda_mb)))
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


def _metric_rows(evaluation: Evaluation, family: Family) -> Iterable[dict[str, Any]]:
    for name, metric in family.metrics.items():
        cells = [
            {"value": split.metrics.get(name), "interval": split.intervals.get(name)}
            for split in evaluation.splits.values()
        ]
        if any(cell["value"] is not None for cell in cells):
            yield {"name": name, "meaning": metric.meaning, "cells": cells}


def _rates(rates: Sequence[Rates]) -> tuple[list[str], list[tuple[str, list[Any]]]]:
    """Return the splits, and for each column its missing and then its unknown rates by split."""
    splits = list(dict.fromkeys(row.split for row in rates))
    table = {(row.column, row.split): row for row in rates}
    columns = dict.fromkeys(row.column for row in rates)
    return splits, [
        (
            column,
            [
                getattr(table[column, split], kind) if (column, split) in table else None
                for kind in ("missing", "unknown")
                for split in splits
            ],
        )
        for column in columns
    ]


def _list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
