"""Where a network's weights live and how they learn: on one device, or sharded over ranks.

`fused`: TorchRec's DistributedModelParallel at any world size. Tables learn by row-wise Adagrad inside
the backward pass, which costs time in the distinct codes of a batch. `dense`: the plain network under
Adam with an L2 penalty over whole tables, in one process.
"""

from __future__ import annotations

import math
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from headwater.feature_store.errors import JobError
from headwater.models.embeddings import Mode
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
    which no port is opened. JobError for `dense` on more ranks than one.
    """
    assert network.embeddings.mode == mode, f"the network was built for {network.embeddings.mode}"
    tables = network.embeddings.table_parameters()
    numeric = list(network.embeddings.numeric.parameters())
    model = list(network.model.parameters())
    module: nn.Module = network
    fused = None
    if mode == "fused":
        _ensure_process_group(device)
        network.model.to(device)
        network.embeddings.numeric.to(device)
        module = _shard(network, sparse_lr, sparse_l2, device)
        fused = module.fused_optimizer
        tables = []
    elif dist.is_initialized() and dist.get_world_size() > 1:
        raise JobError(
            f"train.sparse.mode = 'dense' trains in one process, but {dist.get_world_size()} were "
            "started. Set train.sparse.mode = 'fused', or start one process."
        )
    else:
        network.to(device)

    # The vectors of dense columns are embeddings: the tables' penalty is theirs in both modes, and
    # the tables' learning rate where Adam learns both.
    lr = {"sparse": sparse_lr, "dense": dense_lr}
    kind = "sparse" if mode == "dense" else "dense"
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
    return Placement(network, module, adam=adam, fused=fused, lr=lr, penalties=penalties)


def _ensure_process_group(device: torch.device) -> None:
    if dist.is_initialized():
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    if "RANK" in os.environ and "MASTER_ADDR" in os.environ:
        dist.init_process_group(backend)
    else:
        store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)


def _shard(network: CTRNetwork, sparse_lr: float, sparse_l2: float, device: torch.device) -> Any:
    """Return the network in DistributedModelParallel, its tables sharded and given first values."""
    from torch.distributed.optim import apply_optimizer_in_backward
    from torchrec.distributed.model_parallel import DistributedModelParallel
    from torchrec.optim import RowWiseAdagrad

    from headwater.models.fused_tables import FusedTables

    store = network.embeddings.store
    keys: list[str] = []
    if isinstance(store, FusedTables):
        keys = store.keys
        for layout in store.layouts:
            # Row-wise Adagrad divides by the root mean square over a row: the zeros that pad a row
            # would lengthen each step by the root of their share.
            scale = math.sqrt(layout.dim / store.padded[layout.name])
            for column in layout.tables:
                apply_optimizer_in_backward._apply_optimizer_in_backward(  # pyright: ignore[reportPrivateUsage]
                    RowWiseAdagrad,
                    [store.parameter(layout.name, column.name)],
                    {"lr": sparse_lr * scale, "weight_decay": sparse_l2},
                )
    sharders = [_sharder()]
    module = DistributedModelParallel(
        network,
        device=device,
        plan=_plan(network, keys, sharders, device),
        sharders=sharders,
        init_data_parallel=dist.get_world_size() > 1,
    )
    if isinstance(store, FusedTables):
        store.initialise()
    return module


def _sharder() -> Any:
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import WeightDecayMode
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder

    class Sharder(EmbeddingBagCollectionSharder):
        """Offers row-wise on CPUs too: TorchRec's list leaves it out, but gloo can do it."""

        def sharding_types(self, compute_device_type: str) -> list[str]:  # noqa: ARG002
            return ["table_wise", "row_wise"]

    return Sharder(fused_params={"weight_decay_mode": WeightDecayMode.L2})


def _plan(network: CTRNetwork, keys: list[str], sharders: list[Any], device: torch.device) -> Any:
    """Return TorchRec's plan, equal on all ranks.

    Column-wise is left out: it keeps row-wise Adagrad's state once a shard, so that a checkpoint
    could not be loaded into another sharding.
    """
    from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
    from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
    from torchrec.distributed.planner.types import KernelConfig, TopologyFactory, TrainerConfig

    world_size = dist.get_world_size()
    planner = EmbeddingShardingPlanner(
        topology=TopologyFactory.create_topology(
            TrainerConfig(
                world_size=world_size,
                local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", world_size)),
            ),
            kernel_config=KernelConfig(compute_device=device.type),
        ),
        storage_reservation=FixedPercentageStorageReservation(0.15),
        constraints={
            key: ParameterConstraints(sharding_types=["table_wise", "row_wise"]) for key in keys
        },
    )
    group = dist.GroupMember.WORLD
    assert group is not None
    return planner.collective_plan(network, sharders, group)


def _start(adam: torch.optim.Adam) -> None:
    """Make Adam's state before its first step, so that a checkpoint can be loaded into it."""
    for group in adam.param_groups:
        for weight in group["params"]:
            adam.state[weight] = {
                "step": torch.zeros((), dtype=torch.float32, device=weight.device),
                "exp_avg": torch.zeros_like(weight),
                "exp_avg_sq": torch.zeros_like(weight),
            }
