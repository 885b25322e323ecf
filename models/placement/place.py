"""Where a network's weights live, and how they learn there: on one device, or sharded over ranks.

`fused`: TorchRec's DistributedModelParallel at any world size. Tables learn by row-wise Adagrad inside
the backward pass, which costs time in the distinct codes of a batch. In one process only: `lazy`, the plain
network under an Adam that computes the rows of the batch alone, at much the same cost; `dense`, the same
under Adam over whole tables at every step.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from headwater.feature_store.errors import JobError
from headwater.models.network import CTRNetwork
from headwater.models.placement.learner import Learner, Rates
from headwater.models.placement.placement import Placement
from headwater.models.tables.lazy import LazyAdam, LazyTables

__all__ = ["Learner", "Placement", "Rates", "place", "place_learner"]


def place(network: CTRNetwork, device: torch.device) -> Placement:
    """Put a network on `device`, or shard it over the ranks of the process group, to score with it.

    It has no optimisers, which cost memory, and at first use seconds. `fused` starts a process group
    where there is none: torchrun's, or one of this process alone, for which no port is opened. JobError
    for the other modes on more ranks than one.
    """
    return Placement(network, _on_device(network, device, None), device)


def place_learner(network: CTRNetwork, rates: Rates, device: torch.device) -> Learner:
    """Put a network on its devices as `place` does, with its optimisers, to train it."""
    module: Any = _on_device(network, device, rates)
    store = network.embeddings.store
    tables: Any | None = None
    if network.embeddings.mode == "fused":
        tables = module.fused_optimizer
    elif isinstance(store, LazyTables):
        tables = LazyAdam(store, rates.sparse_lr, rates.sparse_l2)
    return Learner(network, module, device, rates, tables)


def _on_device(network: CTRNetwork, device: torch.device, rates: Rates | None) -> nn.Module:
    """Return what is to be called, with the network's weights on its devices."""
    mode = network.embeddings.mode
    if mode == "fused":
        _ensure_process_group(device)
        network.model.to(device)
        network.embeddings.numeric.to(device)
        from headwater.models.placement.plan import shard  # TorchRec takes seconds

        return shard(network, device, rates)
    if dist.is_initialized() and dist.get_world_size() > 1:
        raise JobError(
            f"train.sparse.mode = {mode!r} trains in one process, but {dist.get_world_size()} were "
            "started. Set train.sparse.mode = 'fused', or start one process."
        )
    return network.to(device)


def _ensure_process_group(device: torch.device) -> None:
    if dist.is_initialized():
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    if "RANK" in os.environ and "MASTER_ADDR" in os.environ:
        dist.init_process_group(backend)
    else:
        store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
