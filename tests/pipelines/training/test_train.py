"""The training loop: it learns, repeats bit by bit, goes on after a kill, and says why it stops."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headwater.feature_store.errors import (
    DataError,
    OutputError,
    RunError,
    ShardError,
    TrainingError,
)
from headwater.feature_store.files import file_sha256
from headwater.feature_store.shards import Arrays, ShardWriter
from headwater.models import registry
from headwater.pipelines.cli import main
from headwater.pipelines.evaluation.evaluate import evaluate
from headwater.pipelines.job import Job, dump_job
from headwater.pipelines.output import locked
from headwater.pipelines.prepared import Prepared, SplitName
from headwater.pipelines.resolved import job_network
from headwater.pipelines.runs.checkpoint import Checkpoints
from headwater.pipelines.runs.run import Run, create_run, open_run
from headwater.pipelines.training import stage
from headwater.pipelines.training.train import train

pytestmark = pytest.mark.timeout(120)  # the first use of TorchRec in a process takes long

TinyJob = Callable[..., Job]
SameTraining = Callable[..., None]

MODES = ("fused", "lazy", "dense")


@pytest.mark.parametrize("mode", MODES)
def test_same_seed_gives_the_same_bits_and_another_seed_does_not(
    tiny_job: TinyJob,
    tiny_prepared: Prepared,
    tmp_path: Path,
    same_training: SameTraining,
    mode: str,
) -> None:
    settings: dict[str, Any] = {"sparse": {"mode": mode, "l2": 1e-5}, "dense": {"l2": 1e-5}}
    first, second, other = (
        train(tiny_job(seed=seed, **settings), tiny_prepared, runs=tmp_path) for seed in (0, 0, 1)
    )
    same_training(first.path, second.path)
    with pytest.raises(AssertionError):
        same_training(first.path, other.path, only_best=True)


def test_run_holds_its_job_metrics_log_and_best_checkpoint(
    tiny_job: TinyJob, tiny_prepared: Prepared, tmp_path: Path
) -> None:
    run = train(tiny_job(epochs=6), tiny_prepared, runs=tmp_path)
    assert run.is_complete
    metrics = run.metrics
    history = metrics.history
    assert [record.epoch for record in history] == list(range(1, len(history) + 1))
    best = max(history, key=lambda record: record.valid["auc"] or 0.0)
    assert metrics.training.best_epoch == best.epoch
    assert metrics.of("valid") == best.valid
    assert (best.valid["auc"] or 0.0) > 0.7
    assert metrics.training.rows_per_second > 0
    assert metrics.training.peak_rss_mb > 50
    assert metrics.schema_hash == tiny_prepared.schema.hash
    assert Path(metrics.prepared) == tiny_prepared.path.resolve()
    events = [
        json.loads(line)["event"] for line in (run.path / "log.jsonl").read_text().splitlines()
    ]
    assert events[0] == "training started"
    assert events[-1] == "training ended"
    assert events.count("epoch ended") == len(history)
    assert Checkpoints(run.checkpoint).load("best") is not None


@pytest.mark.parametrize("model", sorted(registry.MODELS))
def test_one_loop_trains_every_model(
    tiny_job: TinyJob, tiny_prepared: Prepared, tmp_path: Path, model: str
) -> None:
    job = tiny_job(model={"type": model}, epochs=2, sparse={"lr": 0.2})
    history = train(job, tiny_prepared, runs=tmp_path).metrics.history
    assert (history[-1].valid["auc"] or 0.0) > 0.55
    first, last = history[0].train_loss, history[-1].train_loss
    assert first is not None
    assert last is not None
    assert last < first


def test_plateau_drops_both_rates_and_stops(
    tiny_job: TinyJob, tiny_prepared: Prepared, tmp_path: Path
) -> None:
    # No improvement is large enough after the first epoch.
    job = tiny_job(min_delta=0.6, patience=2, epochs=9, min_lr=5e-5, sparse={"lr": 0.02})
    metrics = train(job, tiny_prepared, runs=tmp_path).metrics
    assert [r.lr_sparse for r in metrics.history] == pytest.approx([0.02, 0.02, 0.002])
    assert [r.lr_dense for r in metrics.history] == pytest.approx([1e-3, 1e-3, 1e-4])
    assert metrics.training.stopped == "plateau"
    assert metrics.training.still_improving is False
    assert metrics.training.best_epoch == 1


@pytest.mark.parametrize("settings", [{"epochs": 1}, {"epochs": 3, "min_delta": 0.6}])
def test_training_that_epochs_end_while_it_improves_says_so(
    settings: dict[str, Any],
    tiny_job: TinyJob,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    job = tiny_job(model={"type": "logistic_regression"}, patience=9, **settings)
    Path("job.toml").write_text(dump_job(job))
    assert main(["train", "job.toml"]) == 0
    path, *told = capsys.readouterr().out.splitlines()
    assert main(["train", "--resume", path.removeprefix("run "), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    run = open_run(result["run"])
    ended = json.loads((run.path / "log.jsonl").read_text().splitlines()[-1])
    found = {
        result["still_improving"],
        run.metrics.training.still_improving,
        ended["still_improving"],
    }
    assert (result["stopped"], ended["event"]) == ("epochs", "training ended")
    if settings["epochs"] == 1:
        assert found == {True}
        (line,) = told
        assert line.startswith("still improving: train.epochs = 1 ended training")
        assert line.endswith("Train again with more, as --set train.epochs=2")
    else:
        assert found == {False}
        assert told == []


def test_weights_change_the_loss_and_zero_weights_teach_nothing(
    tiny_job: TinyJob, tiny_prepared: Prepared, tmp_path: Path
) -> None:
    prepared = with_rows(tiny_prepared, tmp_path / "prepared", weight=0.0)
    job = tiny_job(epochs=1, model={"type": "dnn", "embedding_dim": 8, "hidden": [8]})
    run = train(job, prepared, runs=tmp_path)
    assert run.metrics.history[0].train_loss == 0.0
    saved = Checkpoints(run.checkpoint).load("best")
    assert saved is not None
    trained = saved["network"]["weights"]
    fresh = job_network(job, prepared)
    for name, weight in fresh.state_dict().items():
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            assert torch.equal(trained[name], weight), name


def test_complete_run_is_left_as_it_is(
    tiny_job: TinyJob, tiny_prepared: Prepared, tmp_path: Path
) -> None:
    run = train(tiny_job(epochs=1), tiny_prepared, runs=tmp_path)
    before = (run.path / "metrics.json").read_bytes()
    train(run.job, tiny_prepared, run=open_run(run.path), resume=True)
    assert (run.path / "metrics.json").read_bytes() == before


def test_run_of_other_rows_is_not_resumed(
    tiny_job: TinyJob, tiny_prepared: Prepared, tmp_path: Path
) -> None:
    run = train(tiny_job(epochs=1), tiny_prepared, runs=tmp_path)
    (run.path / "metrics.json").unlink()
    other = with_rows(tiny_prepared, tmp_path / "other", rows=300)
    with pytest.raises(RunError, match=r"found other: the data changed since\. Train a new run"):
        train(run.job, other, run=run, resume=True)
    train(run.job, tiny_prepared, run=run, resume=True)
    assert run.is_complete


@pytest.mark.parametrize(("rank", "local_rank"), [(0, 0), (8, 0)])
def test_first_process_of_each_machine_refuses_a_corrupt_shard(
    tiny_job: TinyJob,
    tiny_prepared: Prepared,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rank: int,
    local_rank: int,
) -> None:
    prepared = with_rows(tiny_prepared, tmp_path / "prepared")
    spoil_last_byte(prepared.path / "train" / "shard-00000.arrow")
    # Only the place among the processes, so that shards are refused before any other is awaited.
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    job = tiny_job(epochs=1, sparse={"mode": "dense"})
    with pytest.raises(ShardError, match=r"shard-00000\.arrow: the shard is corrupt"):
        train(job, prepared, runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_run_of_other_features_is_not_resumed(
    tiny_job: TinyJob, tiny_prepared: Prepared, click_schema: Any, tmp_path: Path
) -> None:
    job = tiny_job(epochs=1)
    run = train(job, tiny_prepared, runs=tmp_path)
    (run.path / "metrics.json").unlink()
    index = json.loads((run.checkpoint / "index.json").read_text())
    path = run.checkpoint / index["latest"]["folder"] / "network.pt"
    network = torch.load(path, weights_only=True)
    torch.save({**network, "schema_hash": click_schema.hash}, path)
    for which in ("latest", "best"):
        index[which]["files"]["network.pt"] = file_sha256(path)
    (run.checkpoint / "index.json").write_text(json.dumps(index))
    with pytest.raises(RunError, match="the data changed since"):
        train(run.job, tiny_prepared, run=run, resume=True)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_dense_column_is_named_with_its_step(
    tiny_job: TinyJob, tiny_prepared: Prepared, tmp_path: Path, value: float
) -> None:
    prepared = with_rows(tiny_prepared, tmp_path / "prepared", dense=value, at=700)
    with pytest.raises(TrainingError, match=r"epoch 1, step [1-7]: .*column 'price'.*\[data\]"):
        train(tiny_job(), prepared, runs=tmp_path)


@pytest.mark.parametrize("mode", MODES)
def test_non_finite_table_is_named(
    tiny_job: TinyJob,
    tiny_prepared: Prepared,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
) -> None:
    def spoil(placement: Any) -> None:
        tables = placement.network.embeddings.tables()
        tables["emb_BFD"]["item"][5:9] = np.nan
        placement.network.embeddings.load(tables, placement.network.embeddings.numeric_weights())

    spoil_after_assembly(monkeypatch, spoil)
    with pytest.raises(TrainingError, match=r"step 1: .*embedding table of 'item'.*sparse\.lr"):
        train(tiny_job(sparse={"mode": mode}), tiny_prepared, runs=tmp_path)


def test_non_finite_weights_are_named_by_module(
    tiny_job: TinyJob, tiny_prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(placement: Any) -> None:
        with torch.no_grad():
            placement.network.model.mlp_2[0].weight[0, 0] = torch.inf

    spoil_after_assembly(monkeypatch, spoil)
    with pytest.raises(TrainingError, match=r"weights of 'mlp_2\.0'.*train\.dense\.lr"):
        train(tiny_job(), tiny_prepared, runs=tmp_path)


def test_one_class_in_validation_is_refused(
    tiny_job: TinyJob, tiny_prepared: Prepared, tmp_path: Path
) -> None:
    prepared = with_rows(tiny_prepared, tmp_path / "prepared", split="valid", label=0.0)
    with pytest.raises(DataError, match="valid: 0 of 50 rows have label 1"):
        train(tiny_job(), prepared, runs=tmp_path)


def test_grouped_auc_without_a_usable_group_is_refused(
    tiny_job: TinyJob, tiny_prepared: Prepared, tmp_path: Path
) -> None:
    prepared = with_rows(tiny_prepared, tmp_path / "prepared", split="valid", group=True)
    with pytest.raises(DataError, match="no group has rows of both classes"):
        train(tiny_job(monitor="gauc"), prepared, runs=tmp_path)


def test_last_batch_of_one_row_does_not_stop_batch_norm(
    tiny_job: TinyJob, tiny_prepared: Prepared, tmp_path: Path
) -> None:
    prepared = with_rows(tiny_prepared, tmp_path / "prepared", rows=129)
    run = train(tiny_job(batch_size=64, epochs=1), prepared, runs=tmp_path)
    assert run.metrics.history[0].step == 2
    assert "batch too small, skipped" in (run.path / "log.jsonl").read_text()


def test_training_data_of_one_row_is_refused_as_data(
    tiny_job: TinyJob, tiny_prepared: Prepared, tmp_path: Path
) -> None:
    one_row = with_rows(tiny_prepared, tmp_path / "prepared", rows=1)
    with pytest.raises(DataError, match="train: found 1 row, expected at least 2"):
        train(tiny_job(), one_row, runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    dnn = tiny_job(model={"type": "dnn", "hidden": [4]}, epochs=1)
    assert train(dnn, one_row, runs=tmp_path / "runs").is_complete


def test_full_disk_keeps_the_checkpoint_before_and_the_run_goes_on(
    tiny_job: TinyJob,
    tiny_prepared: Prepared,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    same_training: SameTraining,
) -> None:
    job = tiny_job(epochs=3)
    expected = train(job, tiny_prepared, runs=tmp_path)
    run = create_run(job, tmp_path)
    with monkeypatch.context() as patch:
        real, saved = torch.save, [0]

        def full(tree: Any, file: Any) -> None:
            saved[0] += 1
            if saved[0] == 4:
                raise OSError(28, "No space left on device")
            real(tree, file)

        patch.setattr(torch, "save", full)
        with pytest.raises(OutputError, match=r"cannot be written: .*No space left"):
            train(job, tiny_prepared, run=run)
    train(run.job, tiny_prepared, run=run, resume=True)
    same_training(run.path, expected.path)


def test_a_run_is_trained_by_one_at_a_time(
    tiny_job: TinyJob, tiny_prepared: Prepared, tmp_path: Path
) -> None:
    run = create_run(tiny_job(epochs=1), tmp_path)
    with run.training(), pytest.raises(RunError, match="another process is training it"):
        train(run.job, tiny_prepared, run=run, resume=True)
    assert train(run.job, tiny_prepared, run=run, resume=True).is_complete


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_train_like_one_and_resume_after_a_kill(
    tiny_job: TinyJob, tiny_prepared: Prepared, tmp_path: Path, same_training: SameTraining
) -> None:
    job = tiny_job(epochs=3, batch_size=300, checkpoint_steps=2, sparse={"mode": "fused"})
    alone = train(job, tiny_prepared, runs=tmp_path / "one").metrics
    script = tmp_path / "resume.py"
    script.write_text(RESUME)

    def start(run: Run) -> subprocess.Popen[bytes]:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        arguments = [str(script), str(run.path), str(tiny_prepared.path)]
        with (tmp_path / "stderr").open("wb") as errors:
            return subprocess.Popen(
                [sys.executable, *torchrun, *arguments], stderr=errors, start_new_session=True
            )

    whole, killed = create_run(job, tmp_path), create_run(job, tmp_path)
    assert start(whole).wait() == 0, (tmp_path / "stderr").read_text()
    metrics = whole.metrics
    assert metrics.training.world_size == 2
    assert metrics.history[0].step == alone.history[0].step
    valid, alone_valid = metrics.of("valid"), alone.of("valid")
    assert valid is not None
    assert alone_valid is not None
    assert valid["auc"] == pytest.approx(alone_valid["auc"], abs=0.03)
    process = start(killed)
    wait_for(process, killed.path / "log.jsonl", 9, tmp_path / "stderr")
    ranks = [int(path.read_text()) for path in killed.path.parent.glob(f"{killed.path.name}.*.pid")]
    assert len(ranks) == 2
    for pid in (*ranks, process.pid):
        os.kill(pid, signal.SIGSTOP)
    os.kill(process.pid, signal.SIGKILL)  # torchrun alone: each rank is in a session of its own
    process.wait()
    with pytest.raises(RunError, match="another process is training it"):
        train(killed.job, tiny_prepared, run=killed, resume=True)
    for pid in ranks:
        os.kill(pid, signal.SIGKILL)
    with locked(killed.path):
        pass  # now they are gone
    assert not killed.is_complete
    with pytest.raises(RunError, match="trained by 2 processes, found 1"):
        train(killed.job, tiny_prepared, run=killed, resume=True)
    assert start(killed).wait() == 0, (tmp_path / "stderr").read_text()
    same_training(killed.path, whole.path, only_best=True)
    evaluated = evaluate(whole)
    assert evaluated.metrics["valid"]["auc"] == pytest.approx(valid["auc"], abs=1e-6)


RESUME = """
import os, sys
from pathlib import Path
import torch
from headwater.pipelines.prepared import load_prepared
from headwater.pipelines.runs.run import open_run
from headwater.pipelines.training.train import train

torch.set_num_threads(1)
run = open_run(sys.argv[1])
Path(f"{run.path}.{os.environ['RANK']}.pid").write_text(str(os.getpid()))
train(run.job, load_prepared(Path(sys.argv[2])), run=run, resume=True)
"""


def wait_for(process: subprocess.Popen[bytes], log: Path, lines: int, errors: Path) -> None:
    """Wait until the log has so many lines."""
    while not log.exists() or len(log.read_text().splitlines()) < lines:
        assert process.poll() is None, errors.read_text()
        time.sleep(0.002)


def with_rows(
    prepared: Prepared,
    folder: Path,
    *,
    split: SplitName = "train",
    rows: int | None = None,
    weight: float | None = None,
    dense: float | None = None,
    at: int = 0,
    label: float | None = None,
    group: bool = False,
) -> Prepared:
    """Return prepared data in which one split is changed, as bad data would."""
    folder.mkdir()
    for each in prepared.splits:
        (folder / each).symlink_to((prepared.path / each).resolve())
    source = prepared.dataset(split).arrays(0)
    count = rows or (50 if split == "valid" else len(source))
    values = {name: array[:count].copy() for name, array in source.present()}
    if dense is not None:
        values["dense"][at] = dense
    if weight is not None:
        values["weight"] = np.full(count, weight, np.float32)
    if label is not None:
        values["label"][:] = label
    if group:
        values["group"] = values["label"].astype(np.int64)
    (folder / split).unlink()
    with ShardWriter(
        folder / split, prepared.schema, group=True, weight=weight is not None
    ) as writer:
        writer.write(Arrays(**values))
    return Prepared(folder, prepared.schema, prepared.splits)


def spoil_last_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def spoil_after_assembly(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Any], None]) -> None:
    """Change weights between assembly and the first step, as divergence would."""
    real = stage.place

    def spoiled(*args: Any) -> Any:
        placement = real(*args)
        spoil(placement)
        return placement

    monkeypatch.setattr(stage, "place", spoiled)
