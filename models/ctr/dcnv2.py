"""DCN-V2 (Wang et al., WWW 2021, arXiv 2008.13535): cross network with full matrices, and an MLP.

Each cross layer multiplies the input with a linear map of the previous layer, so l layers give
crosses up to order l + 1. `parallel` (the default, and what the BARS benchmark runs) concatenates
the outputs of cross network and MLP; `stacked` feeds the first to the second. The paper's low-rank
and mixture-of-experts crosses are not here.

B examples, F features, D embedding dimension, E coordinates of all features.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from headwater.models.base import MLPConfig
from headwater.models.ctr.base import PrunableModel
from headwater.models.layers import CrossNetV2, linear


class DCNv2Config(MLPConfig):
    """Settings of DCN-V2."""

    structure: Literal["parallel", "stacked"] = "parallel"
    """`parallel`: cross network beside the MLP; `stacked`: the MLP on top of the cross network."""
    num_cross_layers: int = Field(default=3, gt=0)
    """Layers of the cross network."""


class DCNv2(PrunableModel):
    """Cross network and multi-layer perceptron."""

    config_class = DCNv2Config

    def __init__(self, config: DCNv2Config, *, num_features: int, width: int | None = None) -> None:
        super().__init__(config, num_features=num_features, width=width)
        self.stacked = config.structure == "stacked"
        self.cross = CrossNetV2(self.width, config.num_cross_layers)
        self.mlp = config.mlp(self.width)
        self.out = linear(self.mlp.width_out + (0 if self.stacked else self.width), 1)

    def forward(self, emb_BFD: Tensor) -> Tensor:
        """Return the click logit, shape (B,)."""
        return self.score(emb_BFD, emb_BFD.flatten(1))

    def score(self, emb_BFD: Tensor, emb_BE: Tensor) -> Tensor:  # noqa: ARG002
        """Return the click logit, shape (B,), of the coordinates that are there."""
        cross_BE = self.cross(emb_BE)
        if self.stacked:
            return self.out(self.mlp(cross_BE)).squeeze(1)
        return self.out(torch.cat([cross_BE, self.mlp(emb_BE)], 1)).squeeze(1)
