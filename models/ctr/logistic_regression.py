"""Logistic regression (McMahan et al., KDD 2013, "Ad Click Prediction"): the baseline of baselines.

One learned weight a value of a feature; the logit is their sum and a bias.
No feature meets another.

B examples, F features.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn

from headwater.models.base import ModelConfig, Slot
from headwater.models.ctr.base import CTRModel


class LogisticRegressionConfig(ModelConfig):
    """Settings of logistic regression."""

    embedding_dim: int = Field(default=1, ge=1, le=1)
    """A feature has one weight; no other value is accepted."""


class LogisticRegression(CTRModel):
    """First-order weights and a bias."""

    config_class = LogisticRegressionConfig

    def __init__(self, config: LogisticRegressionConfig, *, num_features: int) -> None:
        super().__init__(config, num_features=num_features)
        self.bias = nn.Parameter(torch.zeros(()))

    @classmethod
    def slots(cls, config: ModelConfig) -> Mapping[str, Slot]:  # noqa: ARG003
        """Return the slot of first-order weights."""
        return {"first_BF1": Slot(1)}

    def forward(self, first_BF1: Tensor) -> Tensor:
        """Return the click logit, shape (B,)."""
        return first_BF1.sum((1, 2)) + self.bias
