"""The `[tune]` section: ranges and choices that make sense, and what is said of others."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headwater.feature_store.errors import JobError
from headwater.pipelines.job import Job, dump_job, parse_job, with_values
from headwater.pipelines.job_tuning import Range
from headwater.pipelines.ranks import Ranks
from headwater.pipelines.resolved import resolve
from headwater.pipelines.rules.tuning import tuning_problems

JobOf = Callable[..., Job]


def searching(job: Job, **tune: Any) -> Job:
    return with_values(job, {"tune": {"trials": 2, **tune}})


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"low": 2, "high": 1}, "low 2 is not below high 1"),
        ({"low": 0, "high": 1, "log": True}, "low 0 has no logarithm"),
        ({"low": 1.0, "high": 2.0, "log": True, "step": 0.5}, "`step` does not go with log = true"),
        ({"low": 0.0, "high": 1.0, "step": -0.1}, "step -0.1 is not above 0"),
        ({"low": 0.0, "high": 1.0, "step": 0.3}, "no number of steps of 0.3 leads from 0.0 to 1.0"),
        ({"low": 0, "high": 4, "step": 0.5}, "step 0.5 between whole numbers must be whole too"),
        ({"low": True, "high": 4}, "low: expected a valid integer or a valid number, found True"),
        ({"low": 0.0, "high": float("inf")}, "high: expected "),
        ({"low": 0.1}, "high: required, but absent"),
        ({"low": 0.1, "high": 1.0, "logs": True}, "logs: unknown key. Did you mean 'log'?"),
        ({"lr": [1e-3, 1e-2]}, "A key with dots needs quotes"),
        ([], "expected at least one choice"),
        ([1, True, 1], "1 given twice"),
        (0.1, "expected a table or a list, found 0.1"),
    ],
)
def test_values_that_make_no_trials_are_refused_by_their_key(
    job_of: JobOf, values: Any, says: str
) -> None:
    with pytest.raises(JobError) as caught:
        searching(job_of(), keys={"train.dense.lr": values})
    message = str(caught.value)
    assert "tune" in message
    assert says in message
    assert "\n" not in message


def test_more_trials_than_combinations_are_refused(job_of: JobOf) -> None:
    keys: dict[str, Any] = {
        "train.seed": {"low": 1, "high": 3},
        "train.dense.lr": [1e-3, 1e-2],
    }
    assert searching(job_of(), keys=keys, trials=6).tune is not None
    with pytest.raises(JobError, match="found 7, expected at most 6"):
        searching(job_of(), keys=keys, trials=7)
    keys["train.min_delta"] = {"low": 0.0, "high": 1e-3}
    assert searching(job_of(), keys=keys, trials=7).tune is not None


def test_a_range_counts_its_steps_as_they_are_written() -> None:
    assert Range(low=0.1, high=0.7, step=0.1).numbers() == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    assert Range(low=2, high=10, step=4).numbers() == [2, 6, 10]
    assert Range(low=1, high=1000, log=True).count == 1000
    assert Range(low=1, high=2.0).count is None


def test_the_section_survives_the_file_and_is_in_no_resolved_job(job_of: JobOf) -> None:
    keys = {
        "train.dense.lr": {"low": 1e-4, "high": 1, "log": True},
        "model.hidden": [[8, 8], [4]],
        "train.compile": [True, False],
    }
    job = searching(job_of(), keys=keys, metric="auc-logloss", prune=False)
    again = parse_job(tomllib.loads(dump_job(job)))
    assert again == job
    assert again.tune is not None
    assert isinstance(again.tune.keys["train.dense.lr"], Range)
    assert dump_job(resolve(job)) == dump_job(resolve(job_of()))


def test_section_of_the_page_is_read(job_of: JobOf) -> None:
    page = (Path(__file__).parents[2] / "docs" / "tuning.md").read_text()
    (text,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    job = with_values(job_of(), {**tomllib.loads(text), "model": {"type": "dnn"}})
    assert tuning_problems(job, Ranks()) == []


def test_other_values_make_another_job_and_wrong_ones_are_named(job_of: JobOf) -> None:
    job = with_values(job_of(), {"train.sparse.lr": 0.5, "train.seed": 7})
    assert (job.train.sparse.lr, job.train.seed) == (0.5, 7)
    with pytest.raises(JobError, match=r"train\.batch_size is not a table"):
        with_values(job_of(), {"train.batch_size.rows": 7})
    with pytest.raises(JobError, match=r"train\.sead: unknown key\. Did you mean 'seed'\?"):
        with_values(job_of(), {"train.sead": 7})
