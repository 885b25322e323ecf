"""The plateau rule: improvements, learning-rate drops, stop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from headwater.feature_store.schema import Schema
from headwater.models.placement.place import place
from headwater.models.strategy import OneLoss
from headwater.pipelines.families.ctr import CTR
from headwater.pipelines.job import Job, Train
from headwater.pipelines.prepared import Prepared
from headwater.pipelines.resolved import job_network, learn_settings
from headwater.pipelines.training.plateau import Plateau


@pytest.mark.timeout(120)  # the first use of TorchRec in a process takes long
@pytest.mark.parametrize("mode", ["dense", "fused"])
def test_scripted_metrics_drop_the_rates_and_stop_at_the_sixth(
    tiny_job: Callable[..., Job], click_schema: Schema, mode: str
) -> None:
    job = tiny_job(
        {"type": "dnn"}, patience=2, sparse={"mode": mode, "lr": 1e-3}, dense={"lr": 1e-3}
    )
    learn = learn_settings(job)
    prepared = Prepared(Path(), click_schema, ("train", "valid"))
    placement = place(job_network(job, prepared), torch.device("cpu"), learn)
    strategy = OneLoss(placement, learn)
    plateau = Plateau.of(job.train)
    sparse, dense, stops = [], [], []
    for epoch, auc in enumerate([0.5, 0.6, 0.59, 0.61, 0.60, 0.60], start=1):
        if not plateau.update(auc, epoch):
            strategy.lr_scale(job.train.lr_factor, job.train.min_lr)
        sparse.append(strategy.rates["sparse"])
        dense.append(strategy.rates["dense"])
        stops.append(plateau.stopped)
    assert sparse == dense == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-6])
    assert stops == [False, False, False, False, False, True]
    assert (plateau.best, plateau.best_epoch) == (0.61, 4)


def test_improvement_must_exceed_min_delta() -> None:
    plateau = Plateau.of(Train(min_delta=0.01))
    assert plateau.update(0.5, 1)
    assert not plateau.update(0.51, 2)
    assert plateau.update(0.5101, 3)


def test_undefined_metric_is_no_improvement() -> None:
    assert not Plateau.of(Train()).update(float("nan"), 1)


@pytest.mark.parametrize(
    ("monitor", "expected"),
    [("auc", 0.8), ("gauc", 0.7), ("logloss", -0.3), ("auc-logloss", 0.5)],
)
def test_monitored_value_is_to_be_maximised(monitor: str, expected: float) -> None:
    metrics = {"auc": 0.8, "gauc": 0.7, "logloss": 0.3}
    assert CTR.monitored(metrics, monitor) == pytest.approx(expected)


def test_state_goes_through_plain_values() -> None:
    plateau = Plateau.of(Train())
    plateau.update(0.5, 1)
    plateau.update(0.4, 2)
    assert Plateau(**plateau.state()) == plateau
