"""Where a network's weights live and how they learn: on one device, or sharded over ranks.

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
from headwater.models.embeddings import Mode
from headwater.models.lazy_tables import LazyAdam, LazyTables
from headwater.models.network import CTRNetwork
from headwater.models.placement import Placement

__all__ = ["Placement", "place"]


def place(
    network: CTRNetwork,
    *,
    mode: Mode,
    sparse_lr: float,
    sparse_l2: float,
    dense_lr: float,
    dense_l2: float,
    device: torch.device,
) -> Placement:
    """Put a network on `device`, or shard it over the ranks of the process group.

    `fused` starts a process group where there is none: torchrun's, or one of this process alone, for
    which no port is opened. JobError for the other modes on more ranks than one.
    """
    assert network.embeddings.mode == mode, f"the network was built for {network.embeddings.mode}"
    tables = network.embeddings.table_parameters()
    numeric = list(network.embeddings.numeric.parameters())
    model = list(network.model.parameters())
    module: nn.Module = network
    own: Any | None = None
    if mode == "fused":
        _ensure_process_group(device)
        network.model.to(device)
        network.embeddings.numeric.to(device)
        from headwater.models.planning import shard  # TorchRec takes seconds

        module = shard(network, sparse_lr, sparse_l2, device)
        own = module.fused_optimizer
        tables = []
    elif dist.is_initialized() and dist.get_world_size() > 1:
        raise JobError(
            f"train.sparse.mode = {mode!r} trains in one process, but {dist.get_world_size()} were "
            "started. Set train.sparse.mode = 'fused', or start one process."
        )
    else:
        network.to(device)
        store = network.embeddings.store
        if isinstance(store, LazyTables):
            own = LazyAdam(store, sparse_lr, sparse_l2)
            tables = []

    # The vectors of dense columns are embeddings: the tables' penalty is theirs in both modes, and
    # the tables' learning rate where Adam learns both.
    lr = {"sparse": sparse_lr, "dense": dense_lr}
    kind = "dense" if mode == "fused" else "sparse"
    groups: list[dict[str, Any]] = [
        {"params": tables + numeric, "lr": lr[kind], "kind": kind},
        {"params": model, "lr": dense_lr, "kind": "dense"},
    ]
    groups = [group for group in groups if group["params"]]
    adam = torch.optim.Adam(groups, fused=True) if groups else None
    if adam is not None:
        _start(adam)
    penalties = [(sparse_l2, weight) for weight in tables + numeric if sparse_l2 > 0]
    penalties += [(dense_l2, weight) for weight in model if dense_l2 > 0]
    return Placement(
        network,
        module,
        device=device,
        adam=adam,
        tables=own,
        lr=lr,
        penalties=penalties,
        row_l2=sparse_l2 if mode != "dense" else 0.0,
    )


def _ensure_process_group(device: torch.device) -> None:
    if dist.is_initialized():
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    if "RANK" in os.environ and "MASTER_ADDR" in os.environ:
        dist.init_process_group(backend)
    else:
        store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)


def _start(adam: torch.optim.Adam) -> None:
    """Make Adam's state before its first step, so that a checkpoint can be loaded into it."""
    for group in adam.param_groups:
        for weight in group["params"]:
            adam.state[weight] = {
                "step": torch.zeros((), dtype=torch.float32, device=weight.device),
                "exp_avg": torch.zeros_like(weight),
                "exp_avg_sq": torch.zeros_like(weight),
            }
