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
from headwater.pipelines.evaluation.records import Evaluation
from headwater.pipelines.family import Family, Metric, find_family
from headwater.pipelines.prepared import SPLITS
from headwater.pipelines.reporting import plots
from headwater.pipelines.reporting.page import ABSENT, number, render
from headwater.pipelines.reporting.report import read_evaluation
from headwater.pipelines.runs.run import Run, run_folder

COMPARISON_NAME = "comparison.html"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Several runs side by side."""

    rows: list[dict[str, Any]]
    """A run each: its name, and its metrics as `test auc`."""
    metrics: list[str]
    """Keys of the metrics in `rows`, in order."""
    settings: dict[str, list[str]]
    """Settings of the resolved jobs that differ, with the value of each run."""
    best: dict[str, list[str]]
    """Runs with the best value of each metric; none where all are equal."""
    page: Path
    """The HTML file."""

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
    evaluations = {name: parts[0] for name, parts in zip(names, read, strict=True)}
    family = _family(evaluations)
    found = [{"run": name, **_values(evaluation)} for name, evaluation in evaluations.items()]
    keys = [f"{split} {metric}" for split in SPLITS for metric in family.metrics]
    keys = [key for key in keys if any(row.get(key) is not None for row in found)]
    rows = [{"run": row["run"], **{key: row.get(key) for key in keys}} for row in found]
    comparison = Comparison(
        rows=rows,
        metrics=keys,
        settings=differences([job for _, job in read]),
        best={key: _best(rows, key, family.metrics[key.split(" ")[1]]) for key in keys},
        page=out or paths[0].resolve().parent / COMPARISON_NAME,
    )
    plot = plots.overlay(
        {name: evaluation.history for name, evaluation in evaluations.items()},
        {name: family.metrics[name].label for name in family.headline},
    )
    render("compare.html.j2", comparison.page, {"comparison": comparison, "plot": plot})
    return comparison


def _family(evaluations: Mapping[str, Evaluation]) -> Family:
    """Return the family of all runs; RunError where there are several."""
    names = {name: evaluation.family for name, evaluation in evaluations.items()}
    if len(set(names.values())) > 1:
        told = ", ".join(f"{name} is {family}" for name, family in names.items())
        raise RunError(f"report: runs of one family of models can be compared; {told}.")
    return find_family(next(iter(names.values())))


def _values(evaluation: Evaluation) -> dict[str, float | None]:
    return {
        f"{split} {metric}": value
        for split, values in evaluation.splits.items()
        for metric, value in values.metrics.items()
    }


def _best(rows: Sequence[Mapping[str, Any]], key: str, metric: Metric) -> list[str]:
    """Return the runs with the best value."""
    gains = {row["run"]: metric.gain(row[key]) for row in rows if row[key] is not None}
    if len(set(gains.values())) < 2:
        return []
    best = max(gains.values())
    return [run for run, gain in gains.items() if gain == best]


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
