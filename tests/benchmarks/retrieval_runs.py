"""Trainings of retrieval models by the `headwater` command, each kept as one JSON file of results.

What is there is not run again, and a training that was stopped goes on from the checkpoint of its run: a
series can be stopped and started at any time. Each training has its own job name, and so its own runs.

work/jobs/NAME.toml       the generated job
work/runs/NAME/TIME/      its run, as the command leaves it
work/results/NAME.json    what it reached on validation rows
work/tested/NAME.json     what `headwater evaluate` says of it, test rows among them
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import tomli_w

HEADWATER = Path(sys.executable).parent / "headwater"


@dataclass(frozen=True, slots=True)
class Workshop:
    """Folder of jobs, runs and results, and how long each training may be."""

    work: Path
    epochs: int | None = None
    """Most epochs of a training, to see that it starts and what one costs; those of the job when absent."""

    def trained(self, name: str, job: Mapping[str, Any]) -> dict[str, Any]:
        """Return the record of a training, made or finished now unless it is there.

        `best` is the monitored metric of the epoch that is kept, of validation rows; `run` the run's folder.
        """
        kept = self.work / "results" / f"{name}.json"
        if not kept.exists():
            run = self._train(name, job)
            metrics = json.loads((run / "metrics.json").read_text())
            seconds = [epoch["seconds"] for epoch in metrics["history"]]
            record = {
                **metrics["training"],
                "run": str(run),
                "epoch_seconds": sum(seconds) / max(1, len(seconds)),
            }
            _keep(kept, record)
            print(
                f"{name}: {record['monitor']} {record['best']:.4f} after {record['epochs']} epochs "
                f"of {record['epoch_seconds']:.1f} s",
                flush=True,
            )
        return json.loads(kept.read_text())

    def tested(self, name: str, job: Mapping[str, Any]) -> dict[str, Any]:
        """Return the splits of a training's `evaluation.json`; test rows are looked at here alone."""
        kept = self.work / "tested" / f"{name}.json"
        if not kept.exists():
            run = Path(self.trained(name, job)["run"])
            self._headwater("evaluate", "--run", run)
            splits = json.loads((run / "evaluation.json").read_text())["splits"]
            keys = (
                "metrics",
                "intervals",
                "slices",
                "users",
                "test_items",
                "unknown_items",
                "masked",
            )
            record = {split: {key: found[key] for key in keys} for split, found in splits.items()}
            _keep(kept, record)
        return json.loads(kept.read_text())

    def _train(self, name: str, job: Mapping[str, Any]) -> Path:
        """Return the complete run of a job: the one that is there, gone on with, or a new one."""
        runs = self.work.resolve() / "runs" / name
        written = self._write(name, job)
        # A run is made with its job, but a kill may come between the two.
        begun = sorted(path.parent for path in runs.glob("*/job.toml"))
        same = begun and _compared(begun[-1] / "job.toml") == _compared(written)
        if begun and not same:
            raise RuntimeError(
                f"{begun[-1]}: a run of other settings than {written} has. Remove it, or give another --work."
            )
        if begun and (begun[-1] / "metrics.json").exists():
            return begun[-1]
        if begun:
            self._headwater("train", "--resume", begun[-1])
            return begun[-1]
        self._headwater("train", written)
        return max(runs.iterdir())

    def _write(self, name: str, job: Mapping[str, Any]) -> Path:
        values: dict[str, Any] = {**job, "name": name}
        if self.epochs is not None:
            values["train"] = {**values["train"], "epochs": self.epochs}
        path = self.work.resolve() / "jobs" / f"{name}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(tomli_w.dumps(values))
        return path

    def _headwater(self, *words: str | Path) -> None:
        """Run one command in the work folder; what it says goes to standard error."""
        one = {f"{each}_NUM_THREADS": "1" for each in ("OMP", "MKL", "OPENBLAS")}
        subprocess.run(
            [HEADWATER, *words],
            cwd=self.work,
            env=os.environ | one | {"POLARS_MAX_THREADS": "1"},
            stdout=sys.stderr,
            check=True,
        )


def _compared(job: Path) -> dict[str, Any]:
    """Return the settings of a job that decide what is learned; a run's job has defaults filled in."""
    values = tomllib.loads(job.read_text())
    return {"model": values["model"]["type"], "seed": values["train"]["seed"]}


def _keep(path: Path, record: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1) + "\n")
    part.rename(path)


def write_events(sequences: Path, events: Path) -> None:
    """Write a file of users with lists of items, oldest first, as one of user, item and place."""
    if events.exists():
        return
    events.parent.mkdir(parents=True, exist_ok=True)
    part = events.with_suffix(".part")
    (
        pl.read_parquet(sequences)
        .select(
            user="user_id",
            item="items",
            time=pl.int_ranges(pl.col("items").list.len().cast(pl.Int64)),
        )
        .explode("item", "time")
        .write_parquet(part)
    )
    part.rename(events)
