"""Sharding by TorchRec: the optimiser of the tables, the plan, and the wrapping."""

from __future__ import annotations

import math
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from headwater.models._torchrec import (
    DistributedModelParallel,
    EmbeddingBagCollectionSharder,
    EmbeddingShardingPlanner,
    FixedPercentageStorageReservation,
    KernelConfig,
    ParameterConstraints,
    RowWiseAdagrad,
    ShardingPlan,
    TopologyFactory,
    TrainerConfig,
    apply_optimizer_in_backward,
)
from headwater.models.network import Network
from headwater.models.placement.settings import LearnSettings
from headwater.models.tables.fused import FusedTables

BIG_TABLE_BYTES = 2**30
"""From here on a table may be cut by rows. Smaller ones stay whole: cutting them costs more exchange
than it spares memory, but the planner's estimates for CPUs would cut all of them.

Column-wise is never offered: it keeps row-wise Adagrad's state once a shard, so that a checkpoint could
not be loaded into another sharding.
"""


def shard(
    network: Network, device: torch.device, learn: LearnSettings | None
) -> DistributedModelParallel:
    """Return the network in DistributedModelParallel, its tables sharded and given first values.

    The dense part is all-reduced over ranks; on one rank it stays as it is. Without `learn` no table
    gets an optimiser: it takes the same kernel, with no state.
    """
    store = network.embeddings.store
    if learn is not None and isinstance(store, FusedTables):
        store.gives_rows = learn.sparse_l2 > 0
        _attach_optimizer(store, learn.sparse_lr)
    sharders: list[Any] = [_Sharder()]
    group = dist.GroupMember.WORLD
    assert group is not None
    plan = _planner(store, device).collective_plan(network, sharders, group)
    module = DistributedModelParallel(
        network,
        device=device,
        plan=plan,
        sharders=sharders,
        init_data_parallel=dist.get_world_size() > 1,
    )
    if isinstance(store, FusedTables):
        store.evens_sizes = "row_wise" in sharding_types(plan)
        store.initialise()
    return module


def sharding_types(plan: ShardingPlan) -> set[str]:
    """Return how the tables of a plan are cut."""
    tables: list[Any] = [each for part in plan.plan.values() for each in part.values()]  # pyright: ignore[reportAttributeAccessIssue]
    return {each.sharding_type for each in tables}


class _Sharder(EmbeddingBagCollectionSharder):
    """Offers row-wise on CPUs too: TorchRec's list leaves it out, but gloo can do it."""

    def sharding_types(self, compute_device_type: str) -> list[str]:  # noqa: ARG002
        return ["table_wise", "row_wise"]


def _attach_optimizer(store: FusedTables, lr: float) -> None:
    for layout in store.layouts:
        # Row-wise Adagrad divides by the root mean square over a row: the zeros that pad a row would
        # lengthen each step by the root of their share.
        scale = math.sqrt(layout.dim / store.padded[layout.name])
        for column in layout.tables:
            apply_optimizer_in_backward(
                RowWiseAdagrad,
                [store.parameter(layout.name, column.name)],
                {"lr": lr * scale},
            )


def _planner(store: nn.Module | None, device: torch.device) -> EmbeddingShardingPlanner:
    world_size = dist.get_world_size()
    constraints: dict[str, ParameterConstraints] = {}
    for config in store.bags.embedding_bag_configs() if isinstance(store, FusedTables) else ():
        num_bytes = config.num_embeddings * config.embedding_dim * 4
        is_cut = world_size > 1 and num_bytes >= BIG_TABLE_BYTES
        constraints[config.name] = ParameterConstraints(
            sharding_types=["row_wise", "table_wise"] if is_cut else ["table_wise"]
        )
    return EmbeddingShardingPlanner(
        topology=TopologyFactory.create_topology(
            TrainerConfig(
                world_size=world_size,
                local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", world_size)),
            ),
            kernel_config=KernelConfig(compute_device=device.type),
        ),
        storage_reservation=FixedPercentageStorageReservation(0.15),
        constraints=constraints,
    )
