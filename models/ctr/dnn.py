"""DNN: one multi-layer perceptron over the concatenated embeddings (Covington et al., RecSys 2016).

The embeddings of all features side by side, hidden layers with ReLU, one output.
Crosses of features are learned implicitly.

B examples, F features, D embedding dimension, E coordinates of all features.
"""

from __future__ import annotations

from torch import Tensor

from headwater.models.base import MLPConfig
from headwater.models.ctr.base import PrunableModel
from headwater.models.layers import linear


class DNNConfig(MLPConfig):
    """Settings of the DNN."""


class DNN(PrunableModel):
    """Multi-layer perceptron over all embeddings."""

    config_class = DNNConfig

    def __init__(self, config: DNNConfig, *, num_features: int, width: int | None = None) -> None:
        super().__init__(config, num_features=num_features, width=width)
        self.mlp = config.mlp(self.width)
        self.out = linear(self.mlp.width_out, 1)

    def forward(self, emb_BFD: Tensor) -> Tensor:
        """Return the click logit, shape (B,)."""
        return self.score(emb_BFD, emb_BFD.flatten(1))

    def score(self, emb_BFD: Tensor, emb_BE: Tensor) -> Tensor:  # noqa: ARG002
        """Return the click logit, shape (B,), of the coordinates that are there."""
        return self.out(self.mlp(emb_BE)).squeeze(1)
