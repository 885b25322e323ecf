"""Base of models of histories in their order: one encoder of sequences, and items as its table has them.

B queries, L length, D dimension, N items.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from headwater.models.base import ModelConfig
from headwater.models.retrieval.base import QueryKind, VectorModel
from headwater.models.retrieval.interactions import Interactions, Queries
from headwater.models.sequences import PaddedEncoder, SequenceEncoder, ragged


class SequenceConfig(ModelConfig):
    """Settings of the encoder; the defaults are those of MCLRec's published code."""

    embedding_dim: int = Field(default=64, gt=0)
    """Dimension of the vectors."""
    max_length: PositiveInt = 50
    """Newest items of a history that are read."""
    num_layers: PositiveInt = 2
    """Blocks of attention."""
    num_heads: PositiveInt = 2
    """Heads of attention; must divide `embedding_dim`."""
    inner_dim: PositiveInt = 256
    """Width of the perceptron of a block."""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """Dropout of vectors and of what a block adds to them."""
    attention_dropout: float = Field(default=0.5, ge=0, lt=1)
    """Dropout of the weights of attention."""

    @model_validator(mode="after")
    def _check_heads(self) -> SequenceConfig:
        if self.embedding_dim % self.num_heads:
            raise ValueError(
                f"num_heads: {self.num_heads} does not divide embedding_dim = {self.embedding_dim}"
            )
        return self


class SequenceModel(VectorModel):
    """A history's vector is that of its newest item after the encoder."""

    query: ClassVar[QueryKind] = "history"

    def __init__(self, config: SequenceConfig, interactions: Interactions) -> None:
        super().__init__(config, interactions)
        self.encoder = SequenceEncoder(
            interactions.num_items,
            config.embedding_dim,
            max_length=config.max_length,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            inner_dim=config.inner_dim,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
        )

    @classmethod
    def longest_of(cls, config: ModelConfig) -> int | None:
        """Return the length of the settings."""
        assert isinstance(config, SequenceConfig)
        return config.max_length

    def vectors(self, item_BL: Tensor, length_B: Tensor) -> Tensor:
        """Return the vector of each sequence, (B, D): that of its newest item; zeros of an empty one."""
        sequences = ragged(item_BL, length_B)
        return sequences.last(self.encoder(sequences))

    def queries(self, asked: Queries) -> Tensor:
        """Return the vectors of histories, (B, D); zeros without one, so that all items score alike."""
        return self.vectors(asked.item_BL, asked.length_B)

    def read_rows(self) -> Tensor:
        """Return the vectors of items, (N, D)."""
        return self.encoder.item.weight

    def read_layers(self) -> nn.Module:
        """Return the encoder over padded histories."""
        return PaddedEncoder(self.encoder)

    def items(self) -> Tensor:
        """Return the vectors of items, (N, D)."""
        return self.encoder.item.weight
