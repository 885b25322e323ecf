"""From a job to a network on its device: with its optimisers to train it, with trained weights to use it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor import ShardedTensor

from headwater.feature_store.errors import RunError
from headwater.feature_store.schema import Schema
from headwater.models.network import CTRNetwork, build_network
from headwater.models.sharding import Learner, Placement, Rates, place, place_learner
from headwater.pipelines.job import Job, ModelSection, read_model
from headwater.pipelines.runs import Run
from headwater.pipelines.training.checkpoint import Checkpoints
from headwater.pipelines.training.ranks import Ranks
from headwater.pipelines.training.settings import how_tables_learn


def resolve(job: Job) -> Job:
    """Return the job with what it leaves open: every setting of its model, how its tables learn.

    JobError for a wrong `[model]` setting.
    """
    _, config = read_model(job.model.type, job.model.settings())
    section = {"type": job.model.type, **config.model_dump(mode="json")}
    mode, lr = how_tables_learn(job)
    sparse = job.train.sparse.model_copy(update={"mode": mode, "lr": lr})
    return job.model_copy(
        update={
            "model": ModelSection.model_validate(section),
            "train": job.train.model_copy(update={"sparse": sparse}),
        }
    )


def assemble(job: Job, schema: Schema, device: torch.device) -> Learner:
    """Return the untrained network of a job on `device`; JobError for a wrong `[model]` setting."""
    _, lr = how_tables_learn(job)
    train = job.train
    rates = Rates(
        sparse_lr=lr, sparse_l2=train.sparse.l2, dense_lr=train.dense.lr, dense_l2=train.dense.l2
    )
    return place_learner(_network(job, schema), rates, device)


def _network(job: Job, schema: Schema) -> CTRNetwork:
    model_class, config = read_model(job.model.type, job.model.settings())
    mode, _ = how_tables_learn(job)
    return build_network(schema, model_class, config, mode, job.train.seed)


def load_trained(run: Run, schema: Schema, device: torch.device) -> Placement:
    """Return the network of a run with the weights of its best epoch, in evaluation mode, to score with.

    One process suffices, whatever the number that trained. RunError where there is no checkpoint, or
    where it was trained with another schema.
    """
    parts = Checkpoints(run.checkpoint).load("best")
    if parts is None:
        raise RunError(
            f"{run.checkpoint}: no checkpoint yet. Train first, or go on with "
            f"`headwater train --resume {run.path}`."
        )
    network = parts["network"]
    if network["schema_hash"] != schema.hash:
        raise RunError(
            f"{run.path}: trained with schema {network['schema_hash'][:12]}, but the prepared data "
            f"has {schema.hash[:12]}: the data or [features] changed since. Train again."
        )
    placement = place(_network(run.job, schema), device)
    placement.load_weights(_shards(network["weights"], placement.weights()))
    placement.module.eval()
    return placement


def whole_state(placement: Learner, ranks: Ranks) -> dict[str, Any]:
    """Return the state with every sharded tensor whole, on rank 0; every rank must call it.

    So a checkpoint does not depend on how tables were sharded. Rank 0 needs room for whole tables.
    """
    state = placement.state_dict()
    if ranks.world_size == 1:
        return state
    parts: list[Any] = [None] * ranks.world_size
    # One gather of everything: a rank has the optimiser state of its own tables only, so that a
    # gather of each tensor would not be the same sequence of calls on every rank.
    dist.gather_object(dict(_local_shards(state)), parts if ranks.is_first else None)
    if not ranks.is_first:
        return {}
    whole = _plain_leaves(state)
    for path, (size, dtype, shards) in _merged(parts).items():
        tensor = torch.empty(size, dtype=dtype, device="cpu")
        for where, values in shards:
            tensor[where] = values.view_as(tensor[where])
        branch = whole
        for key in path[:-1]:
            branch = branch.setdefault(key, {})
        branch[path[-1]] = tensor
    return whole


def restore(placement: Learner, state: Mapping[str, Any], ranks: Ranks) -> None:
    """Put what `whole_state` gave into the network, each rank taking its shards of it."""
    live = placement.state_dict()
    if ranks.world_size > 1 and "fused" in live:
        own = {key: value for key, value in state["fused"].items() if key in live["fused"]}
        state = {**state, "fused": own}
    placement.load_state_dict(_shards(state, live))


_Path = tuple[str, ...]
_Shards = tuple[list[int], torch.dtype, list[tuple[tuple[slice, ...], torch.Tensor]]]


def _local_shards(value: Any, path: _Path = ()) -> Iterator[tuple[_Path, _Shards]]:
    """Yield each sharded tensor with its path, whole size, and this rank's shards on the CPU."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _local_shards(each, (*path, key))
    elif isinstance(value, ShardedTensor):
        metadata = value.metadata()
        shards = [
            (_place(shard.metadata), shard.tensor.detach().cpu()) for shard in value.local_shards()
        ]
        yield path, (list(metadata.size), metadata.tensor_properties.dtype, shards)


def _merged(parts: list[dict[_Path, _Shards]]) -> dict[_Path, _Shards]:
    """Return the shards of all ranks by path."""
    merged: dict[_Path, _Shards] = {}
    for part in parts:
        for path, (size, dtype, shards) in part.items():
            merged.setdefault(path, (size, dtype, []))[2].extend(shards)
    return merged


def _plain_leaves(value: Any) -> Any:
    """Return nested dicts without their sharded tensors."""
    if not isinstance(value, Mapping):
        return value
    return {
        key: _plain_leaves(each)
        for key, each in value.items()
        if not isinstance(each, ShardedTensor)
    }


def _place(shard: ShardMetadata) -> tuple[slice, ...]:
    sides = zip(shard.shard_offsets, shard.shard_sizes, strict=True)
    return tuple(slice(offset, offset + size) for offset, size in sides)


def _shards(saved: Any, live: Any) -> Any:
    """Return `saved` with live shards, filled from it, for each tensor that is sharded here."""
    if isinstance(saved, Mapping) and isinstance(live, Mapping):
        return {key: _shards(each, live.get(key)) for key, each in saved.items()}
    if not isinstance(live, ShardedTensor):
        return saved
    for shard in live.local_shards():
        values = saved[_place(shard.metadata)]
        shard.tensor.detach().copy_(values.view_as(shard.tensor))
    return live
