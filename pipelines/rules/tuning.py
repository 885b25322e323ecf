"""Rules of `[tune]`: keys exist, and each of their values makes a valid job. No data is needed to tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from headwater.feature_store.errors import JobError
from headwater.pipelines.job import Job, with_values
from headwater.pipelines.job_tuning import Range, choice_text
from headwater.pipelines.ranks import Ranks
from headwater.pipelines.rules.settings import setting_problems

_WITHOUT_EFFECT = ("name", "export", "tune")
"""Parts of a job that change nothing in training."""


def tuning_problems(job: Job, ranks: Ranks) -> list[str]:
    """Return a line for each setting of `[tune]` that cannot be searched; none without that section."""
    if job.tune is None:
        return []
    plain = job.model_copy(update={"tune": None})
    known = set(setting_problems(plain, ranks))
    problems = _metric_problems(plain, job.tune.metric, ranks)
    for key, values in job.tune.keys.items():
        if key.partition(".")[0] in _WITHOUT_EFFECT:
            problems.append(f"tune.keys: {key}: it changes nothing in training. Take it out.")
            continue
        told: set[str] = set()
        for value in _tried(values):
            found = [
                problem
                for problem in _value_problems(plain, key, value, ranks)
                if problem not in known | told
            ]
            problems += [f"tune.keys: {key} = {choice_text(value)}: {each}" for each in found]
            told.update(found)
            if found and isinstance(values, Range):
                break  # its other numbers have the same
    return problems


def _tried(values: Range | Sequence[Any]) -> list[Any]:
    """Return the values that stand for all: each choice, or the ends of a range and a number between."""
    if not isinstance(values, Range):
        return list(values)
    low, high = values.low, values.high
    # A setting that takes whole numbers takes 1.0 too, but nothing between them.
    between = [] if values.count is not None else [low + (high - low) / math.e]
    return [low, high, *between, *(values.numbers()[1:2] if values.step is not None else [])]


def _value_problems(job: Job, key: str, value: Any, ranks: Ranks) -> list[str]:
    try:
        return setting_problems(with_values(job, {key: value}), ranks)
    except JobError as error:
        return [line.removeprefix("job: ") for line in str(error).splitlines()]


def _metric_problems(job: Job, metric: str | None, ranks: Ranks) -> list[str]:
    """Return what would be wrong with the metric as the monitor of training."""
    if metric is None:
        return []
    judged = with_values(job, {"train.monitor": metric})
    return [
        problem.replace("train.monitor", "tune.metric")
        for problem in setting_problems(judged, ranks)
        if problem.startswith("train.monitor:")
    ]
