"""OptEmbed from data to a release: what its search leaves, and that a stop changes nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headwater.feature_store.errors import JobError
from headwater.models.ctr import embedding_search
from headwater.models.ctr.pruning import read_chosen
from headwater.pipelines import evaluate, export, train
from headwater.pipelines.cli import main
from headwater.pipelines.job import Job, dump_job
from headwater.pipelines.prepared import Prepared
from headwater.pipelines.reporting.report import write_report
from headwater.pipelines.runs.checkpoint import Checkpoints
from headwater.pipelines.runs.run import Run, create_run, open_run
from headwater.pipelines.runs.trained import load_trained
from headwater.serving.release import read_manifest

TinyJob = Callable[..., Job]
MODEL: dict[str, Any] = {
    "type": "optembed",
    "base": {"type": "dnn", "embedding_dim": 6, "hidden": [16], "batch_norm": True},
    "search": {
        "epochs": 3,
        "lr": 0.01,
        "generations": 3,
        "mutations": 3,
        "crossovers": 3,
        "threshold_lr": 0.05,
        "alpha": 0.3,
    },
}
EVOLVE = Path("phases", "2-evolve")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("search")


@pytest.fixture(scope="module")
def searched(tiny_job: TinyJob, tiny_prepared: Prepared, folder: Path) -> Run:
    """Return a whole run: searched, trained, evaluated."""
    run = train(tiny_job(model=MODEL, epochs=2), tiny_prepared, runs=folder / "runs")
    evaluate(run)
    return run


def candidates(run: Run) -> dict[str, Any]:
    return json.loads((run.path / EVOLVE / "candidates.json").read_text())


def test_a_search_leaves_its_architecture_and_all_that_it_evaluated(searched: Run) -> None:
    chosen = read_chosen(searched.path)
    features = chosen.architecture.features
    assert list(features) == ["user", "item", "price", "colour", "tags"]
    assert features["price"].kept is None
    found = candidates(searched)
    dims = [tuple(each["dimensions"]) for each in found["candidates"]]
    assert len(dims) == len(set(dims)) == 18
    assert found["generations"] == 3
    assert tuple(each.dimension for each in features.values()) in dims
    for name, kept_N in chosen.kept.items():
        assert features[name].kept == kept_N.sum()
        assert features[name].rows == len(kept_N) - 1
    rows = sum(feature.rows or 0 for feature in features.values())
    assert 0 < sum(feature.kept or 0 for feature in features.values()) < rows


def test_the_trained_network_holds_the_rows_that_were_evaluated(
    searched: Run, tiny_prepared: Prepared
) -> None:
    # The published search can save another mask than the one that it evaluated.
    chosen = read_chosen(searched.path / EVOLVE)
    network = load_trained(searched, tiny_prepared, torch.device("cpu")).network
    remaps = {
        column: new_N
        for columns in network.embeddings.remaps().values()
        for column, new_N in columns.items()
    }
    for name, kept_N in chosen.kept.items():
        if name in remaps:
            assert np.array_equal(remaps[name] > 0, kept_N)
        else:
            assert kept_N[1:].all()
    slots = (*network.embeddings.tables().values(), *network.embeddings.numeric_weights().values())
    weights = [array for columns in (*slots, remaps) for array in columns.values()]
    assert sum(array.nbytes for array in weights) == chosen.architecture.bytes
    settings = searched.trained_job.model.settings()
    assert list(settings["dimensions"]) == list(chosen.architecture.features)


def test_the_report_shows_what_each_feature_keeps_and_all_candidates(searched: Run) -> None:
    text = write_report(searched).read_text(encoding="utf-8")
    assert "Rows and dimensions kept" in text
    assert "18 candidates by the weights of the search" in text
    chosen = read_chosen(searched.path).architecture
    assert f"in {chosen.bytes:,} bytes of embedding tables" in text
    for name in chosen.features:
        assert f'<td class="name">{name}</td>' in text


def test_its_release_scores_as_it_does(searched: Run, folder: Path) -> None:
    release = export(searched, folder / "releases")
    manifest = read_manifest(release)
    assert manifest.model_type == "optembed"
    assert manifest.parity["max_abs_diff"] < 1e-5


def test_training_from_the_architecture_is_the_last_part_of_the_run(
    searched: Run, tiny_job: TinyJob, tiny_prepared: Prepared, folder: Path
) -> None:
    path = str(searched.architecture)
    job = tiny_job(model={**MODEL, "architecture": path}, epochs=2)
    again = train(job, tiny_prepared, runs=folder / "again")
    assert again.metrics.history[-1].valid == searched.metrics.history[-1].valid
    assert not (again.path / "phases").exists()
    assert read_chosen(again.path).architecture == read_chosen(searched.path).architecture


def test_search_alone_stops_before_training(
    searched: Run, tiny_job: TinyJob, tiny_prepared: Prepared, folder: Path
) -> None:
    job = tiny_job(model=MODEL, epochs=2)
    run = train(job, tiny_prepared, runs=folder / "alone", search_only=True)
    assert not run.is_complete
    assert run.architecture.read_bytes() == searched.architecture.read_bytes()
    train(run.job, tiny_prepared, run=run, resume=True)
    assert run.metrics.history[-1].valid == searched.metrics.history[-1].valid


@pytest.mark.parametrize("stop_at", [2, 8])
def test_a_stopped_supernet_goes_on_to_the_same_architecture(
    searched: Run,
    tiny_job: TinyJob,
    tiny_prepared: Prepared,
    folder: Path,
    stop_at: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = tiny_job(model=MODEL, epochs=2, checkpoint_steps=3)
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
            train(job, tiny_prepared, run=stopped)
    train(job, tiny_prepared, run=stopped, resume=True, search_only=True)
    assert candidates(stopped) == candidates(searched)
    for name in ("architecture.toml", "rows.arrow"):
        assert (stopped.path / EVOLVE / name).read_bytes() == (
            searched.path / EVOLVE / name
        ).read_bytes()


@pytest.mark.parametrize("stop_at", [1, 2])
def test_an_evolution_stopped_after_a_generation_goes_on_to_the_same_architecture(
    searched: Run,
    tiny_job: TinyJob,
    tiny_prepared: Prepared,
    folder: Path,
    stop_at: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = tiny_job(model=MODEL, epochs=2)
    stopped = create_run(job, folder / "stopped")
    tell, told = embedding_search.Evolution.tell, 0

    def stop_later(self: Any, fitness: Mapping[Any, float]) -> None:
        nonlocal told
        told += 1
        if told > stop_at:
            raise KeyboardInterrupt
        tell(self, fitness)

    with monkeypatch.context() as patched:
        patched.setattr(embedding_search.Evolution, "tell", stop_later)
        with pytest.raises(KeyboardInterrupt):
            train(job, tiny_prepared, run=stopped)
    assert candidates(stopped)["generations"] == stop_at
    train(job, tiny_prepared, run=stopped, resume=True, search_only=True)
    assert candidates(stopped) == candidates(searched)
    assert stopped.architecture.read_bytes() == searched.architecture.read_bytes()


# The command, killed by the system after so many generations.
KILLED = """
import os, signal, sys
from headwater.models.ctr.embedding_search import Evolution
from headwater.pipelines.cli import main
tell, left = Evolution.tell, int(sys.argv[1])

def counted(*arguments):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    tell(*arguments)
    left -= 1

Evolution.tell = counted
sys.exit(main(sys.argv[2:]))
"""


def test_a_killed_evolution_goes_on_to_the_same_architecture(
    searched: Run, tiny_job: TinyJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.toml").write_text(dump_job(tiny_job(model=MODEL, epochs=2)))
    command = [sys.executable, "-c", KILLED, "2", "search", "job.toml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (run,) = map(open_run, Path("runs/tiny").iterdir())
    assert candidates(run)["generations"] == 2
    assert main(["train", "--resume", str(run.path)]) == 0
    assert candidates(run) == candidates(searched)
    assert run.architecture.read_bytes() == searched.architecture.read_bytes()


def test_no_candidate_above_the_budget_is_evaluated(
    searched: Run, tiny_job: TinyJob, tiny_prepared: Prepared, folder: Path
) -> None:
    sizes = sorted(each["bytes"] for each in candidates(searched)["candidates"])
    budget = sizes[len(sizes) // 4]
    job = tiny_job(model={**MODEL, "max_bytes": budget}, epochs=2)
    run = train(job, tiny_prepared, runs=folder / "small", search_only=True)
    assert max(each["bytes"] for each in candidates(run)["candidates"]) <= budget
    job = tiny_job(model={**MODEL, "max_bytes": 400}, epochs=2)
    with pytest.raises(JobError, match=r"model\.max_bytes: found 400, but the smallest candidate"):
        train(job, tiny_prepared, runs=folder / "small")


def test_dimensions_that_fused_tables_cannot_have_are_refused_before_the_search(
    tiny_job: TinyJob, tiny_prepared: Prepared, folder: Path
) -> None:
    model = {**MODEL, "base": {**MODEL["base"], "embedding_dim": 8}}
    job = tiny_job(model=model, epochs=1, sparse={"mode": "fused"})
    with pytest.raises(JobError, match=r"model\.search\.dim_multiple: found 1.* Set it to 4"):
        train(job, tiny_prepared, runs=folder / "fused")
    search = {**MODEL["search"], "epochs": 1, "generations": 1, "dim_multiple": 4}
    job = tiny_job(model={**model, "search": search}, epochs=1, sparse={"mode": "fused"})
    run = train(job, tiny_prepared, runs=folder / "fused")
    dims = {each.dimension for each in read_chosen(run.path).architecture.features.values()}
    assert dims <= {4, 8}
    assert run.is_complete
