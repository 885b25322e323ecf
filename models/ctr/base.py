"""Base of click models: a module from the tensors of its slots to the logit of a click.

B examples, F features (in schema order; a list column is one, after pooling), D dimension,
E coordinates of all features together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from headwater.models.base import FamilyName, Model, ModelConfig
from headwater.models.batch import Batch
from headwater.models.phases import Descend, Phase
from headwater.models.strategy import OneLoss


class CTRModel(Model):
    """Base of click models: a subclass sets `config_class`, builds layers, and writes `forward`."""

    family: ClassVar[FamilyName] = "ctr"

    @classmethod
    def phases(cls, config: ModelConfig) -> tuple[Phase, ...]:  # noqa: ARG003
        """Return the phases of training: one descent on one loss."""
        return (Descend(OneLoss),)

    forward: Callable[..., Tensor]
    """Takes the tensors of `slots` by name and returns the click logit, shape (B,)."""

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the binary cross-entropy of logits, (B,), weighted where the job names weights, summed."""
        return F.binary_cross_entropy_with_logits(
            output.float(), batch.label_B, weight=batch.weight_B, reduction="sum"
        )


class PrunableModel(CTRModel):
    """Base of click models that also work where coordinates of the main embeddings are left out.

    A subclass writes `score`, whose layers read and write the coordinates that are there and no others; its
    `forward` gives it all of them.
    """

    def __init__(self, config: ModelConfig, *, num_features: int, width: int | None = None) -> None:
        """Build the layers for `width` coordinates of all features together; for all of them when absent."""
        super().__init__(config, num_features=num_features)
        self.width = num_features * config.embedding_dim if width is None else width

    score: Callable[..., Tensor]
    """Takes `emb_BFD`, `emb_BE` and the other slots, and returns the click logit, shape (B,).

    `emb_BE` has the coordinates that are there; in `emb_BFD` the others are zero.
    """
