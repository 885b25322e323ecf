"""CL4SRec (Xie et al., ICDE 2022, arXiv 2010.14395): SASRec, and two changed views of a history contrasted.

B examples, L length, D dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from headwater.models.retrieval.augmentations import Altered, Shares, two_views
from headwater.models.retrieval.base import Taught
from headwater.models.retrieval.catalogue import catalogue_loss
from headwater.models.retrieval.interactions import Prefixes
from headwater.models.retrieval.sequence_model import SequenceConfig, SequenceModel
from headwater.models.retrieval.view_losses import Similarity, likeness, pair_contrast


class CL4SRecConfig(SequenceConfig):
    """Settings of CL4SRec; the operators' shares are those of MCLRec's published code."""

    crop: float = Field(default=0.5, gt=0, le=1)
    """Share of a history that a crop keeps."""
    mask: float = Field(default=0.5, ge=0, lt=1)
    """Share of a history that is masked."""
    reorder: float = Field(default=0.8, ge=0, le=1)
    """Share of a history that is shuffled."""
    first_contrast: float = Field(default=0.1, ge=0)
    """Weight of the contrast of the two views."""
    similarity: Similarity = "dot"
    """Of two views' vectors: `dot` or `cosine`."""
    temperature: float = Field(default=1.0, gt=0)
    """Divides similarities."""


@dataclass(frozen=True, slots=True)
class Viewed:
    """Histories with what followed, and two changed views of each."""

    plain: Prefixes
    first: Altered
    second: Altered

    def __len__(self) -> int:
        return len(self.plain)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Vectors of histories and of their views, (B, D) each; no views where nothing is contrasted, (0, D)."""

    plain_BD: Tensor
    first_BD: Tensor
    second_BD: Tensor


class CL4SRec(SequenceModel):
    """Contrastive learning for sequential recommendation."""

    config_class = CL4SRecConfig
    taught: ClassVar[Taught] = "prefixes"
    needs_whole_batch: ClassVar[bool] = True
    config: CL4SRecConfig

    @property
    def contrasts(self) -> bool:
        """True where some contrast of views is a part of the loss."""
        return self.config.first_contrast > 0

    def viewed(self, batch: Prefixes) -> Viewed:
        """Return a batch with two views of each history, by different operators."""
        config = self.config
        shares = Shares(crop=config.crop, mask=config.mask, reorder=config.reorder)
        return Viewed(batch, *two_views(batch.item_BL, batch.length_B, shares))

    def forward(self, batch: Prefixes | Viewed) -> Encoded:
        """Return the vectors of histories and views, in one pass; no views without a contrast."""
        if not self.contrasts:
            plain = batch if isinstance(batch, Prefixes) else batch.plain
            (plain_BD,) = self._vectors(plain)
            return Encoded(plain_BD, plain_BD[:0], plain_BD[:0])
        if isinstance(batch, Prefixes):
            batch = self.viewed(batch)
        return Encoded(*self._vectors(batch.plain, batch.first, batch.second))

    def view_vectors(self, batch: Viewed) -> tuple[Tensor, Tensor]:
        """Return the vectors of the two views alone, (B, D) each."""
        first_BD, second_BD = self._vectors(batch.first, batch.second)
        return first_BD, second_BD

    def _vectors(self, *sequences: Prefixes | Altered) -> tuple[Tensor, ...]:
        all_nD = self.vectors(
            torch.cat([each.item_BL for each in sequences]),
            torch.cat([each.length_B for each in sequences]),
        )
        return all_nD.chunk(len(sequences))

    def likeness(self, a_BD: Tensor, b_BD: Tensor) -> Tensor:
        """Return the similarities of all rows of two views, (2B, 2B)."""
        return likeness(a_BD, b_BD, self.config.similarity, self.config.temperature)

    def loss(self, output: Any, batch: Prefixes | Viewed) -> Tensor:
        """Return the cross-entropy over the catalogue, and the contrast as often as there are rows."""
        target_B = batch.target_B if isinstance(batch, Prefixes) else batch.plain.target_B
        found = catalogue_loss(output.plain_BD, self.items(), target_B)
        if self.config.first_contrast == 0:
            return found
        contrast = pair_contrast(self.likeness(output.first_BD, output.second_BD))
        return found + len(batch) * self.config.first_contrast * contrast
