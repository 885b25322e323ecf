"""Tuning: trials as trainings of their own, judged by validation rows, and the best as a job file."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headwater.feature_store.errors import JobError, RunError, TrainingError
from headwater.pipelines.evaluation.evaluate import evaluate
from headwater.pipelines.job import Job, dump_job, load_job, with_values
from headwater.pipelines.output import locked
from headwater.pipelines.preparing.prepare import prepare
from headwater.pipelines.runs.run import newest_run, open_run
from headwater.pipelines.training.train import train
from headwater.pipelines.tuning.trials import TrialRecord, Trials
from headwater.pipelines.tuning.tune import Tuning, tune

pytestmark = pytest.mark.timeout(120)  # the first use of TorchRec in a process takes long

TinyJob = Callable[..., Job]
Search = Callable[..., Tuning]

LR = {"low": 1e-5, "high": 0.3, "log": True}


@pytest.fixture
def searching(tiny_job: TinyJob) -> Callable[..., Job]:
    """Return a function from keys, and other settings of `[tune]`, to a job that trains in a moment."""

    def make(keys: dict[str, Any], trials: int = 2, epochs: int = 2, **settings: Any) -> Job:
        job = tiny_job(model={"type": "dnn", "embedding_dim": 4, "hidden": [4]}, epochs=epochs)
        return with_values(job, {"tune": {"keys": keys, "trials": trials, **settings}})

    return make


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture
def search(tmp_path: Path, prepared: Path) -> Search:
    """Return `tune` with folders of the test."""

    def run(job: Job, **named: Any) -> Tuning:
        return tune(job, **{"runs": tmp_path, "prepared": prepared, **named})

    return run


def table(trials: Sequence[TrialRecord]) -> list[dict[str, Any]]:
    """Return the trials without what no two tunings share."""
    rows = [msgspec.to_builtins(trial) for trial in trials]
    return [{**row, "seconds": 0, "run": Path(row["run"]).name} for row in rows]


def test_a_model_that_searches_is_judged_by_the_training_that_follows(
    searching: Callable[..., Job], search: Search
) -> None:
    model = {
        "type": "optinter",
        "embedding_dim": 4,
        "interaction_dim": 4,
        "hidden": [4],
        "search": {"epochs": 1},
    }
    job = with_values(searching({"train.sparse.lr": [1e-3, 1e-2]}), {"model": model})
    found = search(job)
    for trial in found.trials:
        run = open_run(Path(trial.run))
        assert run.architecture.is_file()
        assert trial.epochs == len(run.metrics.history) == 2
        assert trial.metric == max(epoch.valid["auc"] or 0 for epoch in run.metrics.history)


def test_trials_are_runs_and_the_best_is_a_job_file_with_its_values(
    searching: Callable[..., Job], search: Search, tmp_path: Path
) -> None:
    keys = {"train.sparse.lr": LR, "model.hidden": [[4], [8, 4]]}
    found = search(searching(keys, trials=4))
    assert [trial.number for trial in found.trials] == [1, 2, 3, 4]
    assert {trial.state for trial in found.trials} == {"complete"}
    assert len({json.dumps(trial.values) for trial in found.trials}) == 4
    for trial in found.trials:
        run = open_run(trial.run)
        assert run.job.tune is None
        assert run.job.train.sparse.lr == trial.values["train.sparse.lr"]
        assert run.job.model.settings()["hidden"] == trial.values["model.hidden"]
        valid = run.metrics.of("valid")
        assert valid is not None
        assert (trial.metric, trial.gain) == (valid["auc"], valid["auc"])
        assert trial.epochs == len(run.metrics.history) == 2
        assert trial.seconds > 0
        # Weights of the best alone are kept, and rows of no test are read.
        assert run.checkpoint.exists() == (trial == found.best)
        assert "test" not in run.metrics.metrics
    assert found.best.metric == max(trial.metric or 0 for trial in found.trials)
    assert found.best_job.read_bytes() == (Path(found.best.run) / "job.toml").read_bytes()
    assert found.path.parent == tmp_path / "tiny"
    with pytest.raises(RunError, match="Train one first"):
        newest_run("tiny", tmp_path)
    assert evaluate(found.best.run).metrics["test"]["auc"]


def test_best_job_gives_the_metric_again_bit_by_bit(
    searching: Callable[..., Job], search: Search, prepared: Path, tmp_path: Path
) -> None:
    found = search(searching({"train.dense.lr": LR, "train.seed": [1, 2]}, metric="logloss"))
    job = load_job(found.best_job)
    again = train(job, prepare(job, prepared), runs=tmp_path / "again").metrics
    valid = again.of("valid")
    assert valid is not None
    assert valid["logloss"] == found.best.metric
    assert found.best.gain == -(found.best.metric or 0)
    assert found.best.gain == max(trial.gain or -9 for trial in found.trials)


def test_several_metrics_joined_are_judged_by_the_sum_of_their_gains(
    searching: Callable[..., Job], search: Search
) -> None:
    found = search(searching({"train.seed": [1, 2]}, metric="auc-logloss"))
    for trial in found.trials:
        valid = open_run(trial.run).metrics.of("valid")
        assert valid is not None
        assert trial.metric == trial.gain == (valid["auc"] or 0) - (valid["logloss"] or 0)


def test_trials_below_the_median_are_pruned_after_an_epoch(
    searching: Callable[..., Job], search: Search
) -> None:
    keys = {"train.sparse.lr": LR}
    found = search(searching(keys, trials=8, epochs=3, seed=9))
    assert {trial.state for trial in found.trials[:5]} == {"complete"}
    pruned = [trial for trial in found.trials if trial.state == "pruned"]
    assert pruned
    for trial in pruned:
        run = open_run(trial.run)
        assert not run.is_complete
        assert trial.epochs < 3
        assert trial.metric is not None
        assert not run.checkpoint.exists()
    unpruned = search(searching(keys, trials=8, epochs=3, seed=9, prune=False))
    assert {trial.state for trial in unpruned.trials} == {"complete"}
    assert [trial.values for trial in unpruned.trials[:6]] == [
        trial.values for trial in found.trials[:6]
    ]
    page = found.report.read_text()
    assert "pruned" in page
    assert page.count("<img") == 2


def test_a_trial_that_diverges_or_does_not_go_together_fails_alone(
    searching: Callable[..., Job], search: Search, tiny_job: TinyJob
) -> None:
    found = search(searching({"train.dense.lr": [1e-3, 1e30]}))
    failed = next(trial for trial in found.trials if trial.state == "failed")
    assert failed.values == {"train.dense.lr": 1e30}
    assert failed.metric is None
    assert "the loss is not finite" in (failed.error or "")
    assert found.best.values == {"train.dense.lr": 1e-3}
    assert "the loss is not finite" in found.report.read_text()
    keys = {"model.num_heads": [2, 8], "model.hidden_2": [[8], [4]]}
    job = with_values(tiny_job(epochs=1), {"tune": {"keys": keys, "trials": 4}})
    (apart,) = (trial for trial in search(job).trials if trial.state != "complete")
    assert apart.values == {"model.num_heads": 8, "model.hidden_2": [4]}
    assert "num_heads" in (apart.error or "")


def test_a_tuning_whose_trials_all_fail_is_an_error(
    searching: Callable[..., Job], search: Search
) -> None:
    with pytest.raises(TrainingError, match=r"all 2 trials failed.*the loss is not finite"):
        search(searching({"train.dense.lr": [1e30, 1e31]}))


def test_data_is_prepared_once_for_each_that_differs(
    searching: Callable[..., Job], search: Search, tmp_path: Path
) -> None:
    keys = {"data.filter": ["price > -9", "price > 0"], "train.seed": [1, 2]}
    found = search(searching(keys, trials=4, epochs=1), prepared=tmp_path / "own")
    assert len(list((tmp_path / "own").iterdir())) == 2
    of = {
        (trial.values["data.filter"], open_run(trial.run).metrics.prepared)
        for trial in found.trials
    }
    assert len(of) == 2


def test_a_tuning_that_has_ended_takes_more_trials(
    searching: Callable[..., Job], search: Search
) -> None:
    keys = {"train.sparse.lr": LR}
    whole = search(searching(keys, trials=3, epochs=1))
    job = searching(keys, trials=2, epochs=1)
    part = search(job)
    assert table(search(job, folder=part.path).trials) == table(part.trials)
    more = search(searching(keys, trials=3, epochs=1), folder=part.path)
    assert table(more.trials) == table(whole.trials)
    assert more.trials[:2] == part.trials
    with pytest.raises(RunError, match=r"begun with other settings: train\.epochs\. Only"):
        search(searching(keys, trials=3, epochs=2), folder=part.path)
    with pytest.raises(RunError, match=r"no tuning, it holds no tune\.toml"):
        search(job, folder=part.path.parent)


def stored(folder: Path) -> list[tuple[dict[str, Any], dict[int, float]]]:
    """Return values and metrics by epoch of the trials that Optuna's storage has."""
    with Trials(folder) as trials:
        return [(trial.params, trial.intermediate_values) for trial in trials.frozen]


# The command, killed once epochs were taken for the n-th time.
KILLED = """
import os, signal, sys
from headwater.pipelines.cli import main
from headwater.pipelines.tuning import tune
take, left = tune._Attempt.take, int(sys.argv[1])

def counted(*arguments):
    global left
    take(*arguments)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

tune._Attempt.take = counted
sys.exit(main(["tune", *sys.argv[2:]]))
"""


def interrupt(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Interrupt the tuning that `act` carries out where a trial has ended, before it is kept."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Trials, "add", stop)
        with pytest.raises(KeyboardInterrupt):
            act()


def test_killed_and_resumed_it_has_the_trials_of_one_that_was_not(
    searching: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = searching({"train.sparse.lr": LR, "train.batch_size": [100, 200]}, trials=4)
    job = with_values(job, {"train.checkpoint_steps": 10})
    Path("job.toml").write_text(dump_job(job))
    whole = tune(job, runs=tmp_path / "whole")
    # After the first epoch of trial 2: a trial takes its two epochs, and then all at once.
    command = [sys.executable, "-c", KILLED, "4", "job.toml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (folder,) = Path("runs/tiny").iterdir()
    (unfinished,) = (folder / "trials" / "0002" / "checkpoint").glob("0*")
    interrupt(monkeypatch, lambda: tune(job, folder=folder))  # once trial 2 has ended
    log = (folder / "trials" / "0002" / "log.jsonl").read_text()
    assert "training resumed" in log
    assert not unfinished.exists()
    assert len(stored(folder)) == 1
    found = tune(job, folder=folder)
    assert table(found.trials) == table(whole.trials)
    assert found.best_job.read_bytes() == whole.best_job.read_bytes()
    assert stored(folder) == stored(whole.path)


def test_what_is_left_of_another_job_is_trained_anew(
    searching: Callable[..., Job],
    search: Search,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    job = searching({"train.seed": [1, 2]}, epochs=1)

    interrupt(monkeypatch, lambda: search(job))
    (folder,) = (tmp_path / "tiny").iterdir()
    assert f"go on with: headwater tune --resume {folder}" in capsys.readouterr().err
    left = folder / "trials/0001/job.toml"
    left.write_text(left.read_text().replace("embedding_dim = 4", "embedding_dim = 2"))
    found = search(job, folder=folder)
    assert {
        open_run(trial.run).job.model.settings()["embedding_dim"] for trial in found.trials
    } == {4}


def test_wrong_tuning_is_refused_before_anything_is_made(
    searching: Callable[..., Job],
    search: Search,
    tiny_job: TinyJob,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(JobError, match=r"the job has no \[tune\] section"):
        search(tiny_job())
    with pytest.raises(JobError, match=r"tune\.keys: train\.sead = 1: train\.sead: unknown key"):
        search(searching({"train.sead": [1, 2]}))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(JobError, match="it trains in one process, but 2 were started"):
        search(searching({"train.seed": [1, 2]}))
    assert not list(tmp_path.iterdir())


def test_one_process_at_a_time_carries_out_a_tuning(
    searching: Callable[..., Job], search: Search
) -> None:
    job = searching({"train.seed": [1, 2]}, epochs=1)
    found = search(job)
    with locked(found.path), pytest.raises(RunError, match="another process is tuning it"):
        search(job, folder=found.path)
