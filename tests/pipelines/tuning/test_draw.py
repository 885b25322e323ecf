"""Draws of trials: from the seed and the trials before alone, no two equal, within their ranges."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from headwater.pipelines.job_tuning import Range, Tune
from headwater.pipelines.tuning.draw import draw, job_values


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def drawn(tune: Tune, before: list[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials of a tuning whose metric falls with the trial's number, after those before."""
    done = list(before)
    while len(done) < tune.trials:
        trial = draw(tune, done)
        done.append(
            create_trial(
                state=TrialState.COMPLETE,
                value=-float(len(done)),
                params=trial.params,
                distributions=trial.distributions,
            )
        )
    return done


def params(trials: list[FrozenTrial]) -> list[dict[str, Any]]:
    return [trial.params for trial in trials]


def test_draws_go_on_as_they_would_have_and_differ_by_seed() -> None:
    keys = {"a": Range(low=0.0, high=1.0), "b": Range(low=1, high=9)}
    tune = Tune(trials=16, keys=dict(keys))  # more than Optuna draws at random
    whole = drawn(tune, [])
    assert params(drawn(tune, whole[:3])) == params(whole)
    assert params(drawn(tune, whole[:13])) == params(whole)
    turned = tune.model_copy(update={"keys": dict(reversed(keys.items()))})
    assert params(drawn(turned, [])) == params(whole)
    assert params(drawn(tune.model_copy(update={"seed": 1}), [])) != params(whole)


def test_every_combination_is_tried_once() -> None:
    keys: dict[str, Any] = {
        "a": [1, True, "1", [1]],
        "b": Range(low=2, high=6, step=2),
        "c": Range(low=0.1, high=0.3, step=0.1),
    }
    tune = Tune(trials=36, keys=keys)
    trials = drawn(tune, [])
    values = [job_values(tune, trial.params) for trial in trials]
    assert len({repr(each) for each in values}) == 36
    assert [each["a"] for each in values].count([1]) == 9
    assert {type(each["b"]) for each in values} == {int}
    assert {each["c"] for each in values} == {0.1, 0.2, 0.3}


def test_ranges_give_numbers_of_their_kind_between_their_ends() -> None:
    tune = Tune(
        trials=40,
        keys={
            "whole": Range(low=1, high=1000, log=True),
            "log": Range(low=1e-6, high=1.0, log=True),
            "plain": Range(low=-1, high=0.5),
        },
    )
    values = [job_values(tune, trial.params) for trial in drawn(tune, [])]
    assert all(isinstance(each["whole"], int) and 1 <= each["whole"] <= 1000 for each in values)
    assert all(isinstance(each["log"], float) and 1e-6 <= each["log"] <= 1 for each in values)
    assert all(-1 <= each["plain"] <= 0.5 for each in values)
    assert sum(each["log"] < 1e-3 for each in values[:10]) > 1
