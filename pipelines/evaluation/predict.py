"""Scoring a split with a network: batches in, scored rows on disk out.

B examples of a batch, W code slots.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from headwater.feature_store.errors import TrainingError
from headwater.feature_store.schema import Schema
from headwater.models.batch import Batch
from headwater.models.placement.place import Placement
from headwater.pipelines.console import Progress
from headwater.pipelines.evaluation.scores import (
    Scores,
    ScoreWriter,
    all_finite,
    join_parts,
    slice_columns,
)
from headwater.pipelines.ranks import Ranks

_ALONE = Ranks()


def predict(
    placement: Placement,
    batches: Iterable[Batch],
    schema: Schema,
    folder: Path,
    split: str,
    *,
    rows: int | None = None,
    ranks: Ranks = _ALONE,
) -> Scores | None:
    """Score batches in evaluation mode, and return the rows of all ranks on rank 0, None elsewhere.

    Files go to `folder`; `rows` is the total for the progress bar. TrainingError where a score is not
    a number. The network is left in the mode in which it was.
    """
    was_training = placement.module.training
    placement.module.eval()
    places = [place for _, place in slice_columns(schema)]
    with (
        torch.no_grad(),  # not inference_mode: fbgemm has no kernel for it on a CPU
        ScoreWriter(folder, split, rank=ranks.rank) as writer,
        Progress(
            f"score {split}", total=rows, unit="rows", closing=False, shown=ranks.is_first
        ) as bar,
    ):
        for batch, is_own in _in_step(batches, schema, ranks):
            logit = placement.logit(batch).float().cpu().numpy()
            if not is_own:
                continue
            if not all_finite(logit):
                raise TrainingError(
                    f"{split}: the network gave scores that are not numbers. "
                    "Lower train.sparse.lr or train.dense.lr, and train again."
                )
            writer.add(
                logit=logit,
                label=batch.label_B.cpu().numpy(),
                slices=batch.codes_BW[:, places].cpu().numpy(),
                group=None if batch.group_B is None else batch.group_B.cpu().numpy(),
            )
            bar.advance(len(batch) * ranks.world_size)
    placement.module.train(was_training)
    ranks.barrier()
    if not ranks.is_first:
        return None
    return join_parts(folder, split, num_slices=len(places), world_size=ranks.world_size)


def _in_step(
    batches: Iterable[Batch], schema: Schema, ranks: Ranks
) -> Iterable[tuple[Batch, bool]]:
    """Yield (batch, True); on several ranks, a rank that has ended goes on with (an idle row, False).

    Sharded tables exchange rows in every step, so each rank must take part until all have ended.
    """
    if ranks.world_size == 1:
        yield from ((batch, True) for batch in batches)
        return
    own = iter(batches)
    idle: Batch | None = None
    while True:
        batch = next(own, None)
        more = torch.tensor([batch is not None], dtype=torch.int32)
        if dist.get_backend() == "nccl":
            more = more.cuda()
        dist.all_reduce(more, op=dist.ReduceOp.MAX)
        if not more.item():
            return
        if batch is not None:
            idle = batch
            yield batch, True
        else:
            yield idle if idle is not None else _idle_row(schema, more.device), False


def _idle_row(schema: Schema, device: torch.device) -> Batch:
    return Batch(
        codes_BW=torch.zeros(1, schema.width, dtype=torch.int32, device=device),
        dense_BD=torch.zeros(1, len(schema.dense), device=device),
        label_B=torch.from_numpy(np.zeros(1, np.float32)).to(device),
    )
