"""RP3beta (Paudel et al., TiiS 2017): a random walk of three steps from a user, against popularity.

From an item of the history to a user who has it, and on to another item of that user: each step is taken by
its probability to the power of alpha, and the item's number of users to the power of beta divides the sum.
The first step, from the asking user, is the same for all items of a history and is left out.

U rows of users, N rows of items, C items of a block, W entries.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from pydantic import Field

from headwater.models.retrieval.neighbours import (
    CSR,
    NeighboursConfig,
    NeighboursModel,
    cooccurrences,
    degrees,
)


class RP3betaConfig(NeighboursConfig):
    """Settings of RP3beta."""

    alpha: float = Field(default=0.5, ge=0)
    """Power of the probabilities of steps."""
    beta: float = Field(default=0.1, ge=0)
    """Power of the number of users of an item, which divides its score; 0 gives P3alpha."""


class RP3beta(NeighboursModel):
    """Weights of walks from item to user to item."""

    config_class = RP3betaConfig
    config: RP3betaConfig

    def weights(self, matrix_UN: CSR) -> Iterator[CSR]:
        """Yield the weights of walks that end at the items of a block, (C, N)."""
        # A user or item without an event is on no walk.
        items_U, users_N = (np.maximum(each, 1.0) for each in degrees(matrix_UN))
        leave_N, arrive_N = users_N**-self.config.alpha, users_N**-self.config.beta
        for item_W, block_CN in cooccurrences(matrix_UN, items_U**-self.config.alpha):
            block_CN.data *= leave_N[block_CN.indices] * arrive_N[item_W]
            yield block_CN
