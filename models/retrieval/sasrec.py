"""SASRec (Kang and McAuley, ICDM 2018): causal attention over a history, taught by the whole catalogue.

The encoder and its settings are those of MCLRec's published code, and the loss is cross-entropy over all
items, so that the two differ by the contrast alone.

B examples, L length, T tokens, D dimension, N items.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from headwater.models.base import ModelConfig
from headwater.models.retrieval.base import Taught
from headwater.models.retrieval.catalogue import catalogue_loss
from headwater.models.retrieval.interactions import Prefixes, Sequences
from headwater.models.retrieval.sequence_model import SequenceConfig, SequenceModel
from headwater.models.sequences import ragged


class SASRecConfig(SequenceConfig):
    """Settings of SASRec."""

    way: Literal["sequences", "prefixes"] = "sequences"
    """Examples: each user once, with all its items to foretell, or each history with the item after it.

    The loss is the same sum over items; a batch of users has more of it, and an epoch takes less time.
    """


class SASRec(SequenceModel):
    """Self-attentive sequential recommendation."""

    config_class = SASRecConfig

    @classmethod
    def taught_of(cls, config: ModelConfig) -> Taught:
        """Return the examples of the settings' way."""
        assert isinstance(config, SASRecConfig)
        return config.way

    def forward(self, batch: Prefixes | Sequences) -> Any:
        """Return what foretells each target: (B, D) of prefixes, (T, D) of sequences."""
        sequences = ragged(batch.item_BL, batch.length_B)
        token_TD = self.encoder(sequences)
        return sequences.last(token_TD) if isinstance(batch, Prefixes) else token_TD

    def loss(self, output: Any, batch: Prefixes | Sequences) -> Tensor:
        """Return the cross-entropy over the catalogue, the sum over the batch's targets."""
        if isinstance(batch, Prefixes):
            target_n = batch.target_B
        else:
            # In a batch of users the targets of padding are zeros, and no others are.
            target_n = batch.target_BL[batch.target_BL > 0]
        return catalogue_loss(output, self.items(), target_n)
