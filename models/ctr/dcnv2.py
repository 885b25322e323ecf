"""DCN-V2 (Wang et al., WWW 2021, arXiv 2008.13535): cross network with full matrices, and an MLP.

Each cross layer multiplies the input with a linear map of the previous layer, so l layers give
crosses up to order l + 1. `parallel` (the default, and what the BARS benchmark runs) concatenates
the outputs of cross network and MLP; `stacked` feeds the first to the second. The paper's low-rank
and mixture-of-experts crosses are not here.

B examples, F features, D embedding dimension.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from headwater.models.base import MLPConfig
from headwater.models.ctr.base import CTRModel
from headwater.models.layers import CrossNetV2, linear


class DCNv2Config(MLPConfig):
    """Settings of DCN-V2."""

    structure: Literal["parallel", "stacked"] = "parallel"
    """`parallel`: cross network beside the MLP; `stacked`: the MLP on top of the cross network."""
    num_cross_layers: int = Field(default=3, gt=0)
    """Layers of the cross network."""


class DCNv2(CTRModel):
    """Cross network and multi-layer perceptron."""

    config_class = DCNv2Config

    def __init__(self, config: DCNv2Config, *, num_features: int) -> None:
        super().__init__(config, num_features=num_features)
        width = num_features * config.embedding_dim
        self.stacked = config.structure == "stacked"
        self.cross = CrossNetV2(width, config.num_cross_layers)
        self.mlp = config.mlp(width)
        self.out = linear(self.mlp.width_out + (0 if self.stacked else width), 1)

    def forward(self, emb_BFD: Tensor) -> Tensor:
        """Return the click logit, shape (B,)."""
        emb_BH = emb_BFD.flatten(1)
        cross_BH = self.cross(emb_BH)
        if self.stacked:
            return self.out(self.mlp(cross_BH)).squeeze(1)
        return self.out(torch.cat([cross_BH, self.mlp(emb_BH)], 1)).squeeze(1)
