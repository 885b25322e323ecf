"""The draw of a trial's values by Optuna, from the seed, the trial's number, and the trials before it alone.

So a tuning that goes on after a stop draws what it would have drawn.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, Trial, TrialState

from headwater.models.seeds import derive_seed
from headwater.pipelines.job_tuning import Range, Tune, choice_text

_ATTEMPTS = 32
"""Draws of a trial before it takes the first combination that none had."""


def draw(tune: Tune, before: Sequence[FrozenTrial]) -> Trial:
    """Return the next trial, with values that no trial before it had; it is pruned by those before."""
    seed = derive_seed(tune.seed, "tune", str(len(before))) % 2**32
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=seed),
        pruner=optuna.pruners.MedianPruner() if tune.prune else optuna.pruners.NopPruner(),
    )
    study.add_trials(before)
    # In an order of their own, as a file may be written in another than it was read.
    space = {key: _distribution(tune.keys[key]) for key in sorted(tune.keys)}
    had = [trial.params for trial in before]
    for _ in range(_ATTEMPTS):
        trial = study.ask(space)
        if trial.params not in had:
            return trial
        study.tell(trial, state=TrialState.FAIL)
    study.enqueue_trial(_first_new(tune, had))
    return study.ask(space)


def job_values(tune: Tune, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of job keys that drawn parameters stand for."""
    found: dict[str, Any] = {}
    for key, values in tune.keys.items():
        if isinstance(values, Range):
            found[key] = params[key]
        else:
            found[key] = {choice_text(value): value for value in values}[params[key]]
    return found


def _distribution(values: Range | Sequence[Any]) -> BaseDistribution:
    if not isinstance(values, Range):
        # Optuna keeps choices as plain values only, and takes 1 and true for equal.
        return CategoricalDistribution([choice_text(value) for value in values])
    if values.is_whole:
        low, high, step = int(values.low), int(values.high), int(values.step or 1)
        return IntDistribution(low, high, log=values.log, step=step)
    return FloatDistribution(values.low, values.high, log=values.log, step=values.step)


def _first_new(tune: Tune, had: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the first combination that none had; a tuning has at most as many trials as combinations."""
    keys = sorted(tune.keys)
    lists = [
        values.numbers() if isinstance(values, Range) else map(choice_text, values)
        for values in map(tune.keys.__getitem__, keys)
    ]
    combinations = (dict(zip(keys, each, strict=True)) for each in itertools.product(*lists))
    return next(params for params in combinations if params not in had)
