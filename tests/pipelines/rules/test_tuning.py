"""Rules of `[tune]`: keys that exist, and values each of which makes a valid job."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from headwater.pipelines.job import Job, with_values
from headwater.pipelines.ranks import Ranks
from headwater.pipelines.rules.tuning import tuning_problems

TinyJob = Callable[..., Job]


def problems(job: Job, key: str, values: Any, **tune: Any) -> list[str]:
    return tuning_problems(
        with_values(job, {"tune": {"trials": 1, "keys": {key: values}, **tune}}), Ranks()
    )


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("train.dense.lr", {"low": 1e-4, "high": 1e-2, "log": True}),
        ("model.hidden_1", [[16], [8, 8]]),
        ("model.dropout_2", [0.0, 0.5]),
        ("model", [{"type": "fm"}, {"type": "dnn", "hidden": [4]}]),
        ("features.columns", [[{"name": "user", "encoder": "vocabulary"}]]),
        ("data.split", [{"by": "ratio", "seed": 1}]),
        ("data.filter", ["price > 0"]),
        ("train.batch_size", {"low": 64, "high": 256, "step": 64}),
    ],
)
def test_any_key_of_a_job_can_be_searched(tiny_job: TinyJob, key: str, values: Any) -> None:
    assert problems(tiny_job(), key, values) == []


@pytest.mark.parametrize(
    ("key", "values", "says"),
    [
        (
            "train.dense.lrr",
            [0.1, 0.2],
            "train.dense.lrr = 0.1: train.dense.lrr: unknown key. Did you mean 'lr'?",
        ),
        (
            "trian.seed",
            [1],
            "trian.seed = 1: trian: unknown key. Did you mean 'train'?",
        ),
        (
            "model.hiden_1",
            [[4]],
            "model.hiden_1 = [4]: model.hiden_1: unknown key. Did you mean 'hidden_1'?",
        ),
        (
            "train.batch_size.rows",
            [1],
            "train.batch_size.rows = 1: train.batch_size is not a table.",
        ),
        (
            "train.dense.lr",
            {"low": -1.0, "high": 1.0},
            "train.dense.lr = -1.0: train.dense.lr: expected greater than 0, found -1.0.",
        ),
        (
            "train.epochs",
            [1, "many"],
            'train.epochs = "many": train.epochs: expected a valid integer',
        ),
        (
            "train.epochs",
            {"low": 1.0, "high": 4.0},
            "train.epochs = 2.1",
        ),
        ("model.num_heads", [2, 3], "model.num_heads = 3: "),
        ("train.device", ["cpu", "gpu!"], 'train.device = "gpu!": train.device: unknown device'),
        ("export.opset", [18], "export.opset: it changes nothing in training."),
        ("tune.seed", [1], "tune.seed: it changes nothing in training."),
    ],
)
def test_wrong_key_or_value_is_named_with_the_remedy(
    tiny_job: TinyJob, key: str, values: Any, says: str
) -> None:
    (problem,) = problems(tiny_job(), key, values)
    assert problem.startswith(f"tune.keys: {says}")


def test_what_the_job_has_wrong_by_itself_is_not_told_of_its_values(tiny_job: TinyJob) -> None:
    assert problems(tiny_job(device="gpu!"), "train.seed", [1, 2]) == []


def test_metric_is_one_of_the_family(tiny_job: TinyJob) -> None:
    job = tiny_job()
    for metric in ("logloss", "auc-logloss", "gauc"):
        assert problems(job, "train.seed", [1], metric=metric) == []
    (problem,) = problems(job, "train.seed", [1], metric="loglos")
    assert problem.startswith("tune.metric: 'loglos' is no metric of a ctr model. Did you mean")
    ungrouped = job.model_copy(
        update={"features": job.features.model_copy(update={"user": None, "group": None})}
    )
    (problem,) = problems(ungrouped, "train.seed", [1], metric="gauc")
    assert problem.startswith("tune.metric: 'gauc' needs groups of rows")


def test_job_without_the_section_has_nothing_to_check(tiny_job: TinyJob) -> None:
    assert tuning_problems(tiny_job(), Ranks()) == []
