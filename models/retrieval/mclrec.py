"""MCLRec (Qin et al., SIGIR 2023, arXiv 2304.07763): contrast of four views, two of them learned.

Each of two changed views h1, h2 of a history is turned into another one, z1, z2, by a small network of its
own, an augmenter. Encoder and augmenters learn in turn (`ThreeSteps`). A regulariser bounds how much more
alike two views of a history may be than views of others, so that augmenters do not make the contrast easy.

B examples, D dimension.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from headwater.models.base import ModelConfig
from headwater.models.phases import Descend, Phase
from headwater.models.retrieval.cl4srec import CL4SRec, CL4SRecConfig, Viewed
from headwater.models.retrieval.interactions import Interactions, Prefixes
from headwater.models.retrieval.three_steps import ThreeSteps
from headwater.models.retrieval.view_losses import pair_contrast, regulariser
from headwater.models.strategy import OneLoss

REGULARISER_WEIGHT = 0.1


class MCLRecConfig(CL4SRecConfig):
    """Settings of MCLRec; defaults are those of its published code on Amazon Beauty."""

    first_contrast: float = Field(default=0.0, ge=0)
    """Weight of the contrast of the two changed views (lambda)."""
    second_contrast: float = Field(default=0.05, ge=0)
    """Weight of the contrast with the learned views, and of a tenth of the regulariser (beta)."""
    regulariser: Literal["code", "paper", "none"] = "code"
    """`code`: thresholds of each row, over the three pairs that are contrasted; `paper`: of the whole batch,
    over the learned views alone; or none."""
    joint: bool = False
    """Train encoder and augmenters at once by the encoder's loss (the paper's MCLRec-J)."""


class Augmenter(nn.Sequential):
    """A perceptron from a view's vector to that of a learned view, which has norm 1: (B, D)."""

    def __init__(self, dim: int) -> None:
        super().__init__(
            nn.Linear(dim, dim // 2),
            nn.GELU(),
            nn.Linear(dim // 2, dim // 4),
            nn.GELU(),
            nn.Linear(dim // 4, dim),
        )

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Return the vectors of the learned view."""
        return nn.functional.normalize(super().forward(input), dim=1)


class MCLRec(CL4SRec):
    """Meta-optimised contrastive learning for sequential recommendation."""

    config_class = MCLRecConfig
    config: MCLRecConfig  # pyright: ignore[reportIncompatibleVariableOverride] - a narrower one
    needs_whole_batch: ClassVar[bool] = True

    def __init__(self, config: MCLRecConfig, interactions: Interactions) -> None:
        super().__init__(config, interactions)
        self.augmenters = nn.ModuleList(Augmenter(config.embedding_dim) for _ in range(2))

    @classmethod
    def phases(cls, config: ModelConfig) -> tuple[Phase, ...]:
        """Return one descent, by three updates a batch, or by one of all weights."""
        assert isinstance(config, MCLRecConfig)
        return (Descend(OneLoss if config.joint else ThreeSteps, mode="dense"),)

    @property
    def contrasts(self) -> bool:
        """True where some contrast of views is a part of the loss."""
        return super().contrasts or self.config.second_contrast > 0

    def learned_loss(self, first_BD: Tensor, second_BD: Tensor) -> Tensor:
        """Return the contrast with the learned views and a tenth of the regulariser: means over rows."""
        augment_first, augment_second = self.augmenters
        learned_first_BD, learned_second_BD = augment_first(first_BD), augment_second(second_BD)
        pairs = (
            (learned_first_BD, learned_second_BD),
            (first_BD, learned_second_BD),
            (second_BD, learned_first_BD),
        )
        alike = [self.likeness(*pair) for pair in pairs]
        total = _sum(pair_contrast(like_RR) for like_RR in alike)
        form = self.config.regulariser
        if form == "none":
            return total
        bounded = alike if form == "code" else alike[:1]
        return total + REGULARISER_WEIGHT * _sum(regulariser(each, form) for each in bounded)

    def loss(self, output: Any, batch: Prefixes | Viewed) -> Tensor:
        """Return the encoder's loss: that of CL4SRec, and the learned views' as often as there are rows."""
        found = super().loss(output, batch)
        if self.config.second_contrast == 0:
            return found
        learned = self.learned_loss(output.first_BD, output.second_BD)
        return found + len(batch) * self.config.second_contrast * learned


def _sum(values: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(values)).sum()
