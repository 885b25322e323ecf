"""Headwater's side of the speed of retrieval models, in a process of its own; `retrieval_speed.py` starts it.

    .venv/bin/python tests/benchmarks/retrieval_side.py epoch|propagation|evaluation JOB.toml --work FOLDER

Prints one JSON object of CPU seconds: of an epoch of training, reading included and evaluation not; of
propagation with its gradients; or of an evaluation of the test split.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from torch import Tensor

from headwater.models.placement.place import place
from headwater.models.retrieval.base import VectorModel
from headwater.models.retrieval.pairwise import PairwiseModel
from headwater.models.strategy import OneLoss
from headwater.pipelines.evaluation.ranking import rank
from headwater.pipelines.evaluation.ranking_metrics import measure
from headwater.pipelines.families.retrieval import asked
from headwater.pipelines.family import Reading
from headwater.pipelines.job import Job, load_job
from headwater.pipelines.prepared import Prepared
from headwater.pipelines.preparing.prepare import prepare
from headwater.pipelines.ranks import Ranks
from headwater.pipelines.resolved import job_network, learn_settings, resolve
from headwater.pipelines.training.denormals import flush_denormals
from headwater.pipelines.training.memory import keep_freed_memory
from headwater.pipelines.training.stage import open_split

CPU = torch.device("cpu")


@flush_denormals()
def epoch(job: Job, prepared: Prepared, batches: int | None) -> dict[str, Any]:
    """Return the CPU seconds of an epoch; of its first `batches`, in proportion, where that is given."""
    placement = place(job_network(job, prepared, "dense"), CPU, learn_settings(job))
    strategy = OneLoss(placement, learn_settings(job))
    examples = open_split(job, prepared, "train", Ranks(), CPU)
    placement.module.train()
    steps = -(-examples.rows // job.train.batch_size)

    def train(number: int, some: int | None) -> None:
        for batch in islice(examples.epoch(number), some):
            strategy.step(batch, len(batch), _check)

    train(0, 1)
    return {
        "cpu_s": _cpu_s(lambda: train(1, batches)) * steps / min(steps, batches or steps),
        "steps": steps,
    }


@flush_denormals()
def propagation(job: Job, prepared: Prepared, repeats: int) -> dict[str, Any]:
    """Return the CPU seconds of final vectors of all nodes, with their gradients."""
    model = cast("PairwiseModel", job_network(job, prepared, "dense").model)
    probe_VD = torch.randn(model.node_VD.shape, generator=torch.Generator().manual_seed(1))

    def once() -> None:
        model.zero_grad()
        (model.vectors() * probe_VD).sum().backward()

    once()
    return {"cpu_s": median(_cpu_s(once) for _ in range(repeats))}


def evaluation(job: Job, prepared: Prepared, repeats: int) -> dict[str, Any]:
    """Return the CPU seconds of evaluations of the test split by the untrained model, and its users."""
    model = cast("VectorModel", job_network(job, prepared, "dense").model)
    assert job.interactions is not None
    cutoffs = job.interactions.top_k
    of_split = asked(job, prepared, "test", Reading(job.train.batch_size), CPU)

    def once() -> dict[str, float]:
        ranked = rank(
            model,
            of_split.epoch(0),
            relevant=of_split.relevant,
            seen=of_split.seen,
            k=max(cutoffs),
            device=CPU,
        )
        return dict(measure(ranked, cutoffs, of_split.events_N).values)

    metrics = once()
    return {
        "cpu_s": median(_cpu_s(once) for _ in range(repeats)),
        "users": len(of_split.relevant.starts_U) - 1,
        "metrics": metrics,
    }


def _cpu_s(work: Callable[[], object]) -> float:
    started_s = time.process_time()
    work()
    return time.process_time() - started_s


def _check(loss: Tensor) -> None:
    assert loss.isfinite()


def main() -> None:
    """Run the side that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=["epoch", "propagation", "evaluation"])
    parser.add_argument("job", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder of prepared data")
    parser.add_argument("--batches", type=int, help="batches of an epoch to time; all when absent")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    keep_freed_memory()  # as training does, whose validation evaluates too
    job = resolve(load_job(args.job))
    prepared = prepare(job, args.work / "prepared")
    if args.side == "epoch":
        result = epoch(job, prepared, args.batches)
    else:
        side = propagation if args.side == "propagation" else evaluation
        result = side(job, prepared, args.repeats)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
