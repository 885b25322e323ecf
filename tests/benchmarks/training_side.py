"""One side of the training benchmark in a process of its own; `training.py` starts it.

Prints one JSON object: CPU and wall seconds of each step, the last loss, and peak memory in MiB. Headwater's
sides run the loop of `pipelines/training/` itself. Its steps on batches in memory alternate with whole epochs
from the shards, reader and thread included, so that the two can be compared within a process.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training_data import BATCH, DIM, FIELDS, make_job

from headwater.feature_store.schema_file import read_schema
from headwater.feature_store.shards import ShardSet
from headwater.models.base import Slot
from headwater.models.batch import Batch
from headwater.models.ctr.finalmlp import FinalMLP, FinalMLPConfig
from headwater.models.tables.layout import initial_table, lay_out
from headwater.pipelines.job import Job
from headwater.pipelines.prepared import Prepared, SplitName
from headwater.pipelines.training.denormals import flush_denormals


class Clock:
    """CPU and wall seconds of steps, one figure a step."""

    def __init__(self) -> None:
        self.cpu_s: list[float] = []
        self.wall_s: list[float] = []

    def time(self, work: Callable[[], object], steps: int = 1) -> None:
        """Run `work`, which is `steps` steps, and note what one of them took."""
        start_wall_s, start_cpu_s = time.perf_counter(), time.process_time()
        work()
        self.cpu_s.append((time.process_time() - start_cpu_s) / steps)
        self.wall_s.append((time.perf_counter() - start_wall_s) / steps)

    def result(self) -> dict[str, list[float]]:
        return {"cpu_s": self.cpu_s, "wall_s": self.wall_s}


@flush_denormals()
def headwater(folder: Path, mode: str | None, warmup: int, turns: int) -> dict[str, object]:
    """Run Headwater's loop: `turns` times all batches from memory, then an epoch from the shards."""
    from headwater.models.placement.place import place
    from headwater.models.strategy import OneLoss
    from headwater.pipelines.families.ctr import CTR
    from headwater.pipelines.family import Examples, Reading
    from headwater.pipelines.ranks import Ranks
    from headwater.pipelines.resolved import job_network, learn_settings, resolve
    from headwater.pipelines.runs.run import create_run
    from headwater.pipelines.training.loop import Loop, _Position

    job = resolve(make_job(mode))
    prepared = Prepared(folder, read_schema(folder / "schema.json"), ("train", "valid"))
    cpu = torch.device("cpu")
    reading = Reading(
        job.train.batch_size, seed=job.train.seed, shuffle_rows=job.train.shuffle_rows
    )
    examples: dict[SplitName, Examples] = {
        "train": CTR.examples(job, prepared, "train", reading, Ranks(), cpu),
        "valid": CTR.examples(job, prepared, "valid", Reading(job.train.batch_size), Ranks(), cpu),
    }
    learn = learn_settings(job)
    placement = place(job_network(job, prepared), cpu, learn)
    run = create_run(job, folder / "runs")
    strategy = OneLoss(placement, learn)
    loop = Loop(job, prepared, examples, run, strategy, Ranks(), folder=run.path)
    placement.module.train()
    batches = read_batches(prepared.dataset("train"))
    for batch in batches[:warmup]:
        loop._step(batch)
    memory, shards = Clock(), Clock()
    peak_mib = 0.0
    for turn in range(turns):
        for batch in batches:
            memory.time(lambda batch=batch: loop._step(batch))
        peak_mib = peak_mib or _peak_mib()
        loop.at = _Position(epoch=turn + 1)
        shards.time(loop._train_epoch, steps=len(batches))
        loss = float(loop.loss_sum) / loop.at.rows
        loop.loss_sum.zero_()
        loop.at = _Position()
    return {
        **memory.result(),
        "shards": shards.result(),
        "peak_mib": peak_mib,
        "loss": loss,  # pyright: ignore[reportPossiblyUnboundVariable]
        "mode": placement.network.embeddings.mode,
    }


def torch_model(folder: Path, warmup: int, turns: int) -> dict[str, object]:
    """Run a plain loop on an `nn.Embedding` a field under Adam(fused=True), as one would write it first."""
    schema = read_schema(folder / "schema.json")
    batches = read_batches(ShardSet.open(folder / "train", schema))
    tables = nn.ModuleList()
    (layout,) = lay_out(schema, {"emb_BFD": Slot(DIM)})
    for column in schema.columns:
        table_ND = initial_table(0, layout, column)
        tables.append(nn.Embedding.from_pretrained(table_ND, freeze=False, padding_idx=0))
    model = dense_layers(make_job(None))

    def logits(batch: Batch) -> Tensor:
        parts = [table(batch.codes_BW[:, index]) for index, table in enumerate(tables)]
        return model(torch.stack(parts, 1))

    return plain_loop(batches, nn.ModuleList([tables, model]), logits, warmup, turns)


def dense(folder: Path, warmup: int, turns: int) -> dict[str, object]:
    """Run the dense layers alone on ready embeddings, whose gradients are computed."""
    del folder
    generator = torch.Generator().manual_seed(1)
    batches: list[Batch] = []
    for _ in range(4):
        emb_BFD = torch.randn(BATCH, FIELDS, DIM, generator=generator)
        label_B = (torch.rand(BATCH, generator=generator) < 0.25).float()
        batches.append(Batch(torch.empty(BATCH, 0), emb_BFD.requires_grad_(), label_B))
    model = dense_layers(make_job(None))

    def logits(batch: Batch) -> Tensor:
        batch.dense_BD.grad = None
        return model(batch.dense_BD)

    return plain_loop(batches, model, logits, warmup, turns * 4)


def plain_loop(
    batches: list[Batch],
    module: nn.Module,
    logits: Callable[[Batch], Tensor],
    warmup: int,
    turns: int,
) -> dict[str, object]:
    """Time forward, loss, backward and Adam(fused=True), without gradient clipping or a check."""
    adam = torch.optim.Adam(module.parameters(), lr=1e-3, fused=True)

    def step(batch: Batch) -> Tensor:
        adam.zero_grad()
        loss = F.binary_cross_entropy_with_logits(logits(batch), batch.label_B)
        loss.backward()
        adam.step()
        return loss.detach()

    loss = torch.zeros(())
    for batch in batches[:warmup]:
        loss = step(batch)
    clock = Clock()
    for _ in range(turns):
        for batch in batches:
            clock.time(lambda batch=batch: step(batch))
    return {**clock.result(), "peak_mib": _peak_mib(), "loss": float(loss)}


def dense_layers(job: Job) -> FinalMLP:
    """Return the layers above the embeddings, Headwater's own on every side."""
    torch.manual_seed(0)
    config = FinalMLPConfig.model_validate(job.model.settings())
    return FinalMLP(config, num_features=FIELDS)


def read_batches(shards: ShardSet) -> list[Batch]:
    """Return the rows of the shards as batches in memory."""
    batches: list[Batch] = []
    for index in range(len(shards.shard_rows)):
        arrays = shards.arrays(index)
        codes_NW = torch.from_numpy(arrays.codes.copy())
        label_N = torch.from_numpy(arrays.label.copy())
        empty_N0 = torch.empty(len(label_N), 0)
        parts = (tensor.split(BATCH) for tensor in (codes_NW, empty_N0, label_N))
        batches += [Batch(*part) for part in zip(*parts, strict=True)]
        shards.release(index)
    return batches


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Run the side that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=["headwater", "torch", "dense"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mode", help="train.sparse.mode of Headwater; its default when absent")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--turns", type=int, default=1, help="times over the data")
    args = parser.parse_args()
    if args.side == "headwater":
        result = headwater(args.folder, args.mode, args.warmup, args.turns)
    else:
        side = torch_model if args.side == "torch" else dense
        result = side(args.folder, args.warmup, args.turns)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
