"""Popularity: the same items for everybody, those with the most events in training.

B queries, N rows of items.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from headwater.models.retrieval.interactions import Interactions, Queries
from headwater.models.retrieval.solve import SolvedConfig, SolvedModel


class PopularityConfig(SolvedConfig):
    """Settings of popularity."""


class Popularity(SolvedModel):
    """Number of training events of each item, or the sum of their weights where they have any."""

    config_class = PopularityConfig
    config: PopularityConfig
    count_N: Tensor

    def __init__(self, config: PopularityConfig, interactions: Interactions) -> None:
        super().__init__(config, interactions)
        self.register_buffer("count_N", torch.zeros(self.num_items))

    def solve(self, note: Callable[[str], None]) -> None:  # noqa: ARG002
        """Count the events of each item."""
        events = self.interactions
        count_N = np.bincount(events.item_E, events.weight_E, self.num_items)
        self.count_N.copy_(torch.from_numpy(count_N))

    def scores(self, asked: Queries) -> Tensor:
        """Return the counts for every query, whatever its history, (B, N)."""
        return self.count_N.expand(len(asked), -1)
