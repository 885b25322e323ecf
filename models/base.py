"""What every model is: a config, the embeddings it asks for, and a module from tensors to a logit.

B examples, F features (in schema order; a list column is one, after pooling), D dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from headwater.feature_store.config import Config
from headwater.models.layers import MLP


class ModelConfig(Config):
    """Settings that every model shares; each model adds its own fields."""

    embedding_dim: int = Field(default=16, gt=0)
    """Dimension of the embedding of one feature; fused tables want a multiple of 4."""


class MLPConfig(ModelConfig):
    """Settings of a model with one multi-layer perceptron."""

    hidden: tuple[PositiveInt, ...] = (400, 400, 400)
    """Widths of the hidden layers of the multi-layer perceptron."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout after each hidden layer."""
    batch_norm: bool = False
    """Batch normalisation before each ReLU."""

    def mlp(self, width_in: int) -> MLP:
        """Return the perceptron, untrained, without an output layer."""
        return MLP(width_in, self.hidden, dropout=self.dropout, batch_norm=self.batch_norm)


@dataclass(frozen=True, slots=True)
class Slot:
    """A set of embedding tables that a model asks for: a vector a feature, as (B, F, dim)."""

    dim: int
    columns: tuple[str, ...] | None = None
    """Encoded columns to embed, in this order; None for all of the schema, in schema order."""


class CTRModel(nn.Module):
    """Base of click models: a subclass sets `config_class`, builds layers, and writes `forward`.

    It never sees a column name, an optimiser or a device: `models/tables/embeddings.py` turns a batch into
    the tensors that `slots` names, and `forward` takes them as keyword arguments of the same names.
    """

    config_class: ClassVar[type[ModelConfig]]

    def __init__(self, config: ModelConfig, *, num_features: int) -> None:
        """Build the layers for `num_features` features of dimension `config.embedding_dim`."""
        super().__init__()
        self.config = config
        self.num_features = num_features

    @classmethod
    def slots(cls, config: ModelConfig) -> Mapping[str, Slot]:
        """Return the embeddings that `forward` wants, by argument name; by default one main slot."""
        return {"emb_BFD": Slot(config.embedding_dim)}

    forward: Callable[..., Tensor]
    """Takes the tensors of `slots` by name and returns the click logit, shape (B,)."""
