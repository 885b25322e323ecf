"""Searches and trainings of OptInter and OptEmbed, each kept as one JSON file of results.

What is there is not run again. Runs themselves lie in `work/runs`, where later ones read what they found.
"""

from __future__ import annotations

import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from quality_runs import EXAMPLES, Set, Workshop, reached

from headwater.models.network import Network
from headwater.pipelines.job import Job, parse_job
from headwater.pipelines.prepared import Prepared
from headwater.pipelines.preparing.prepare import prepare
from headwater.pipelines.release.tables import int8_rows
from headwater.pipelines.rules.release import LEAST_INT8_DIM
from headwater.pipelines.runs.run import Run, open_run
from headwater.pipelines.runs.trained import load_trained
from headwater.pipelines.training.train import train

BATCH: dict[Set, int] = {"frappe": 2048, "ml100k": 1024}
Change = Callable[[Network], None]


@dataclass(frozen=True, slots=True)
class Study:
    """Searches and trainings on one data set."""

    data: Set
    shop: Workshop

    def job(self, model: Mapping[str, Any], l2: float, seed: int) -> Job:
        """Return the job of a model; tables are dense, Adam at 1e-3."""
        values = tomllib.loads((EXAMPLES / f"{self.data}.toml").read_text(encoding="utf-8"))
        values["name"] = self.data
        values["data"]["root"] = str(self.shop.data[self.data])
        values["model"] = dict(model)
        values["train"] = {
            "batch_size": BATCH[self.data],
            "sparse": {"mode": "dense", "lr": 1e-3, "l2": l2},
            "seed": seed,
            "min_delta": 1e-4,
            "epochs": 40,
        }
        return parse_job(values)

    def prepared(self, job: Job) -> Prepared:
        """Return the prepared data of a job."""
        return prepare(job, self.shop.work / "prepared")

    def search(self, name: str, model: Mapping[str, Any], seed: int) -> tuple[Run, float]:
        """Return the run of a search alone, and its CPU seconds."""
        name = f"{self.data}-search-{name}-s{seed}"
        return searched(self.shop, name, self.job(model, 1e-3, seed))

    def train(self, name: str, model: Mapping[str, Any], l2: float, seed: int) -> dict[str, Any]:
        """Return the results of a training; `run` in them is its folder."""
        name = f"{self.data}-{name}-l2{l2:g}-s{seed}"
        return trained(self.shop, name, self.job(model, l2, seed))

    def tuned(self, name: str, model: Mapping[str, Any], penalties: tuple[float, ...]) -> float:
        """Return the L2 of tables that reaches the best validation AUC, of one seed."""
        return max(penalties, key=lambda l2: self.train(name, model, l2, 1)["valid_auc"])

    def int8(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the network of a training reaches with its tables rounded to int8 rows."""
        run = open_run(result["run"])
        prepared = self.prepared(run.job)
        return reached(run, prepared, _round) | {
            "seed": result["seed"],
            "bytes": table_bytes(run, prepared, int8=True),
        }


def searched(shop: Workshop, name: str, job: Job) -> tuple[Run, float]:
    """Return the run of a search alone, made now unless it is there, and its CPU seconds."""
    found: dict[str, Any] | None = shop.done(name)
    if found is None:
        prepared = prepare(job, shop.work / "prepared")
        started_s = time.process_time()
        run = train(job, prepared, runs=shop.work / "runs" / name, search_only=True)
        found = {"run": str(run.path), "cpu_s": time.process_time() - started_s}
        shop.keep(name, found)
        print(f"{name}: {found['cpu_s']:.0f} CPU s", flush=True)
    return open_run(found["run"]), found["cpu_s"]


def trained(shop: Workshop, name: str, job: Job) -> dict[str, Any]:
    """Return the results of a training, made now unless they are there; `run` in them is its folder."""
    found = shop.done(name)
    if found is None:
        prepared = prepare(job, shop.work / "prepared")
        started_s = time.process_time()
        run = train(job, prepared, runs=shop.work / "runs" / name)
        cpu_s = time.process_time() - started_s
        found = reached(run, prepared) | {
            "seed": job.train.seed,
            "l2": job.train.sparse.l2,
            "cpu_s": cpu_s,
            "run": str(run.path),
            "bytes": table_bytes(run, prepared),
        }
        shop.keep(name, found)
        print(
            f"{name}: valid {found['valid_auc']:.5f} {found['bytes']:,} bytes {cpu_s:.0f} s",
            flush=True,
        )
    return found


def table_bytes(run: Run, prepared: Prepared, *, int8: bool = False) -> int:
    """Return the bytes of all tables and remaps of a run's network, in float32 or in int8 with scales."""
    import torch

    embeddings = load_trained(run, prepared, torch.device("cpu")).network.embeddings
    tables = [table for slot in embeddings.tables().values() for table in slot.values()]
    remaps = [rows for slot in embeddings.remaps().values() for rows in slot.values()]
    return sum(_bytes(*table.shape, int8=int8) for table in tables) + sum(r.nbytes for r in remaps)


def _bytes(rows: int, dim: int, *, int8: bool) -> int:
    if not int8:
        return 4 * rows * dim
    return rows * (dim + 2 if dim >= LEAST_INT8_DIM else 2 * dim)


def _round(network: Network) -> None:
    """Give tables the values that a release with `export.tables = "int8"` has."""
    tables = network.embeddings.tables()
    rounded = {
        slot: {column: _rounded(table) for column, table in columns.items()}
        for slot, columns in tables.items()
    }
    network.embeddings.load(rounded, network.embeddings.numeric_weights())


def _rounded(table: np.ndarray) -> np.ndarray:
    if table.shape[1] < LEAST_INT8_DIM:
        return table.astype(np.float16).astype(np.float32)
    [values], scale_R1 = int8_rows([table])
    return values * scale_R1.astype(np.float32)
