"""DNN: one multi-layer perceptron over the concatenated embeddings (Covington et al., RecSys 2016).

The embeddings of all features side by side, hidden layers with ReLU, one output.
Crosses of features are learned implicitly.

B examples, F features, D embedding dimension.
"""

from __future__ import annotations

from torch import Tensor

from headwater.models.base import MLPConfig
from headwater.models.ctr.base import CTRModel
from headwater.models.layers import linear


class DNNConfig(MLPConfig):
    """Settings of the DNN."""


class DNN(CTRModel):
    """Multi-layer perceptron over all embeddings."""

    config_class = DNNConfig

    def __init__(self, config: DNNConfig, *, num_features: int) -> None:
        super().__init__(config, num_features=num_features)
        self.mlp = config.mlp(num_features * config.embedding_dim)
        self.out = linear(self.mlp.width_out, 1)

    def forward(self, emb_BFD: Tensor) -> Tensor:
        """Return the click logit, shape (B,)."""
        return self.out(self.mlp(emb_BFD.flatten(1))).squeeze(1)
