"""Factorization machine (Rendle, ICDM 2010).

Every value of a feature has a weight and a vector. The logit is a bias, the weights, and the inner
products of the vectors of all pairs of features: pairs that never met still share their vectors.

B examples, F features, D embedding dimension, E coordinates of all features.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from headwater.models.base import ModelConfig, Slot
from headwater.models.ctr.base import PrunableModel
from headwater.models.layers import pairwise


class FMConfig(ModelConfig):
    """Settings of the factorization machine: the shared ones."""


class FM(PrunableModel):
    """Bias, first-order weights, and all pairwise inner products."""

    config_class = FMConfig

    def __init__(self, config: FMConfig, *, num_features: int, width: int | None = None) -> None:
        super().__init__(config, num_features=num_features, width=width)
        self.bias = nn.Parameter(torch.zeros(()))

    @classmethod
    def slots(cls, config: ModelConfig) -> Mapping[str, Slot]:
        """Return the main slot and that of first-order weights."""
        return {"emb_BFD": Slot(config.embedding_dim), "first_BF1": Slot(1)}

    def forward(self, emb_BFD: Tensor, first_BF1: Tensor) -> Tensor:
        """Return the click logit, shape (B,)."""
        return self.score(emb_BFD, emb_BFD.flatten(1), first_BF1)

    def score(self, emb_BFD: Tensor, emb_BE: Tensor, first_BF1: Tensor) -> Tensor:  # noqa: ARG002
        """Return the click logit, shape (B,), of the coordinates that are there."""
        return self.bias + first_BF1.sum((1, 2)) + pairwise(emb_BFD)
