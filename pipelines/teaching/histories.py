"""Histories of many users as one padded matrix, without a step per row.

B histories, L items of the longest.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def padded(
    item_E: NDArray[np.int32], start_B: NDArray[np.int64], length_B: NDArray[np.int64]
) -> Tensor:
    """Return runs of items, each from its start, behind one another as rows: int64 (B, L), then zeros."""
    longest = int(length_B.max(initial=0))
    place_L = np.arange(longest)
    inside_BL = place_L < length_B[:, None]
    place_BL = np.where(inside_BL, start_B[:, None] + place_L, 0)
    item_BL = item_E[place_BL] if len(item_E) else np.zeros(place_BL.shape, np.int32)
    return torch.from_numpy(np.where(inside_BL, item_BL, 0).astype(np.int64))


def runs(
    first_B: NDArray[np.int64], length_B: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the events of runs, one run after another: the number of the run, and the event, (E,) each."""
    run_E = np.repeat(np.arange(len(first_B)), length_B)
    before_B = np.cumsum(length_B) - length_B
    return run_E, np.arange(len(run_E)) + np.repeat(first_B - before_B, length_B)
