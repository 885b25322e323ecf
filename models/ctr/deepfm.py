"""DeepFM (Guo et al., IJCAI 2017, arXiv 1703.04247).

A factorization machine and a multi-layer perceptron over the same embeddings, their logits added:
the first gives crosses of order two explicitly, the second of any order implicitly.

B examples, F features, D embedding dimension, E coordinates of all features.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from headwater.models.base import MLPConfig, ModelConfig, Slot
from headwater.models.ctr.base import PrunableModel
from headwater.models.layers import linear, pairwise


class DeepFMConfig(MLPConfig):
    """Settings of DeepFM: those of its deep part."""


class DeepFM(PrunableModel):
    """Factorization machine plus multi-layer perceptron on shared embeddings."""

    config_class = DeepFMConfig

    def __init__(
        self, config: DeepFMConfig, *, num_features: int, width: int | None = None
    ) -> None:
        super().__init__(config, num_features=num_features, width=width)
        self.mlp = config.mlp(self.width)
        self.out = linear(self.mlp.width_out, 1)

    @classmethod
    def slots(cls, config: ModelConfig) -> Mapping[str, Slot]:
        """Return the main slot and that of first-order weights."""
        return {"emb_BFD": Slot(config.embedding_dim), "first_BF1": Slot(1)}

    def forward(self, emb_BFD: Tensor, first_BF1: Tensor) -> Tensor:
        """Return the click logit, shape (B,)."""
        return self.score(emb_BFD, emb_BFD.flatten(1), first_BF1)

    def score(self, emb_BFD: Tensor, emb_BE: Tensor, first_BF1: Tensor) -> Tensor:
        """Return the click logit, shape (B,), of the coordinates that are there."""
        deep_B = self.out(self.mlp(emb_BE)).squeeze(1)
        return first_BF1.sum((1, 2)) + pairwise(emb_BFD) + deep_B
