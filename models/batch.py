"""A batch of encoded examples as tensors."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """B examples as the shards hold them; W code slots and D dense columns in schema order."""

    codes_BW: Tensor
    """int32; a scalar column has one slot, a list column `length` slots padded with 0."""
    dense_BD: Tensor
    """float32; missing numbers are already filled."""
    label_B: Tensor
    """float32, 0 or 1."""
    weight_B: Tensor | None = None
    """float32 training weight, where the job names one."""
    group_B: Tensor | None = None
    """int64 key of the group (by default the user) for grouped metrics, where the job names one."""
    row_B: Tensor | None = None
    """int64 number of the row in the data, where the reader was asked for it."""

    def __len__(self) -> int:
        return len(self.label_B)

    def to(self, device: torch.device) -> Batch:
        """Return the batch on `device`, copied without blocking where the source is pinned."""
        moved = (getattr(self, field.name) for field in fields(self))
        return Batch(*(None if t is None else t.to(device, non_blocking=True) for t in moved))  # pyright: ignore[reportArgumentType]
