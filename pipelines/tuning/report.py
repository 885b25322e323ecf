"""The page of a tuning: trials by number and by the values of each key, and the best job."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headwater.pipelines.family import Family
from headwater.pipelines.job_tuning import Range, Tune, choice_text
from headwater.pipelines.reporting import plots
from headwater.pipelines.reporting.page import duration, number, render
from headwater.pipelines.tuning.trials import TrialRecord, best_of

REPORT_NAME = "report.html"


def write_tuning_report(
    folder: Path,
    name: str,
    tune: Tune,
    family: Family,
    metric: str,
    records: Sequence[TrialRecord],
) -> Path:
    """Write `report.html` of a tuning with a complete trial, and return its path."""
    label = (
        f"{metric}, valid rows" if "-" in metric else f"{family.metrics[metric].label}, valid rows"
    )
    points = _points(tune, records)
    best = best_of(records)
    assert best is not None, "a report needs a complete trial"
    states = [record.state for record in records]
    told = {
        "name": name,
        "folder": folder.resolve().name,
        "tiles": [
            (number(best.metric), f"best {label}"),
            (f"{best.number}", "best trial"),
            *((f"{states.count(state)}", state) for state in ("complete", "pruned", "failed")),
            (duration(sum(record.seconds for record in records)), "training time"),
        ],
        "metric": metric,
        "trials": plots.trials(points, label),
        "by_key": {
            key: plots.trial_values(points, key, _axis(values), label)
            for key, values in tune.keys.items()
        },
        "keys": list(tune.keys),
        "best": best,
        "rows": [
            (record, [choice_text(record.values[key]) for key in tune.keys]) for record in records
        ],
        "job": (Path(best.run) / "job.toml").read_text(encoding="utf-8"),
    }
    return render("tune.html.j2", folder / REPORT_NAME, told)


def _points(tune: Tune, records: Sequence[TrialRecord]) -> list[plots.TrialPoint]:
    """Return the trials that were measured."""
    points: list[plots.TrialPoint] = []
    for position, record in enumerate(records, start=1):
        if record.metric is None:
            continue
        best = best_of(records[:position])
        points.append(
            plots.TrialPoint(
                number=record.number,
                metric=record.metric,
                is_complete=record.state == "complete",
                best=None if best is None else best.metric,
                places={key: _place(tune.keys[key], value) for key, value in record.values.items()},
            )
        )
    return points


def _axis(values: Range | Sequence[Any]) -> plots.KeyAxis:
    if isinstance(values, Range):
        return plots.KeyAxis("log" if values.log else "linear")
    return plots.KeyAxis(ticks=[choice_text(value) for value in values])


def _place(values: Range | Sequence[Any], value: Any) -> float:
    if isinstance(values, Range):
        return value
    return [choice_text(each) for each in values].index(choice_text(value))
