"""Retrieval jobs from a log to a judged model, by the commands and the API."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from headwater.feature_store.errors import JobError, TrainingError
from headwater.pipelines import evaluate, prepare, train, tune
from headwater.pipelines.cli import main
from headwater.pipelines.job import Job, dump_job, parse_job
from headwater.pipelines.reporting.report import write_report
from headwater.pipelines.runs.checkpoint import Checkpoints
from headwater.pipelines.runs.run import create_run, open_run
from headwater.serving.release import read_manifest

USERS, ITEMS, GROUPS = 80, 40, 4
LEAVE_ONE_OUT = {"by": "leave-one-out", "user": "who", "time": "at"}

MakeJob = Callable[..., Job]


@pytest.fixture(scope="module")
def log_job(tmp_path_factory: pytest.TempPathFactory) -> MakeJob:
    """Return a function to a job over users who take items of their own group, one after another."""
    folder = tmp_path_factory.mktemp("log")
    random = np.random.default_rng(5)
    rows = [
        (f"user {user}", f"item {random.integers(0, ITEMS // GROUPS) * GROUPS + user % GROUPS}", at)
        for user in range(USERS)
        for at in range(random.integers(6, 10))
    ]
    frame = pl.DataFrame(rows, schema=["who", "what", "at"], orient="row")
    frame.write_parquet(folder / "log.parquet")

    def make(model: dict[str, Any], section: dict[str, Any] | None = None, **settings: Any) -> Job:
        return parse_job(
            {
                "name": "log",
                "data": {"source": str(folder / "log.parquet"), "split": LEAVE_ONE_OUT},
                "interactions": {
                    "user": "who",
                    "item": "what",
                    "time": "at",
                    "top_k": [5, 10],
                    "mask_seen": False,
                    **(section or {}),
                },
                "model": {"embedding_dim": 8, **model},
                "train": {
                    "batch_size": 64,
                    "epochs": 8,
                    "device": "cpu",
                    "dense": {"lr": 0.05},
                    **settings,
                },
            }
        )

    return make


SOLVED: dict[str, Any] = {"embedding_dim": 1}
LITTLE_DROPOUT: dict[str, Any] = {"dropout": 0.1, "attention_dropout": 0.1}


@pytest.mark.parametrize(
    ("model", "settings", "least"),
    [
        ("popularity", SOLVED, 0.2),
        ("item_knn", SOLVED, 0.6),
        ("rp3beta", SOLVED, 0.6),
        ("ease", SOLVED | {"l2": 10.0}, 0.6),
        ("bpr_mf", {}, 0.6),
        ("lightgcn", {}, 0.6),
        ("dccf", {"num_intents": 4, "draws": 512}, 0.6),
        ("sasrec", {"way": "prefixes", **LITTLE_DROPOUT}, 0.6),
        ("cl4srec", LITTLE_DROPOUT, 0.6),
        ("mclrec", LITTLE_DROPOUT, 0.6),
        ("multi_dae", {"hidden": [8]}, 0.6),
    ],
)
def test_a_model_learns_who_takes_what(
    log_job: MakeJob, tmp_path: Path, model: str, settings: dict[str, Any], least: float
) -> None:
    job = log_job({"type": model, **settings})
    run = train(job, prepare(job, tmp_path / "prepared"), runs=tmp_path / "runs")
    evaluate(run)
    found = run.metrics.metrics["test"]
    # Of ten items of a group ten are answered; at random it is a quarter of all.
    assert (found["recall@10"] or 0.0) > least
    report = write_report(run).read_text(encoding="utf-8")
    assert "nothing is masked" in report
    evaluation = json.loads((run.path / "evaluation.json").read_text())
    assert evaluation["family"] == "retrieval"
    (example, *_) = evaluation["splits"]["test"]["examples"]
    assert example["user"].startswith("user ")
    assert all(each["item"].startswith("item ") for each in example["shown"])
    assert len(example["history"]) > 3


def test_what_a_user_took_is_no_answer_unless_the_job_says_so(
    log_job: MakeJob, tmp_path: Path
) -> None:
    shown: dict[Any, list[list[str]]] = {}
    for masks in (True, "train", False):
        job = log_job({"type": "bpr_mf"}, {"mask_seen": masks}, epochs=2)
        run = train(job, prepare(job, tmp_path / "prepared"), runs=tmp_path / "runs")
        evaluate(run)
        split = json.loads((run.path / "evaluation.json").read_text())["splits"]["test"]
        shown[masks] = [
            sorted({each["item"] for each in example["shown"]} & set(example["history"]))
            for example in split["examples"]
        ]
        assert split["masked"] == {True: ["train", "valid"], "train": ["train"], False: []}[masks]
    assert not any(shown[True])
    assert any(shown[False])
    # With training alone masked, at most the item of validation comes again.
    assert all(len(each) <= 1 for each in shown["train"])


@pytest.mark.parametrize(
    "model",
    [{"type": "dccf", "num_intents": 4, "draws": 512}, {"type": "mclrec", "inner_dim": 16}],
)
def test_a_stopped_training_goes_on_to_the_same_bits(
    log_job: MakeJob,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    same_training: Callable[..., None],
    model: dict[str, Any],
) -> None:
    job = log_job(model, epochs=2, checkpoint_steps=3)
    data = prepare(job, tmp_path / "prepared")
    whole = train(job, data, runs=tmp_path / "whole")
    stopped = create_run(job, tmp_path / "stopped")
    save, saved = Checkpoints.save, 0

    def stop_later(self: Checkpoints, parts: Any, *, best: bool) -> None:
        nonlocal saved
        save(self, parts, best=best)
        saved += 1
        if saved == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "save", stop_later)
        with pytest.raises(KeyboardInterrupt):
            train(job, data, run=stopped)
    train(job, data, run=stopped, resume=True)
    same_training(stopped.path, whole.path, only_best=True)


def test_a_stopped_solve_is_done_again(
    log_job: MakeJob,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    same_training: Callable[..., None],
) -> None:
    job = log_job({"type": "item_knn", **SOLVED})
    data = prepare(job, tmp_path / "prepared")
    whole = train(job, data, runs=tmp_path / "whole")
    assert whole.metrics.training.stopped == "solved"
    stopped = create_run(job, tmp_path / "stopped")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("headwater.models.retrieval.neighbours.largest", stop)
        with pytest.raises(KeyboardInterrupt):
            train(job, data, run=stopped)
    assert not stopped.is_complete
    train(job, data, run=stopped, resume=True)
    same_training(stopped.path, whole.path)


# The command, killed by the system when it calls a function for the n-th time.
KILLED = """
import importlib, os, signal, sys
from headwater.pipelines.cli import main
place, name, left = importlib.import_module(sys.argv[1]), sys.argv[2], int(sys.argv[3])
owner, _, name = name.rpartition(".")
owner = getattr(place, owner) if owner else place
act = getattr(owner, name)

def counted(*arguments, **named):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return act(*arguments, **named)

setattr(owner, name, counted)
sys.exit(main(sys.argv[4:]))
"""


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("model", "killed_at"),
    [
        ({"type": "ease", **SOLVED}, ("headwater.models.retrieval.ease", "get_lapack_funcs", "1")),
        (
            {"type": "mclrec", "inner_dim": 16},
            ("headwater.pipelines.runs.checkpoint", "Checkpoints.save", "4"),
        ),
    ],
)
def test_a_killed_command_goes_on_to_the_same_bits(
    log_job: MakeJob,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    same_training: Callable[..., None],
    model: dict[str, Any],
    killed_at: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    job = log_job(model, epochs=2, checkpoint_steps=3)
    Path("job.toml").write_text(dump_job(job))
    whole = train(job, prepare(job), runs="whole")
    command = [sys.executable, "-c", KILLED, *killed_at, "train", "job.toml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (stopped,) = Path("runs/log").iterdir()
    assert not open_run(stopped).is_complete
    assert main(["train", "--resume", str(stopped)]) == 0
    same_training(stopped, whole.path, only_best=True)


@pytest.mark.parametrize(
    "model",
    [
        {"type": "popularity", **SOLVED},
        {"type": "item_knn", **SOLVED},
        {"type": "sasrec", "max_length": 3},
        {"type": "multi_dae", "hidden": [8]},
    ],
)
def test_what_training_never_saw_and_lists_beyond_the_catalogue_have_an_outcome(
    tmp_path: Path, model: dict[str, Any]
) -> None:
    def write(split: str, rows: list[tuple[str, str, int]]) -> str:
        rows = [(f"{bag} of {split}", item, hidden) for bag, item, hidden in rows]
        frame = pl.DataFrame(rows, schema=["bag", "what", "hidden"], orient="row")
        frame.write_parquet(tmp_path / f"{split}.parquet")
        return str(tmp_path / f"{split}.parquet")

    known = [("bag", f"item {number}", 0) for number in range(6)]
    bags = [(f"{bag} {number}", item, hidden) for number in range(9) for bag, item, hidden in known]
    asked = [
        *[("long", f"item {number}", int(number == 5)) for number in range(6)],
        *[("unknown history", "never seen", 0), ("unknown history", "item 2", 1)],
        *[("unknown answer", "item 1", 0), ("unknown answer", "also never seen", 1)],
    ]
    job = parse_job(
        {
            "name": "edges",
            "data": {
                "train": write("train", bags),
                "valid": write("valid", asked),
                "test": write("test", asked),
            },
            "interactions": {
                "basket": "bag",
                "item": "what",
                "hidden": "hidden",
                "top_k": [5, 200],
            },
            "model": {"embedding_dim": 8, **model},
            "train": {"batch_size": 4, "epochs": 1, "device": "cpu"},
        }
    )
    run = train(job, prepare(job, tmp_path / "prepared"), runs=tmp_path / "runs")
    evaluate(run)
    split = json.loads((run.path / "evaluation.json").read_text())["splits"]["test"]
    assert (split["users"], split["test_items"], split["unknown_items"]) == (3, 3, 1)
    # Six items are the catalogue: whatever is known and not shown is among the first 200.
    assert split["metrics"]["recall@200"] == pytest.approx(2 / 3)
    assert all(len(example["shown"]) <= 6 for example in split["examples"])


def test_settings_of_a_retrieval_model_are_tuned(
    log_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    job = log_job({"type": "bpr_mf"}, epochs=2).model_dump(mode="json", exclude_unset=True)
    rates = {"train.dense.lr": [1e-6, 0.1]}
    job = parse_job({**job, "tune": {"trials": 2, "metric": "recall@5", "keys": rates}})
    Path("job.toml").write_text(dump_job(job))
    assert main(["validate", "job.toml"]) == 0
    assert main(["tune", "job.toml", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    reached = {trial["values"]["train.dense.lr"]: trial["metric"] for trial in result["trials"]}
    assert reached[0.1] > reached[1e-6]
    solved = log_job({"type": "item_knn", **SOLVED}).model_dump(mode="json", exclude_unset=True)
    keys = {"model.num_neighbours": [1, 20]}
    found = tune(parse_job({**solved, "tune": {"trials": 2, "keys": keys}}), runs="solved")
    assert all(trial.metric is not None for trial in found.trials)


def test_a_csv_of_events_comes_to_a_report_by_the_commands_alone(
    log_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    source = log_job({"type": "item_knn", **SOLVED}).data.source
    assert isinstance(source, str)
    log = pl.read_parquet(source).with_columns(pl.col("at") * 3600 + 1_700_000_000)
    log.rename({"who": "shopper", "what": "article", "at": "bought_at"}).write_csv("orders.csv")
    assert main(["init", "orders.csv"]) == 0
    assert main(["validate", "orders.toml"]) == 0
    assert main(["run", "orders.toml", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert Path(result["report"]).is_file()
    assert result["metrics"]["test"]["recall@10"] > 0


def test_baskets_are_completed_by_items_like_theirs(log_job: MakeJob, tmp_path: Path) -> None:
    by_user = log_job({"type": "item_knn", **SOLVED})
    content = by_user.model_dump(mode="json", exclude_unset=True)
    content["data"]["split"] = {"by": "ratio", "valid": 0.2, "test": 0.2}
    content["interactions"] = {"basket": "who", "item": "what", "top_k": [5, 10]}
    job = parse_job(content)
    run = train(job, prepare(job, tmp_path / "prepared"), runs=tmp_path / "runs")
    evaluate(run)
    assert (run.metrics.metrics["test"]["recall@10"] or 0.0) > 0.6


def test_a_model_of_another_family_is_refused_with_its_section(
    log_job: MakeJob, tiny_job: Callable[..., Job], tmp_path: Path
) -> None:
    job = log_job({"type": "fm"})
    with pytest.raises(JobError, match=r"'fm' foretells a label: declare \[features\]"):
        train(job, prepare(job, tmp_path / "prepared"), runs=tmp_path / "runs")
    job = tiny_job({"type": "lightgcn"})
    with pytest.raises(JobError, match=r"'lightgcn' answers with items .* \[interactions\]"):
        train(job, prepare(job, tmp_path / "prepared"), runs=tmp_path / "runs")


def test_the_commands_carry_a_log_to_a_release(
    log_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    job = log_job({"type": "lightgcn"}, epochs=2)
    (tmp_path / "job.toml").write_text(dump_job(job))
    assert main(["validate", "job.toml"]) == 0
    assert main(["run", "job.toml", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert open_run(result["run"]).is_complete
    assert read_manifest(Path(result["release"])).kind == "retriever"
    assert main(["export", "job.toml", "--set", "export.tables='int8'"]) == 2
    assert "export.tables: a retriever has float32 vectors" in capsys.readouterr().err


def test_a_loss_that_diverges_is_named(log_job: MakeJob, tmp_path: Path) -> None:
    job = log_job({"type": "bpr_mf"}, dense={"lr": 1e38}, clip_norm=1e38)
    with pytest.raises(TrainingError, match=r"not finite|not numbers"):
        train(job, prepare(job, tmp_path / "prepared"), runs=tmp_path / "runs")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_train_as_one(
    log_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    job = log_job({"type": "lightgcn"}, epochs=3)
    (tmp_path / "job.toml").write_text(dump_job(job))
    alone = train(job, prepare(job, "prepared"), runs="alone")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [sys.executable, *torchrun, "-m", "headwater.pipelines.cli", "train"]
    subprocess.run([*command, "job.toml"], check=True)
    (run,) = map(open_run, Path("runs/log").iterdir())
    assert run.metrics.training.world_size == 2
    for ours, theirs in zip(run.metrics.history, alone.metrics.history, strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, abs=1e-4)
        assert ours.valid["ndcg@10"] == pytest.approx(theirs.valid["ndcg@10"], abs=0.02)
    contrast = log_job({"type": "dccf", "num_intents": 4})
    (tmp_path / "job.toml").write_text(dump_job(contrast))
    done = subprocess.run([*command, "job.toml"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "DCCF compares the rows of a batch with each other" in done.stderr
