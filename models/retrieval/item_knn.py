"""ItemKNN (Deshpande and Karypis, TOIS 2004): items like those of a history, by the users they share.

U rows of users, N rows of items, C items of a block, W entries.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from pydantic import Field

from headwater.feature_store.schema import FIRST_CODE
from headwater.models.retrieval.neighbours import (
    CSR,
    NeighboursConfig,
    NeighboursModel,
    cooccurrences,
    degrees,
)


class ItemKNNConfig(NeighboursConfig):
    """Settings of ItemKNN."""

    shrink: float = Field(default=10.0, ge=0)
    """Added to the product of the norms, so that likeness by few users counts less."""
    user_weight: Literal["uniform", "idf"] = "uniform"
    """`idf`: a user counts by log(items / its items), so that those who take everything tell little."""


class ItemKNN(NeighboursModel):
    """Cosine of the items' users, with shrinkage: <x, y> / (|x| |y| + shrink)."""

    config_class = ItemKNNConfig
    config: ItemKNNConfig

    def weights(self, matrix_UN: CSR) -> Iterator[CSR]:
        """Yield the likeness of all items to those of a block, (C, N)."""
        items_U, _ = degrees(matrix_UN)
        square_U = np.ones(self.num_users)
        if self.config.user_weight == "idf":
            # Users without an item have no entry to weigh.
            square_U = np.log((self.num_items - FIRST_CODE) / np.maximum(items_U, 1)) ** 2
        norm_N = np.sqrt(matrix_UN.T @ square_U)
        for item_W, block_CN in cooccurrences(matrix_UN, square_U):
            block_CN.data /= norm_N[item_W] * norm_N[block_CN.indices] + self.config.shrink
            yield block_CN
