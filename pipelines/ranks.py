"""The processes that train together: which one this is, and what they tell each other."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """The place of this process among those that torchrun started; alone it is rank 0 of 1."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """True on the rank that writes."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier()


def find_ranks() -> Ranks:
    """Return this process's place, from the variables that torchrun sets."""
    variables = (os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    rank, world_size, local_rank = (int(value or 0) for value in variables)
    return Ranks(rank, max(world_size, 1), local_rank)


def start_ranks(ranks: Ranks, device: torch.device) -> None:
    """Take the device, and join the process group of all ranks, once; one process needs none."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if ranks.world_size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def shared(value: T | None, ranks: Ranks) -> T:
    """Return rank 0's value, which is not None, on every rank."""
    values = [value]
    if ranks.world_size > 1:
        dist.broadcast_object_list(values)
    assert values[0] is not None
    return values[0]


def gathered(value: Any, ranks: Ranks) -> list[Any]:
    """Return the values of all ranks, on every rank."""
    values: list[Any] = [value]
    if ranks.world_size > 1:
        values = [None] * ranks.world_size
        dist.all_gather_object(values, value)
    return values
