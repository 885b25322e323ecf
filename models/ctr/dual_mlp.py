"""DualMLP: two parallel MLPs over the same embeddings, their logits added.

The ablation of FinalMLP (AAAI 2023, arXiv 2304.00902) without feature gates and bilinear fusion.
Two streams of different depth and dropout fit different functions; the sum is a small ensemble.

B examples, F features, D embedding dimension.
"""

from __future__ import annotations

from pydantic import Field, PositiveInt
from torch import Tensor

from headwater.models.base import ModelConfig
from headwater.models.ctr.base import CTRModel
from headwater.models.layers import MLP, linear


class DualMLPConfig(ModelConfig):
    """Settings of DualMLP."""

    hidden_1: tuple[PositiveInt, ...] = (400, 400)
    """Widths of stream 1."""
    hidden_2: tuple[PositiveInt, ...] = (400,)
    """Widths of stream 2."""
    dropout_1: float = Field(default=0.0, ge=0, lt=1)
    """Dropout after each hidden layer of stream 1."""
    dropout_2: float = Field(default=0.0, ge=0, lt=1)
    """Dropout after each hidden layer of stream 2."""
    batch_norm_1: bool = False
    """Batch normalisation before each ReLU of stream 1."""
    batch_norm_2: bool = False
    """Batch normalisation before each ReLU of stream 2."""


class DualMLP(CTRModel):
    """Sum of the logits of two multi-layer perceptrons."""

    config_class = DualMLPConfig

    def __init__(self, config: DualMLPConfig, *, num_features: int) -> None:
        super().__init__(config, num_features=num_features)
        width = num_features * config.embedding_dim
        self.mlp_1 = MLP(
            width, config.hidden_1, dropout=config.dropout_1, batch_norm=config.batch_norm_1
        )
        self.mlp_2 = MLP(
            width, config.hidden_2, dropout=config.dropout_2, batch_norm=config.batch_norm_2
        )
        self.out_1 = linear(self.mlp_1.width_out, 1)
        self.out_2 = linear(self.mlp_2.width_out, 1)

    def forward(self, emb_BFD: Tensor) -> Tensor:
        """Return the click logit, shape (B,)."""
        emb_BH = emb_BFD.flatten(1)
        return (self.out_1(self.mlp_1(emb_BH)) + self.out_2(self.mlp_2(emb_BH))).squeeze(1)
