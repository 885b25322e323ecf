"""Interactions of users with items as arrays, and the batches and queries that are made of them.

Users and items are rows of tables: 0 is missing or padding, 1 is unknown, known ones start at 2. A basket
counts as a user.

U rows of users, N rows of items, E events, B examples, L length of the longest history of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headwater.feature_store.schema import FIRST_CODE


@dataclass(frozen=True, slots=True)
class Interactions:
    """The events of one split, by user and in the order of time."""

    num_users: int
    """Rows of users, with those for missing and unknown."""
    num_items: int
    """Rows of items, likewise."""
    starts_U: NDArray[np.int64]
    """Where the events of each user begin, and the end of all: (U + 1,)."""
    item_E: NDArray[np.int32]
    """Item of each event; of a user the oldest first. An item may come again."""
    weight_E: NDArray[np.float32] | None = None
    """Weight of each event, where the job names one."""

    def __len__(self) -> int:
        return len(self.item_E)

    def of(self, user: int) -> NDArray[np.int32]:
        """Return the items of a user, the oldest first."""
        return self.item_E[self.starts_U[user] : self.starts_U[user + 1]]

    def users(self) -> NDArray[np.int64]:
        """Return the user of each event, (E,)."""
        return np.repeat(np.arange(self.num_users), np.diff(self.starts_U))


@dataclass(frozen=True, slots=True)
class _Tensors:
    """Tensors of equally many examples."""

    def to(self, device: torch.device) -> Self:
        """Return the same on `device`, copied without blocking where the source is pinned."""
        moved = {each.name: getattr(self, each.name) for each in fields(self)}
        return type(self)(
            **{name: value.to(device, non_blocking=True) for name, value in moved.items()}
        )


@dataclass(frozen=True, slots=True)
class Queries(_Tensors):
    """B questions for items: by a user, by the history of one, or by a basket."""

    user_B: Tensor
    """int64 row of the user; 1 for one that training never saw."""
    item_BL: Tensor
    """int64 rows of the items of history or basket, the oldest first, known ones alone, then zeros."""
    length_B: Tensor
    """int64 number of the items; 0 where all are unknown."""

    def __len__(self) -> int:
        return len(self.user_B)


@dataclass(frozen=True, slots=True)
class Pairs(_Tensors):
    """B examples of a user, an item of it, and an item that is none of it."""

    user_B: Tensor
    positive_B: Tensor
    negative_B: Tensor

    def __len__(self) -> int:
        return len(self.user_B)


@dataclass(frozen=True, slots=True)
class Prefixes(_Tensors):
    """B histories, each with the item that followed."""

    item_BL: Tensor
    """int64, the oldest first, then zeros; L is the longest of the batch."""
    length_B: Tensor
    target_B: Tensor

    def __len__(self) -> int:
        return len(self.target_B)


@dataclass(frozen=True, slots=True)
class Sequences(_Tensors):
    """B users, each with the item that followed after every one of its items."""

    item_BL: Tensor
    """int64, the oldest first, then zeros; L is the longest of the batch."""
    length_B: Tensor
    target_BL: Tensor
    """int64, the next item at each place, then zeros."""

    def __len__(self) -> int:
        return len(self.length_B)


@dataclass(frozen=True, slots=True)
class Sets(_Tensors):
    """B users or baskets, each with all its items."""

    item_BL: Tensor
    """int64 distinct items, then zeros."""
    length_B: Tensor

    def __len__(self) -> int:
        return len(self.length_B)


def distinct(item_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Return the items of each row ascending, and which of them count: known ones, each at its first place.

    Both are (B, L), the second bool.
    """
    item_BL = item_BL.sort(1).values
    counts_BL = item_BL >= FIRST_CODE
    counts_BL[:, 1:] &= item_BL[:, 1:] != item_BL[:, :-1]
    return item_BL, counts_BL
