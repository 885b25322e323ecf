"""The prepared rows of a log, as they are; without torch, which preparing has no need of.

E events of a split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwater.feature_store.schema import EncodedColumn, Lookup
from headwater.feature_store.shards import ShardSet


@dataclass(frozen=True, slots=True)
class Events:
    """The rows of a split as they were prepared."""

    user_E: NDArray[np.int32] | None
    """Code of the user; None where baskets hold the items."""
    item_E: NDArray[np.int32]
    group_E: NDArray[np.int64]
    """Key of the user or basket, whether or not training has it."""
    time_E: NDArray[np.int64] | None
    weight_E: NDArray[np.float32] | None
    label_E: NDArray[np.float32]
    """Of baskets 1 where the item is hidden, if the job names a column for it; else 1."""


def read_events(shards: ShardSet) -> Events:
    """Return all rows of a split, in their order."""
    arrays = [shards.arrays(i) for i in range(len(shards.shard_rows))]

    def whole(name: str) -> Any:
        return np.concatenate([getattr(each, name) for each in arrays])

    codes_EW = whole("codes")
    has = {name for name, _ in arrays[0].present()}
    return Events(
        codes_EW[:, 0] if codes_EW.shape[1] > 1 else None,
        codes_EW[:, -1],
        whole("group"),
        whole("time") if "time" in has else None,
        whole("weight") if "weight" in has else None,
        whole("label"),
    )


def row_keys(column: EncodedColumn) -> Sequence[int | str]:
    """Return the raw values of a vocabulary; that of row r is at r - 2."""
    return next(step.keys for step in column.steps if isinstance(step, Lookup))
