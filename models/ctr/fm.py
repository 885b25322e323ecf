"""Factorization machine (Rendle, ICDM 2010).

Every value of a feature has a weight and a vector. The logit is a bias, the weights, and the inner
products of the vectors of all pairs of features: pairs that never met still share their vectors.

B examples, F features, D embedding dimension.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from headwater.models.base import ModelConfig, Slot
from headwater.models.ctr.base import CTRModel
from headwater.models.layers import pairwise


class FMConfig(ModelConfig):
    """Settings of the factorization machine: the shared ones."""


class FM(CTRModel):
    """Bias, first-order weights, and all pairwise inner products."""

    config_class = FMConfig

    def __init__(self, config: FMConfig, *, num_features: int) -> None:
        super().__init__(config, num_features=num_features)
        self.bias = nn.Parameter(torch.zeros(()))

    @classmethod
    def slots(cls, config: ModelConfig) -> Mapping[str, Slot]:
        """Return the main slot and that of first-order weights."""
        return {"emb_BFD": Slot(config.embedding_dim), "first_BF1": Slot(1)}

    def forward(self, emb_BFD: Tensor, first_BF1: Tensor) -> Tensor:
        """Return the click logit, shape (B,)."""
        return self.bias + first_BF1.sum((1, 2)) + pairwise(emb_BFD)
