"""LightGCN (SIGIR 2020): vectors of users and items, averaged over the layers of a graph without weights.

A layer is S X, the symmetric normalised adjacency matrix times the vectors of the layer before; the mean of
all layers, the table included, gives the final vectors. No transformation, no nonlinearity, no self loops.

V nodes (users, then items), B examples, D dimension.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from headwater.models.base import ModelConfig
from headwater.models.graphs import user_item_graph
from headwater.models.retrieval.interactions import Interactions, Pairs
from headwater.models.retrieval.pairwise import PairwiseModel, bpr


class LightGCNConfig(ModelConfig):
    """Settings of LightGCN; the defaults are those of the published code."""

    embedding_dim: int = Field(default=64, gt=0)
    """Dimension of the vectors."""
    num_layers: int = Field(default=3, ge=0)
    """Layers of propagation; with none it is BPR-MF."""
    l2: float = Field(default=1e-4, ge=0)
    """Weight of half the squared norms of a batch's rows of the table, a mean over it as the loss."""


class LightGCN(PairwiseModel):
    """Mean of propagated vectors."""

    config_class = LightGCNConfig
    config: LightGCNConfig

    def __init__(self, config: LightGCNConfig, interactions: Interactions) -> None:
        super().__init__(config, interactions)
        self.graph = user_item_graph(interactions)
        for rows in self.known():
            nn.init.normal_(rows, std=0.1)

    def vectors(self) -> Tensor:
        """Return the mean of all layers, (V, D)."""
        layer_VD = total_VD = self.node_VD
        for _ in range(self.config.num_layers):
            layer_VD = self.graph.propagate(layer_VD)
            total_VD = total_VD + layer_VD
        return total_VD / (1 + self.config.num_layers)

    def forward(self, batch: Pairs) -> Tensor:
        """Return how far each item is above the other, (B,)."""
        return self.margin(self.vectors(), batch)

    def loss(self, output: Tensor, batch: Pairs) -> Tensor:
        """Return the sum over examples of the BPR loss and the penalty of their rows.

        The published code divides both by the size of the batch, as training does with this sum.
        """
        return bpr(output) + self.config.l2 / 2 * self.row_norms(batch)
