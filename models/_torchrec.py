"""Imports from TorchRec and fbgemm, in one place, with their noise kept out.

They warn at import of renames inside themselves and of torch's deprecations, and torch logs their use
of `is_fx_tracing` at the first batch: none of it is for the user of Headwater. Takes a few seconds.
"""

from __future__ import annotations

import logging
import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.distributed._shard.sharded_tensor.api import ShardedTensor
    from torch.distributed.optim.apply_optimizer_in_backward import (
        _apply_optimizer_in_backward as apply_optimizer_in_backward,  # pyright: ignore[reportPrivateUsage]
    )
    from torchrec import (
        EmbeddingBagCollection,
        EmbeddingBagConfig,
        KeyedJaggedTensor,
        KeyedTensor,
        PoolingType,
    )
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
    from torchrec.distributed.model_parallel import DistributedModelParallel
    from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
    from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
    from torchrec.distributed.planner.types import KernelConfig, TopologyFactory, TrainerConfig
    from torchrec.distributed.types import ShardingPlan
    from torchrec.optim import RowWiseAdagrad

logging.getLogger("torch.fx._symbolic_trace").addFilter(
    lambda record: "is_fx_tracing" not in record.getMessage()
)

__all__ = [
    "DistributedModelParallel",
    "EmbeddingBagCollection",
    "EmbeddingBagCollectionSharder",
    "EmbeddingBagConfig",
    "EmbeddingShardingPlanner",
    "FixedPercentageStorageReservation",
    "KernelConfig",
    "KeyedJaggedTensor",
    "KeyedTensor",
    "ParameterConstraints",
    "PoolingType",
    "RowWiseAdagrad",
    "ShardedTensor",
    "ShardingPlan",
    "TopologyFactory",
    "TrainerConfig",
    "apply_optimizer_in_backward",
]
