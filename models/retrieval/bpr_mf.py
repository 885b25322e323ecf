"""BPR-MF (Rendle et al., UAI 2009): factors of users and items that rank a user's items above others.

B examples.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from headwater.models.base import ModelConfig
from headwater.models.retrieval.interactions import Interactions, Pairs
from headwater.models.retrieval.pairwise import PairwiseModel, bpr


class BPRMFConfig(ModelConfig):
    """Settings of BPR-MF."""

    embedding_dim: int = Field(default=64, gt=0)
    """Dimension of the vectors."""
    l2: float = Field(default=1e-4, ge=0)
    """Weight of half the squared norms of a batch's rows of the table, a mean over it as the loss."""


class BPRMF(PairwiseModel):
    """Matrix factorisation by the BPR loss."""

    config_class = BPRMFConfig
    config: BPRMFConfig

    def __init__(self, config: BPRMFConfig, interactions: Interactions) -> None:
        super().__init__(config, interactions)
        for rows in self.known():
            nn.init.normal_(rows, std=0.1)

    def forward(self, batch: Pairs) -> Tensor:
        """Return how far each item is above the other, (B,)."""
        return self.margin(self.vectors(), batch)

    def loss(self, output: Tensor, batch: Pairs) -> Tensor:
        """Return the sum over examples of the BPR loss and the penalty of their rows."""
        return bpr(output) + self.config.l2 / 2 * self.row_norms(batch)
