"""Several runs side by side: metrics, learning curves, and the settings in which they differ."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwater.feature_store.errors import RunError
from headwater.pipelines.arguments import list_of, path_of
from headwater.pipelines.reporting import plots
from headwater.pipelines.reporting.page import ABSENT, number, render
from headwater.pipelines.reporting.report import METRICS, read_evaluation
from headwater.pipelines.runs.run import Run, run_folder

COMPARISON_NAME = "comparison.html"
_FALLING = ("logloss", "ne", "ece")


@dataclass(frozen=True, slots=True)
class Comparison:
    """Several runs side by side."""

    rows: list[dict[str, Any]]
    """A run each: its name, and its metrics as `test auc`."""
    metrics: list[str]
    """Keys of the metrics in `rows`, in order."""
    settings: dict[str, list[str]]
    """Settings of the resolved jobs that differ, with the value of each run."""
    page: Path
    """The HTML file."""

    @property
    def best(self) -> dict[str, list[str]]:
        """Return the runs with the best value of each metric."""
        return {key: _best(self.rows, key) for key in self.metrics}

    @property
    def text(self) -> str:
        """Return the metrics, and the settings that differ, as plain text: a column a run."""
        names = [row["run"] for row in self.rows]
        lines = [("metric", *names)]
        lines += [(key, *(number(row[key]) for row in self.rows)) for key in self.metrics]
        if self.settings:
            lines += [("", *("" for _ in names)), ("setting", *names)]
            lines += [(key, *values) for key, values in self.settings.items()]
        return "\n".join(_align(lines))


def compare_runs(runs: Iterable[Run | Path | str], out: Path | str | None = None) -> Comparison:
    """Compare runs that were evaluated: metrics, learning curves, and the settings that differ.

    The page is written to `out`, or to `comparison.html` beside the first run.
    """
    given = list_of(runs, "compare_runs: runs", "a list of runs, or of their folders")
    paths = [run_folder(run, "compare_runs: runs") for run in given]
    if not paths:
        raise RunError("compare_runs: runs: found none, expected at least one run.")
    if out is not None:
        out = path_of(out, "compare_runs: out")
    names = _short_names(paths)
    read = [read_evaluation(path) for path in paths]
    rows = [_comparison_row(name, parts[0]) for name, parts in zip(names, read, strict=True)]
    metrics = [key for key in _metric_keys() if any(row.get(key) is not None for row in rows)]
    rows = [{"run": row["run"], **{key: row.get(key) for key in metrics}} for row in rows]
    page = out or paths[0].resolve().parent / COMPARISON_NAME
    comparison = Comparison(rows, metrics, differences([job for _, job in read]), page)
    histories = {name: parts[0]["history"] for name, parts in zip(names, read, strict=True)}
    render("compare.html.j2", page, {"comparison": comparison, "plot": plots.overlay(histories)})
    return comparison


def _metric_keys() -> list[str]:
    return [f"{split} {name}" for split in ("valid", "test") for name in METRICS]


def _comparison_row(name: str, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"run": name}
    for split, values in evaluation["splits"].items():
        row.update({f"{split} {metric}": value for metric, value in values["metrics"].items()})
    return row


def _best(rows: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    """Return the runs with the best value; calibration is best nearest to 1."""
    metric = key.split(" ")[1]
    values = {row["run"]: row[key] for row in rows if row[key] is not None}
    if metric == "calibration":
        values = {run: -abs(value - 1) for run, value in values.items()}
    if len(set(values.values())) < 2:
        return []
    best = min(values.values()) if metric in _FALLING else max(values.values())
    return [run for run, value in values.items() if value == best]


def differences(jobs: Sequence[str]) -> dict[str, list[str]]:
    """Return the settings, as `train.seed`, whose values differ between resolved jobs."""
    flat = [dict(_flatten(tomllib.loads(job))) for job in jobs]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    table = {key: [settings.get(key, ABSENT) for settings in flat] for key in keys}
    return {key: values for key, values in table.items() if len(set(values)) > 1}


def _flatten(value: Any, path: str = "") -> Iterable[tuple[str, str]]:
    """Yield the leaves of nested tables; entries of a list of named tables go by their names."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _flatten(part, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        for position, part in enumerate(value):
            yield from _flatten(part, f"{path}[{part.get('name', position)}]")
    else:
        yield path, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _short_names(runs: Sequence[Path]) -> list[str]:
    """Return names that tell the runs apart: the folders', with parents where those are equal."""
    full = [run.resolve() for run in runs]
    for depth in range(1, max(len(path.parts) for path in full)):
        names = ["/".join(path.parts[-depth:]) for path in full]
        if len(set(names)) == len(names):
            return names
    raise RunError("report: the same run is given twice; give different runs to compare.")


def _align(table: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows as lines with columns of equal width."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]
