"""A network on its devices, and its weights: what evaluation and export need of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._shard.sharded_tensor.api import ShardedTensor

from headwater.feature_store.errors import RunError
from headwater.models.network import CTRNetwork


class Placement:
    """What `models.sharding.place` gives: `module(batch)` is the logit.

    `network` holds the same weights unwrapped.
    """

    def __init__(self, network: CTRNetwork, module: nn.Module, device: torch.device) -> None:
        self.network = network
        self.module = module
        self.device = device

    def weights(self) -> dict[str, Any]:
        """Return the live weights by name.

        In one process they are plain tensors, for `torch.save`. On more ranks tables are
        ShardedTensors, for torch.distributed.checkpoint, which loads into this very dict.
        """
        return plain(self.network.state_dict())

    def load_weights(self, weights: Mapping[str, Any]) -> None:
        """Restore what `weights` gave, bit by bit; RunError where it does not fit."""
        with torch.no_grad():
            copy_over(self.weights(), weights, "model")


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
