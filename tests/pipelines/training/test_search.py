"""A search from data to a release: what it finds, what it leaves, and that a stop changes nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from headwater.feature_store.errors import JobError
from headwater.models.ctr.architecture import read_architecture
from headwater.pipelines import evaluate, export, prepare, train
from headwater.pipelines.cli import main
from headwater.pipelines.job import Job, dump_job, parse_job
from headwater.pipelines.runs.checkpoint import Checkpoints
from headwater.pipelines.runs.run import Run, create_run, open_run
from headwater.serving.release import read_manifest

SIZES = {"u": 12, "v": 12, "w": 12}
MODEL: dict[str, Any] = {
    "type": "optinter",
    "embedding_dim": 4,
    "interaction_dim": 4,
    "hidden": [16],
    "min_count": 2,
    "search": {"epochs": 8, "lr": 0.01, "architecture_lr": 0.1, "l2": 1e-4},
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Job]:
    """Return a function to a job over clicks that a random sign for each cell of u and v decides."""
    folder = tmp_path_factory.mktemp("planted")
    random = np.random.default_rng(3)
    rows = 8000
    columns = {name: random.integers(0, size, rows) for name, size in SIZES.items()}
    signs = random.choice([-2.0, 2.0], (SIZES["u"], SIZES["v"]))
    logit = signs[columns["u"], columns["v"]]
    label = (random.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.int8)
    tags = [random.integers(0, 5, 2).tolist() for _ in range(rows)]
    pl.DataFrame({**columns, "tags": tags, "label": label}).write_parquet(folder / "clicks.parquet")

    def make(model: Mapping[str, Any] = MODEL, **train_settings: Any) -> Job:
        return parse_job(
            {
                "name": "planted",
                "data": {
                    "source": str(folder / "clicks.parquet"),
                    "split": {"by": "ratio", "valid": 0.2, "test": 0.2},
                },
                "features": {
                    "label": "label",
                    "columns": [
                        *({"name": name, "encoder": "vocabulary"} for name in SIZES),
                        {"name": "tags", "encoder": "vocabulary", "length": 2},
                    ],
                },
                "model": dict(model),
                "train": {"batch_size": 128, "epochs": 4, "device": "cpu"} | train_settings,
            }
        )

    return make


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("search")


@pytest.fixture(scope="module")
def searched(planted: Callable[..., Job], folder: Path) -> Run:
    """Return a whole run: searched, trained, evaluated."""
    job = planted()
    run = train(job, prepare(job, folder / "prepared"), runs=folder / "runs")
    evaluate(run)
    return run


def methods(run: Run) -> dict[str, str]:
    return {pair.name: pair.method for pair in read_architecture(run.path / "architecture.toml")}


def test_a_search_memorises_the_planted_pair_alone(searched: Run) -> None:
    assert methods(searched) == {"u x v": "memorise", "u x w": "naive", "v x w": "naive"}
    pairs = {pair.name: pair for pair in read_architecture(searched.path / "architecture.toml")}
    information = {name: pair.information for name, pair in pairs.items()}
    assert information["u x v"] > 10 * information["u x w"]
    assert searched.metrics.metrics["test"]["auc"] or 0.0 > 0.85


def test_the_trained_network_reads_and_holds_the_chosen_cross_alone(searched: Run) -> None:
    parts = Checkpoints(searched.checkpoint).load("best")
    assert parts is not None
    weights = parts["network"]["weights"]
    assert len(weights["embeddings.store.slots.crossed_BMI.weight_ND"]) == 12 * 12 + 2
    assert "embeddings.store.slots.second_BGI.weight_ND" not in weights
    assert searched.trained_job.model.settings()["architecture"][0] == {
        "columns": ["u", "v"],
        "method": "memorise",
    }
    schema = json.loads((Path(searched.metrics.prepared) / "schema.json").read_text())
    assert [column["name"] for column in schema["columns"]] == ["u", "v", "w", "tags", "u x v"]
    assert not (searched.path / "phases" / "2-train").exists()


def test_training_holds_the_chosen_tables_and_their_two_moments(searched: Run) -> None:
    parts = Checkpoints(searched.checkpoint).load("latest")
    assert parts is not None
    weights = {
        name.split(".")[3]: weight
        for name, weight in parts["network"]["weights"].items()
        if name.startswith("embeddings.store")
    }
    moments = parts["training"]["state"]["lazy"]
    assert moments.keys() == weights.keys() == {"emb_BFD", "crossed_BMI"}
    for slot, weight in weights.items():
        for moment in ("exp_avg", "exp_avg_sq"):
            assert moments[slot][moment].nbytes == weight.nbytes


def test_its_release_scores_as_it_does(searched: Run, folder: Path) -> None:
    release = export(searched, folder / "releases")
    parity = read_manifest(release).parity
    assert parity["max_abs_diff"] < 1e-5
    schema = json.loads((Path(searched.metrics.prepared) / "schema.json").read_text())
    rows = sum(column["cardinality"] for column in schema["columns"])
    assert parity["table_bytes"] == rows * 4 * 4
    parts = Checkpoints(searched.checkpoint).load("best")
    assert parts is not None
    weights = parts["network"]["weights"]
    tables = [weight for name, weight in weights.items() if name.startswith("embeddings.store")]
    assert sum(table.nbytes for table in tables) == rows * 4 * 4


def test_training_from_the_architecture_is_the_second_half_of_the_run(
    searched: Run, planted: Callable[..., Job], folder: Path
) -> None:
    path = str(searched.path / "architecture.toml")
    job = planted({**MODEL, "architecture": path})
    again = train(job, prepare(job, folder / "prepared"), runs=folder / "again")
    assert again.metrics.history[-1].valid == searched.metrics.history[-1].valid
    assert not (again.path / "phases").exists()
    # The run does not need the file again.
    assert open_run(again.path).job.model.settings()["architecture"][0]["columns"] == ["u", "v"]


def test_search_alone_stops_before_training_and_training_goes_on(
    searched: Run, planted: Callable[..., Job], folder: Path
) -> None:
    job = planted()
    data = prepare(job, folder / "prepared")
    run = train(job, data, runs=folder / "alone", search_only=True)
    assert not run.is_complete
    assert run.architecture.read_bytes() == searched.architecture.read_bytes()
    train(run.job, data, run=run, resume=True)
    assert run.metrics.history[-1].valid == searched.metrics.history[-1].valid
    with pytest.raises(JobError, match="'fm' has nothing left to search for"):
        train(planted({"type": "fm"}), data, runs=folder / "alone", search_only=True)


@pytest.mark.parametrize("stop_at", [1, 4])
def test_a_stopped_search_goes_on_to_the_same_architecture(
    searched: Run,
    planted: Callable[..., Job],
    folder: Path,
    stop_at: int,
    monkeypatch: pytest.MonkeyPatch,
    same_training: Callable[..., None],
) -> None:
    job = planted(checkpoint_steps=17)
    data = prepare(job, folder / "prepared")
    stopped = create_run(job, folder / "stopped")
    save, saved = Checkpoints.save, 0

    def stop_later(self: Checkpoints, parts: Mapping[str, Any], *, best: bool) -> None:
        nonlocal saved
        save(self, parts, best=best)
        saved += 1
        if saved == stop_at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "save", stop_later)
        with pytest.raises(KeyboardInterrupt):
            train(job, data, run=stopped)
    train(job, data, run=stopped, resume=True)
    assert stopped.architecture.read_bytes() == searched.architecture.read_bytes()
    same_training(stopped.path, searched.path, only_best=True)


# The command, killed by the system once checkpoints were saved so many times.
KILLED = """
import os, signal, sys
from headwater.pipelines.cli import main
from headwater.pipelines.runs.checkpoint import Checkpoints
save, left = Checkpoints.save, int(sys.argv[1])

def counted(*arguments, **named):
    global left
    save(*arguments, **named)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

Checkpoints.save = counted
sys.exit(main(sys.argv[2:]))
"""


def test_a_killed_search_goes_on_to_the_same_architecture(
    searched: Run, planted: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.toml").write_text(dump_job(planted(checkpoint_steps=17)))
    command = [sys.executable, "-c", KILLED, "5", "search", "job.toml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (run,) = Path("runs/planted").iterdir()
    assert not list(run.glob("phases/*/architecture.toml"))
    assert main(["train", "--resume", str(run)]) == 0
    assert open_run(run).architecture.read_bytes() == searched.architecture.read_bytes()


def test_a_budget_gives_pairs_up_and_one_below_the_main_table_is_refused(
    planted: Callable[..., Job], folder: Path
) -> None:
    job = planted({**MODEL, "max_bytes": 2000, "search": {"epochs": 1}}, epochs=1)
    run = train(job, prepare(job, folder / "prepared"), runs=folder / "small")
    assert "memorise" not in methods(run).values()
    job = planted({**MODEL, "max_bytes": 600})
    message = (
        r"model\.max_bytes: found 600, but the main table, which every architecture has, takes 784"
    )
    with pytest.raises(JobError, match=message):
        train(job, prepare(job, folder / "prepared"), runs=folder / "small")


def test_a_list_is_refused_by_name_before_any_work(
    planted: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.toml").write_text(dump_job(planted({**MODEL, "cross": ["u", "tags"]})))
    for command in ("validate", "run", "search"):
        assert main([command, "job.toml"]) == 2
        assert "model.cross: 'tags' is a list" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["job.toml"]


def test_search_prints_where_the_architecture_lies(
    planted: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    job = planted({**MODEL, "search": {"epochs": 1}})
    (tmp_path / "job.toml").write_text(dump_job(job))
    assert main(["search", "job.toml", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(read_architecture(tmp_path / result["architecture"])) == 3
    set_path = f"model.architecture={result['architecture']}"
    assert main(["train", "job.toml", "--set", set_path, "--set", "train.epochs=1"]) == 0
