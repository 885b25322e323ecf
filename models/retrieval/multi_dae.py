"""Mult-DAE (Liang et al., WWW 2018): a denoising autoencoder of sets of items with a multinomial likelihood.

The input of length 1 is a sum of vectors of the items of a set, of which training drops a share; the output
is a softmax over all known items, and the loss its cross-entropy with each item of the whole set.

B sets, L items of the largest, N rows of items, D dimension of items' vectors, H width of the last layer,
S distinct items of all sets.
"""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from headwater.feature_store.schema import FIRST_CODE
from headwater.models.base import ModelConfig
from headwater.models.layers import linear
from headwater.models.retrieval.base import QueryKind, Taught, VectorModel
from headwater.models.retrieval.interactions import Interactions, Queries, Sets, distinct


class MultiDAEConfig(ModelConfig):
    """Settings of Mult-DAE."""

    embedding_dim: int = Field(default=600, gt=0)
    """Width of the first layer, a vector of each item."""
    hidden: tuple[PositiveInt, ...] = (200, 600)
    """Widths of the layers between the first one and the output, each with tanh."""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """Share of the input items that training drops."""


class MultiDAE(VectorModel):
    """Autoencoder of sets; the bias of the output is a coordinate of the items' vectors."""

    config_class = MultiDAEConfig
    config: MultiDAEConfig
    query: ClassVar[QueryKind] = "history"
    taught: ClassVar[Taught] = "sets"

    def __init__(self, config: MultiDAEConfig, interactions: Interactions) -> None:
        super().__init__(config, interactions)
        widths = (config.embedding_dim, *config.hidden)
        self.input_ND = nn.Parameter(torch.zeros(self.num_items, widths[0]))
        self.input_bias_D = nn.Parameter(torch.zeros(widths[0]))
        layers = [linear(*pair) for pair in pairwise(widths)]
        self.layers = nn.ModuleList(layers)
        self.output_NH = nn.Parameter(torch.zeros(self.num_items, widths[-1]))
        self.output_bias_N = nn.Parameter(torch.zeros(self.num_items))
        for table in (self.input_ND, self.output_NH):
            nn.init.xavier_normal_(table.detach()[FIRST_CODE:])
        self.drop = nn.Dropout(config.dropout)

    def encode(self, item_BL: Tensor) -> Tensor:
        """Return the last hidden layer, (B, H); an item that comes again counts once."""
        item_BL, counts_BL = distinct(item_BL)
        length_B = counts_BL.sum(1)
        value_S = self.drop(length_B.clamp(min=1).rsqrt().repeat_interleave(length_B))
        sum_BD = nn.functional.embedding_bag(
            item_BL[counts_BL],
            self.input_ND,
            length_B.cumsum(0) - length_B,
            mode="sum",
            per_sample_weights=value_S,
        )
        return self.hidden(sum_BD)

    def hidden(self, sum_BD: Tensor) -> Tensor:
        """Return the last hidden layer of the weighted sums of items, (B, H)."""
        hidden_BH = torch.tanh(sum_BD + self.input_bias_D)
        for layer in self.layers:
            hidden_BH = torch.tanh(layer(hidden_BH))
        return hidden_BH

    def forward(self, batch: Sets) -> Tensor:
        """Return the logits of all known items, from row 2 on, (B, N - 2)."""
        output_NH, bias_N = self.output_NH[FIRST_CODE:], self.output_bias_N[FIRST_CODE:]
        return nn.functional.linear(self.encode(batch.item_BL), output_NH, bias_N)

    def loss(self, output: Tensor, batch: Sets) -> Tensor:
        """Return the negative log likelihood of all items of the sets."""
        item_BL, counts_BL = distinct(batch.item_BL)
        log_prob_BN = output.float().log_softmax(1)
        log_prob_BL = log_prob_BN.gather(1, (item_BL - FIRST_CODE).clamp(min=0))
        return -(log_prob_BL * counts_BL).sum()

    def queries(self, asked: Queries) -> Tensor:
        """Return the last hidden layer and a 1 for the bias, (B, H + 1)."""
        return with_one(self.encode(asked.item_BL))

    def read_rows(self) -> Tensor:
        """Return the input vectors of items, (N, D)."""
        return self.input_ND

    def read_layers(self) -> nn.Module:
        """Return the encoder of sums."""
        return SetEncoder(self)

    def items(self) -> Tensor:
        """Return the output vectors with their bias, (N, H + 1)."""
        return torch.cat([self.output_NH, self.output_bias_N[:, None]], 1)


class SetEncoder(nn.Module):
    """The encoder over padded sets of distinct items, as a release has it."""

    def __init__(self, model: MultiDAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, row_BLD: Tensor, length_B: Tensor) -> Tensor:
        """Return the vectors of queries, (B, H + 1); the rows of padding are zeros."""
        scale_B = length_B.clamp(min=1).to(row_BLD.dtype).rsqrt()
        return with_one(self.model.hidden(row_BLD.sum(1) * scale_B[:, None]))


def with_one(hidden_BH: Tensor) -> Tensor:
    """Return hidden layers with a 1 for the bias behind, (B, H + 1)."""
    return torch.cat([hidden_BH, torch.ones_like(hidden_BH[:, :1])], 1)
