"""State of a placed network as nested dicts of tensors: whole for a checkpoint, in shards while it learns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor.api import ShardedTensor

from headwater.feature_store.errors import RunError


def num_ranks() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def plain(value: Any) -> Any:
    """Return nested dicts with the plain tensor for each ShardedTensor that is whole on this rank."""
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, ShardedTensor) and dist.get_world_size() == 1:
        return value.local_shards()[0].tensor.detach()
    return value


def copy_over(live: Any, saved: Any, path: str) -> None:
    """Copy saved tensors over live ones, in nested dicts of the same keys."""
    remedy = "It was made for another model, table mode or schema."
    if isinstance(live, Mapping):
        if not isinstance(saved, Mapping) or live.keys() != saved.keys():
            found = sorted(map(str, saved)) if isinstance(saved, Mapping) else type(saved).__name__
            wanted = sorted(map(str, live))
            raise RunError(f"checkpoint, {path}: found {found}, expected {wanted}. {remedy}")
        for key, value in live.items():
            copy_over(value, saved[key], f"{path}.{key}")
    elif isinstance(live, ShardedTensor):
        for mine, other in zip(live.local_shards(), saved.local_shards(), strict=True):
            mine.tensor.detach().copy_(other.tensor)
    elif live.shape != saved.shape:
        found, wanted = tuple(saved.shape), tuple(live.shape)
        raise RunError(f"checkpoint, {path}: found shape {found}, expected {wanted}. {remedy}")
    else:
        live.detach().copy_(saved)


def whole(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state with every sharded tensor whole, on rank 0; every rank must call it.

    So a checkpoint does not depend on how tables were sharded. Rank 0 needs room for whole tables.
    """
    if num_ranks() == 1:
        return dict(state)
    is_first = dist.get_rank() == 0
    parts: list[Any] = [None] * num_ranks()
    # One gather of everything: a rank has the optimiser state of its own tables only, so that a
    # gather of each tensor would not be the same sequence of calls on every rank.
    dist.gather_object(dict(_local_shards(state)), parts if is_first else None)
    if not is_first:
        return {}
    merged = _plain_leaves(state)
    for path, (size, dtype, shards) in _merged(parts).items():
        tensor = torch.empty(size, dtype=dtype, device="cpu")
        for where, values in shards:
            tensor[where] = values.view_as(tensor[where])
        branch = merged
        for key in path[:-1]:
            branch = branch.setdefault(key, {})
        branch[path[-1]] = tensor
    return merged


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


def spread(saved: Any, live: Any) -> Any:
    """Return `saved` with live shards, filled from it, for each tensor that is sharded here."""
    if isinstance(saved, Mapping) and isinstance(live, Mapping):
        return {key: spread(each, live.get(key)) for key, each in saved.items()}
    if not isinstance(live, ShardedTensor) or isinstance(saved, ShardedTensor):
        return saved
    for shard in live.local_shards():
        values = saved[_place(shard.metadata)]
        shard.tensor.detach().copy_(values.view_as(shard.tensor))
    return live
