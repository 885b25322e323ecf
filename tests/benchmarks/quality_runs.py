"""One training of a benchmark of quality: which job, and what it reached, kept as one JSON file.

A training whose file exists is not run again, so that a series can be stopped and started at any time.
"""

from __future__ import annotations

import json
import shutil
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from headwater.models.network import Network
    from headwater.pipelines.prepared import Prepared
    from headwater.pipelines.runs.run import Run

EXAMPLES = Path(__file__).parents[2] / "examples"

Set = Literal["frappe", "ml100k"]

MODELS: dict[Set, dict[str, dict[str, Any]]] = {
    "frappe": {
        "logistic_regression": {"embedding_dim": 1},
        "fm": {},
        "dnn": {"hidden": [400, 400, 400], "dropout": 0.2, "batch_norm": True},
        "dual_mlp": {
            "hidden_1": [400],
            "hidden_2": [100],
            "dropout_1": 0.4,
            "dropout_2": 0.4,
            "batch_norm_1": True,
            "batch_norm_2": True,
        },
        "deepfm": {"hidden": [400, 400, 400], "dropout": 0.2, "batch_norm": True},
        "dcnv2": {"hidden": [400, 400, 400], "dropout": 0.2, "batch_norm": True},
        "finalmlp": {
            "hidden_1": [400],
            "hidden_2": [100],
            "dropout_1": 0.4,
            "dropout_2": 0.4,
            "batch_norm_1": True,
            "batch_norm_2": True,
            "num_heads": 5,
            "gate_hidden": [400],
            "gate_1_context": ["user"],
            "gate_2_context": ["item"],
        },
        "small_finalmlp": {
            "type": "finalmlp",
            "hidden_1": [128],
            "hidden_2": [64],
            "dropout_1": 0.3,
            "dropout_2": 0.3,
            "batch_norm_1": True,
            "batch_norm_2": True,
            "num_heads": 4,
            "gate_hidden": [64],
            "gate_1_context": ["user"],
            "gate_2_context": ["item"],
        },
    },
    "ml100k": {
        "logistic_regression": {"embedding_dim": 1},
        "fm": {},
        "dnn": {"hidden": [128, 64], "dropout": 0.3, "batch_norm": True},
        "dual_mlp": {
            "hidden_1": [128],
            "hidden_2": [64],
            "dropout_1": 0.3,
            "dropout_2": 0.3,
            "batch_norm_1": True,
            "batch_norm_2": True,
        },
        "deepfm": {"hidden": [128, 64], "dropout": 0.3, "batch_norm": True},
        "dcnv2": {"hidden": [128, 64], "dropout": 0.3, "batch_norm": True},
        "finalmlp": {
            "hidden_1": [128],
            "hidden_2": [64],
            "dropout_1": 0.3,
            "dropout_2": 0.3,
            "batch_norm_1": True,
            "batch_norm_2": True,
            "num_heads": 4,
            "gate_hidden": [64],
            "gate_1_context": ["user_id"],
            "gate_2_context": ["item_id"],
        },
    },
}
"""Settings of each model: on Frappe those that BARS published (its deep part for all), on ML-100K less."""


@dataclass(frozen=True, slots=True)
class Training:
    """One training: data, model, table settings, seed."""

    data: Set
    model: str
    dim: int
    mode: str
    lr: float
    l2: float
    """Settings of the tables; those of all other weights are the example's."""
    seed: int
    min_delta: float = 1e-6
    """Validation AUC that an epoch must add, or the learning rates drop; 1e-6 is FuxiCTR's."""

    @property
    def name(self) -> str:
        """What its file of results is called: equal trainings of two comparisons are run once."""
        tables = f"{self.mode}-d{self.dim}-lr{self.lr:g}-l2{self.l2:g}"
        return f"{self.data}-{self.model}-{tables}-delta{self.min_delta:g}-s{self.seed}"


@dataclass(frozen=True, slots=True)
class Workshop:
    """Where the data is, and where prepared data, runs and results go."""

    data: Mapping[Set, Path]
    work: Path

    def done(self, name: str) -> dict[str, Any] | None:
        """Return the results of a training, or None where it has not ended."""
        path = self.path(name)
        return json.loads(path.read_text()) if path.exists() else None

    def path(self, name: str) -> Path:
        """Return the file of a training's results."""
        return self.work / "results" / f"{name}.json"

    def keep(self, name: str, result: Mapping[str, Any]) -> None:
        """Write the results of a training as a whole."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(result) + "\n")
        part.rename(path)

    def run(self, training: Training) -> dict[str, Any]:
        """Return the results of a training, run now unless they are there."""
        found = self.done(training.name)
        if found is not None:
            return found
        result = _train(training, self.data[training.data], self.work)
        self.keep(training.name, result)
        print(f"{training.name}: valid AUC {result['valid_auc']:.5f}", flush=True)
        return result


def _train(training: Training, data: Path, work: Path) -> dict[str, Any]:
    # Only here: a reader of tables needs no torch.
    from headwater.pipelines.job import parse_job
    from headwater.pipelines.preparing.prepare import prepare
    from headwater.pipelines.training.train import train

    values = tomllib.loads((EXAMPLES / f"{training.data}.toml").read_text(encoding="utf-8"))
    values["name"] = training.data
    values["data"]["root"] = str(data)
    settings = {"type": training.model} | MODELS[training.data][training.model]
    values["model"] = {"embedding_dim": training.dim, **settings}
    sparse = {"mode": training.mode, "lr": training.lr, "l2": training.l2}
    values["train"] |= {
        "sparse": sparse,
        "seed": training.seed,
        "min_delta": training.min_delta,
    }
    job = parse_job(values)
    prepared = prepare(job, work / "prepared")
    started_s = time.process_time()
    run = train(job, prepared, runs=work / "training" / training.name)
    cpu_s = time.process_time() - started_s
    result = {**asdict(training), **reached(run, prepared), "cpu_s": cpu_s}
    shutil.rmtree(work / "training" / training.name)
    return result


def reached(
    run: Run, prepared: Prepared, change: Callable[[Network], None] | None = None
) -> dict[str, Any]:
    """Return what a run reached; the test rows are scored here, by the network that `change` has changed."""
    import torch

    from headwater.pipelines.families.ctr import CTR
    from headwater.pipelines.family import Reading, Scoring
    from headwater.pipelines.ranks import Ranks
    from headwater.pipelines.runs.trained import load_trained

    metrics, batch_size = run.metrics, run.job.train.batch_size
    device = torch.device("cpu")
    placement = load_trained(run, prepared, device)
    if change is not None:
        change(placement.network)
    batches = CTR.examples(run.job, prepared, "test", Reading(batch_size), Ranks(), device)
    found = CTR.measure(Scoring(run.job, placement, prepared, Ranks(), run.scores), batches, "test")
    valid = metrics.of("valid")
    assert found is not None
    assert valid is not None
    return {
        "valid_auc": valid["auc"],
        "valid_logloss": valid["logloss"],
        "test_auc": found["auc"],
        "test_logloss": found["logloss"],
        "epochs": metrics.training.epochs,
        "best_epoch": metrics.training.best_epoch,
        "history": [epoch.valid["auc"] for epoch in metrics.history],
        "parameters": metrics.training.parameters,
    }
