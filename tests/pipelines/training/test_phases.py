"""Phases of training: each in its folder, and after a stop only what was not done."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from headwater.feature_store.errors import JobError
from headwater.models.base import ModelConfig
from headwater.models.ctr.fm import FM
from headwater.models.phases import Descend, Phase, Stage
from headwater.models.strategy import OneLoss, Strategy
from headwater.models.tables.embeddings import Mode
from headwater.pipelines.cli import main
from headwater.pipelines.job import Job, dump_job
from headwater.pipelines.prepared import Prepared
from headwater.pipelines.runs.checkpoint import Checkpoints
from headwater.pipelines.runs.run import Run, create_run, open_run
from headwater.pipelines.training.train import train

TinyJob = Callable[..., Job]


class Look:
    """Trains a network of its own to the last epoch, and leaves a number of it."""

    name = "look"
    strategies: tuple[type[Strategy[Any]], ...] = (OneLoss,)
    mode: Mode | None = None

    def run(self, stage: Stage) -> None:
        placement = stage.build(stage.config)
        stage.descend(placement, OneLoss(placement, stage.learn), keep="last")
        norm = sum(weight.norm().item() for weight in placement.network.model.parameters())
        (stage.folder / "norm.json").write_text(json.dumps(norm))


class Use:
    """Reads what `Look` left, and trains the network of the run."""

    name = "use"
    strategies: tuple[type[Strategy[Any]], ...] = (OneLoss,)
    mode: Mode | None = None

    def run(self, stage: Stage) -> None:
        norm = json.loads((stage.earlier("look") / "norm.json").read_text())
        placement = stage.build(stage.config)
        with torch.no_grad():
            for weight in placement.network.model.parameters():
                weight.fill_(norm)
        stage.descend(placement, OneLoss(placement, stage.learn), keep="best")


class InTwo(FM):
    """FM in two phases."""

    @classmethod
    def phases(cls, config: ModelConfig) -> tuple[Phase, ...]:
        return (Look(), Use())


class TwoPasses(OneLoss):
    """Stands for a strategy that sums the gradients of two passes."""

    modes: ClassVar[tuple[Mode, ...]] = ("dense", "lazy")


class Twice(FM):
    """FM by `TwoPasses`."""

    @classmethod
    def phases(cls, config: ModelConfig) -> tuple[Phase, ...]:
        return (Descend(TwoPasses),)


def events(run: Run) -> list[str]:
    return [json.loads(line)["event"] for line in (run.path / "log.jsonl").read_text().splitlines()]


def test_phases_run_in_order_and_a_stopped_one_goes_on_to_the_same_bits(
    tiny_job: TinyJob,
    tiny_prepared: Prepared,
    tmp_path: Path,
    same_training: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = tiny_job(model={"type": f"{__name__}:InTwo"}, epochs=2, patience=9)
    whole = train(job, tiny_prepared, runs=tmp_path)
    look = whole.path / "phases" / "1-look"
    assert {path.name for path in look.iterdir()} == {"checkpoint", "done", "norm.json"}
    assert events(whole).count("phase started") == 2
    assert events(whole).count("epoch ended") == 4
    save, saved = Checkpoints.save, 0

    def stop_later(self: Checkpoints, parts: Mapping[str, Any], *, best: bool) -> None:
        nonlocal saved
        save(self, parts, best=best)
        saved += 1
        if saved == 3:
            raise KeyboardInterrupt

    stopped = create_run(whole.job, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "save", stop_later)
        with pytest.raises(KeyboardInterrupt):
            train(whole.job, tiny_prepared, run=stopped)
    assert not stopped.is_complete
    before = (stopped.path / "phases" / "1-look" / "norm.json").stat().st_mtime_ns
    train(whole.job, tiny_prepared, run=stopped, resume=True)
    assert (stopped.path / "phases" / "1-look" / "norm.json").stat().st_mtime_ns == before
    same_training(stopped.path, whole.path)


def test_a_table_mode_that_the_strategy_cannot_train_is_refused_by_name(
    tiny_job: TinyJob, tiny_prepared: Prepared, tmp_path: Path
) -> None:
    job = tiny_job(model={"type": f"{__name__}:Twice"}, epochs=1, sparse={"mode": "fused"})
    message = r"train\.sparse\.mode: 'fused' cannot be trained by TwoPasses\. .* 'dense' or 'lazy'"
    with pytest.raises(JobError, match=message):
        train(job, tiny_prepared, runs=tmp_path)
    assert not list(tmp_path.iterdir())
    job = tiny_job(model={"type": f"{__name__}:Twice"}, epochs=1)
    assert train(job, tiny_prepared, runs=tmp_path).is_complete


def test_a_search_that_leaves_no_architecture_says_how_to_go_on(
    tiny_job: TinyJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    job = tiny_job({"type": f"{__name__}:InTwo"}, epochs=1)
    (tmp_path / "job.toml").write_text(dump_job(job))
    assert main(["search", "job.toml"]) == 0
    (run,) = Path("runs/tiny").iterdir()
    assert f"train it with: headwater train --resume {run}" in capsys.readouterr().out
    assert main(["train", "--resume", str(run)]) == 0
    assert open_run(run).is_complete
