"""SASRec (Kang and McAuley, ICDM 2018): causal attention over a history, taught by the whole catalogue.

The encoder and its settings are those of MCLRec's published code, and the loss is cross-entropy over all
items, so that the two differ by the contrast alone.

B examples, L length, T tokens, D dimension, N items.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from headwater.models.base import ModelConfig
from headwater.models.retrieval.base import QueryKind, Taught, VectorModel
from headwater.models.retrieval.catalogue import catalogue_loss
from headwater.models.retrieval.interactions import Interactions, Prefixes, Queries, Sequences
from headwater.models.sequences import Ragged, SequenceEncoder, ragged


class SASRecConfig(ModelConfig):
    """Settings of SASRec."""

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
    way: Literal["sequences", "prefixes"] = "sequences"
    """Examples: each user once, with all its items to foretell, or each history with the item after it.

    The loss is the same sum over items; a batch of users has more of it, and an epoch takes less time.
    """

    @model_validator(mode="after")
    def _check_heads(self) -> SASRecConfig:
        if self.embedding_dim % self.num_heads:
            raise ValueError(
                f"num_heads: {self.num_heads} does not divide embedding_dim = {self.embedding_dim}"
            )
        return self


class SASRec(VectorModel):
    """Self-attentive sequential recommendation."""

    config_class = SASRecConfig
    query: ClassVar[QueryKind] = "history"
    config: SASRecConfig

    def __init__(self, config: SASRecConfig, interactions: Interactions) -> None:
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
    def taught_of(cls, config: ModelConfig) -> Taught:
        """Return the examples of the settings' way."""
        assert isinstance(config, SASRecConfig)
        return config.way

    @classmethod
    def longest_of(cls, config: ModelConfig) -> int | None:
        """Return the length of the settings."""
        assert isinstance(config, SASRecConfig)
        return config.max_length

    def forward(self, batch: Prefixes | Sequences) -> Any:
        """Return what foretells each target: (B, D) of prefixes, (T, D) of sequences."""
        sequences = ragged(batch.item_BL, batch.length_B)
        return self.foretelling(self.encoder(sequences), sequences, batch)

    def foretelling(
        self, token_TD: Tensor, sequences: Ragged, batch: Prefixes | Sequences
    ) -> Tensor:
        """Return the vectors of the tokens that have a target."""
        return sequences.last(token_TD) if isinstance(batch, Prefixes) else token_TD

    def loss(self, output: Any, batch: Prefixes | Sequences) -> Tensor:
        """Return the cross-entropy over the catalogue, the sum over the batch's targets."""
        if isinstance(batch, Prefixes):
            target_n = batch.target_B
        else:
            # In a batch of users the targets of padding are zeros, and no others are.
            target_n = batch.target_BL[batch.target_BL > 0]
        return catalogue_loss(output, self.encoder.item.weight, target_n)

    def vectors(self, item_BL: Tensor, length_B: Tensor) -> Tensor:
        """Return the vector of each sequence, (B, D): that of its newest item; zeros of an empty one."""
        sequences = ragged(item_BL, length_B)
        return sequences.last(self.encoder(sequences))

    def queries(self, asked: Queries) -> Tensor:
        """Return the vectors of histories, (B, D); zeros without one, so that all items score alike."""
        return self.vectors(asked.item_BL, asked.length_B)

    def items(self) -> Tensor:
        """Return the vectors of items, (N, D)."""
        return self.encoder.item.weight
