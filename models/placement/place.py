"""Placement of a network: on one device, or sharded over ranks, ready to learn or only to score.

`fused`: TorchRec's DistributedModelParallel at any world size. Tables learn by row-wise Adagrad inside
the backward pass, which costs time in the distinct codes of a batch. In one process only: `lazy`, the plain
network under an Adam that computes the rows of the batch alone, at much the same cost; `dense`, the same
under Adam over whole tables at every step. A network without tables is replicated, and ranks average its
gradients.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from headwater.feature_store.errors import JobError
from headwater.models.network import Network
from headwater.models.placement.placement import Placement
from headwater.models.placement.settings import LearnSettings
from headwater.models.placement.state import num_ranks


def place(network: Network, device: torch.device, learn: LearnSettings | None = None) -> Placement:
    """Put a network on `device`, or shard it over the ranks of the process group.

    Fused tables learn only where `learn` is given: their optimiser is part of the backward pass, and costs
    memory and at first use seconds. `fused` starts a process group where there is none: torchrun's, or one
    of this process alone, for which no port is opened. JobError for the other modes on more ranks than one.
    """
    mode = network.embeddings.mode
    if network.embeddings.store is None and num_ranks() > 1:
        return Placement(network, _replicated(network.to(device), device), device)
    if mode == "fused":
        _ensure_process_group(device)
        network.model.to(device)
        network.embeddings.numeric.to(device)
        if network.embeddings.remap is not None:
            network.embeddings.remap.to(device)
        from headwater.models.placement.plan import shard  # TorchRec takes seconds

        module: Any = shard(network, device, learn)
        return Placement(network, module, device, None if learn is None else module.fused_optimizer)
    if num_ranks() > 1:
        raise JobError(
            f"train.sparse.mode = {mode!r} trains in one process, but {dist.get_world_size()} were "
            "started. Set train.sparse.mode = 'fused', or start one process."
        )
    return Placement(network, network.to(device), device)


def _replicated(network: Network, device: torch.device) -> nn.Module:
    """Return a network whose gradients are averaged over ranks; as it is where nothing learns by them."""
    if not any(weight.requires_grad for weight in network.parameters()):
        return network
    return DistributedDataParallel(network, [device] if device.type == "cuda" else None)


def _ensure_process_group(device: torch.device) -> None:
    if dist.is_initialized():
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    if "RANK" in os.environ and "MASTER_ADDR" in os.environ:
        dist.init_process_group(backend)
    else:
        store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
