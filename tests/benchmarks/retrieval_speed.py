"""Speed of retrieval models: Headwater beside RecBole 1.2.1, one process with one thread; CPU seconds.

    .venv/bin/python tests/benchmarks/retrieval_speed.py lightgcn --book FOLDER --rival-python PYTHON --work F

lightgcn     An epoch of LightGCN on Amazon-book: 64 dimensions, 3 layers, batches of 2048.
sasrec       An epoch of SASRec on Amazon Beauty, histories of at most 50, cross-entropy: ours causal, a user
             once, at the items a step of `retrieval.py`; RecBole's, which makes a row of every history with
             its next item, at each of --rival-batches. Some batches of an epoch, in proportion.
propagation  Final vectors of all nodes with their gradients on Gowalla, 32 dimensions and 2 layers: those of
             LightGCN and DCCF, ours alone.
evaluation   Recall, MRR, NDCG, hit rate, precision and MAP at 10, 20 and 50 on MovieLens-100K, whose training
             and validation items are masked, by the inner products of an untrained BPR-MF of 64 dimensions:
             ours with three metrics more; RecBole's at each of --rival-batches.

Sides run in turn, each in a new process a round; a ratio is taken within a round, against RecBole's fastest
batch size, and above 1 Headwater takes less.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import tomli_w
from cyclopts import App
from measure import Cost, Spread, interleave, machine, ratios, run_child, table
from retrieval import USER_BATCH
from retrieval_runs import write_events

HERE = Path(__file__).parent
app = App(help=__doc__)
Job = dict[str, Any]
Side = Callable[[], Cost]


@app.command
def lightgcn(*, book: Path, rival_python: Path, work: Path | None = None, rounds: int = 3) -> None:
    """LightGCN's epoch."""
    with tempfile.TemporaryDirectory(dir=work) as name:
        folder = Path(name)
        for split in ("train", "valid", "test"):
            _write_atomic(pl.read_parquet(book / f"{split}.parquet"), folder, f"log.{split}.inter")
        model = {"type": "lightgcn", "embedding_dim": 64, "num_layers": 3}
        job = _job({"root": str(book.resolve()), **_splits()}, model, batch_size=2048)
        settings = {"embedding_size": 64, "n_layers": 3}
        _compare(
            _ours("epoch", job, folder),
            {2048: _rival(rival_python, "lightgcn", folder, 2048, settings)},
            rounds,
            "CPU s an epoch",
        )


@app.command
def sasrec(
    *,
    beauty: Path,
    rival_python: Path,
    work: Path | None = None,
    rival_batches: Sequence[int] = (256, 2048),
    rounds: int = 3,
) -> None:
    """SASRec's epoch."""
    with tempfile.TemporaryDirectory(dir=work) as name:
        folder = Path(name)
        events = folder / "events.parquet"
        write_events(beauty / "sequences.parquet", events)
        _write_atomic(pl.read_parquet(events), folder, "log.inter")
        split = {"by": "leave-one-out", "user": "user", "time": "time"}
        job = _job(
            {"source": str(events), "split": split},
            {"type": "sasrec", "max_length": 50},
            batch_size=USER_BATCH,
            time="time",
        )
        settings = {
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "loss_type": "CE",
            "train_neg_sample_args": None,
            "MAX_ITEM_LIST_LENGTH": 50,
            "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
        }
        rivals = {
            batch: _rival(
                rival_python,
                "sasrec",
                folder,
                batch,
                settings,
                "--batches",
                str(max(1, 1024 // batch)),
            )
            for batch in rival_batches
        }
        ours = _ours("epoch", job, folder, "--batches", "60")
        _compare(ours, rivals, rounds, "CPU s an epoch")


@app.command
def propagation(*, gowalla: Path, work: Path | None = None, rounds: int = 3) -> None:
    """Propagation of DCCF and of LightGCN."""
    with tempfile.TemporaryDirectory(dir=work) as name:
        folder = Path(name)
        data = {"root": str(gowalla.resolve()), "train": "train.parquet", "valid": "test.parquet"}
        sides = {
            kind: _ours(
                "propagation",
                _job(
                    data,
                    {"type": kind, "embedding_dim": 32, "num_layers": 2},
                    batch_size=4096,
                    name=kind,
                ),
                folder,
            )
            for kind in ("lightgcn", "dccf")
        }
        costs = _measured(sides, rounds)
        rows = [[kind, Spread.of(found).text(3)] for kind, found in costs.items()]
        print(f"{machine()}\n\n" + table(["", "CPU s"], rows))
        print(f"\nDCCF over LightGCN: {ratios(costs['lightgcn'], costs['dccf']).text(1)}")


@app.command
def evaluation(
    *,
    ml100k: Path,
    rival_python: Path,
    work: Path | None = None,
    rival_batches: Sequence[int] = (4096, 32768, 262144, 2097152),
    rounds: int = 3,
) -> None:
    """Evaluation over the full catalogue."""
    with tempfile.TemporaryDirectory(dir=work) as name:
        folder = Path(name)
        events = pl.read_parquet(ml100k / "interactions.parquet").select(
            user="user_id", item="item_id", time="timestamp", split="split_topn"
        )
        for split in ("train", "valid", "test"):
            part = events.filter(pl.col("split") == split).drop("split")
            part.write_parquet(folder / f"{split}.parquet")
            _write_atomic(part, folder, f"log.{split}.inter")
        data = {"root": str(folder), **_splits()}
        model = {"type": "bpr_mf", "embedding_dim": 64}
        job = _job(data, model, batch_size=1024, top_k=[10, 20, 50])
        settings = {
            "embedding_size": 64,
            "topk": [10, 20, 50],
            "metrics": ["Recall", "MRR", "NDCG", "Hit", "Precision", "MAP"],
        }
        rivals = {
            batch: _rival(rival_python, "evaluation", folder, batch, settings)
            for batch in rival_batches
        }
        _compare(_ours("evaluation", job, folder), rivals, rounds, "CPU s an evaluation")


def _splits() -> dict[str, str]:
    return {split: f"{split}.parquet" for split in ("train", "valid", "test")}


def _job(
    data: Mapping[str, Any],
    model: Mapping[str, Any],
    *,
    batch_size: int,
    time: str | None = None,
    top_k: Sequence[int] = (10,),
    name: str = "speed",
) -> Job:
    columns = {"user": "user", "item": "item"} | ({} if time is None else {"time": time})
    return {
        "name": name,
        "data": dict(data),
        "interactions": {**columns, "top_k": list(top_k)},
        "model": dict(model),
        "train": {"batch_size": batch_size, "device": "cpu"},
    }


def _write_atomic(events: pl.DataFrame, folder: Path, name: str) -> None:
    """Write events as one of RecBole's atomic files."""
    path = folder / "log" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = {"user": "user_id:token", "item": "item_id:token", "time": "timestamp:float"}
    events.rename({each: kinds[each] for each in events.columns}).write_csv(path, separator="\t")


def _ours(side: str, job: Job, folder: Path, *more: str) -> Side:
    path = folder / f"{job['name']}.toml"
    path.write_text(tomli_w.dumps(job))
    command = [sys.executable, HERE / "retrieval_side.py", side, path, "--work", folder, *more]
    return lambda: run_child(command)


def _rival(
    python: Path, side: str, folder: Path, batch: int, settings: Mapping[str, Any], *more: str
) -> Side:
    script = HERE / "rivals" / "recbole_side.py"
    shape = ["--batch", str(batch), "--settings", json.dumps(settings)]
    command = [python, script, side, folder, *shape, *more]
    return lambda: run_child(command, folder=folder)


def _measured(sides: Mapping[str, Side], rounds: int) -> dict[str, list[float]]:
    costs = interleave(sides, rounds)
    return {name: [cost.result["cpu_s"] for cost in found] for name, found in costs.items()}


def _compare(ours: Side, rivals: Mapping[int, Side], rounds: int, what: str) -> None:
    """Print what each side takes, and the ratio to the rival's fastest batch size."""
    costs = interleave(
        {"headwater": ours, **{f"recbole, batch {size:,}": side for size, side in rivals.items()}},
        rounds,
    )
    seconds = {name: [each.result["cpu_s"] for each in found] for name, found in costs.items()}
    rows: list[list[object]] = []
    for name, found in costs.items():
        users = found[0].result.get("users")
        per_s = "" if users is None else f"{users / Spread.of(seconds[name]).median:,.0f}"
        rows.append(
            [name, Spread.of(seconds[name]).text(3), found[0].result.get("steps", ""), per_s]
        )
    print(f"{machine()}; {rounds} rounds, one thread\n")
    print(table(["side", what, "steps", "users per CPU s"], rows))
    best = min(list(seconds)[1:], key=lambda name: Spread.of(seconds[name]).median)
    print(f"\n{best} over headwater: {ratios(seconds['headwater'], seconds[best]).text(1)}")
    for name, found in costs.items():
        if metrics := found[0].result.get("metrics"):
            print(f"{name}: {metrics}")


if __name__ == "__main__":
    app()
