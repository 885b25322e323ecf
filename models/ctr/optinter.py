"""OptInter: how each pair of fields should interact, learned (Lyu et al., ICDE 2022, arXiv 2108.01265).

A pair is *memorised*, by a table of its own for the crossed values; *factorised*, by the product of two
vectors of a second table; or left alone, *naive*. A search relaxes the choice to a mixture with learned
weights per pair; the model is then trained anew with the choices alone, and holds no table that was not
chosen.

B examples, F features, D embedding dimension, G features of the second table, P pairs, M memorised pairs,
I interaction dimension.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from headwater.feature_store.encoders import Crossed
from headwater.models.base import ModelConfig, Slot
from headwater.models.ctr.architecture import METHODS
from headwater.models.ctr.base import CTRModel
from headwater.models.ctr.interaction_search import Retrain, Search
from headwater.models.ctr.optinter_config import OptInterConfig
from headwater.models.layers import MLP, linear
from headwater.models.phases import Phase

if TYPE_CHECKING:
    from headwater.feature_store.encoders import Declared


class OptInter(CTRModel):
    """A multi-layer perceptron over embeddings and the chosen interactions of pairs."""

    config: OptInterConfig
    config_class = OptInterConfig
    left_P: Tensor
    right_P: Tensor
    temperature: Tensor
    noise_P3: Tensor
    barred_P3: Tensor

    def __init__(self, config: OptInterConfig, *, num_features: int) -> None:
        super().__init__(config, num_features=num_features)
        second = config.second()
        products = [pair.columns for pair in config.of("factorise")]
        for name, side in (("left_P", 0), ("right_P", 1)):
            places = torch.tensor(
                [second.index(pair[side]) for pair in products], dtype=torch.int64
            )
            self.register_buffer(name, places, persistent=False)
        self.searches = config.architecture is None
        num_inputs = len(products) if self.searches else len(products) + len(config.of("memorise"))
        if self.searches:
            self.architecture_P3 = nn.Parameter(torch.empty(len(products), len(METHODS)))
            nn.init.xavier_normal_(self.architecture_P3)
            self.register_buffer("temperature", torch.ones(()))
            self.register_buffer("noise_P3", torch.zeros(len(products), len(METHODS)))
            self.register_buffer("barred_P3", torch.zeros(len(products), len(METHODS)))
        width = num_features * config.embedding_dim + num_inputs * config.interaction_dim
        self.mlp = MLP(width, config.hidden, dropout=config.dropout, layer_norm=True)
        self.out = linear(self.mlp.width_out, 1)

    @classmethod
    def slots(cls, config: ModelConfig) -> Mapping[str, Slot]:
        """Return the main slot, and those of the second table and of crossed values where pairs use them."""
        assert isinstance(config, OptInterConfig)
        slots = {"emb_BFD": Slot(config.embedding_dim)}
        columns = {
            "second_BGI": config.second(),
            "crossed_BMI": tuple(pair.name for pair in config.of("memorise")),
        }
        for name, wanted in columns.items():
            if wanted:
                bound = math.sqrt(3 / (len(wanted) * config.interaction_dim))
                published = config.initialisation == "published"
                slots[name] = Slot(config.interaction_dim, wanted, bound if published else None)
        return slots

    @classmethod
    def columns(cls, config: ModelConfig, features: Sequence[Declared]) -> Sequence[Declared]:  # noqa: ARG003
        """Return the crosses of memorised pairs; for a search those of all pairs."""
        assert isinstance(config, OptInterConfig)
        return [
            Crossed(name=pair.name, columns=list(pair.columns), min_count=config.min_count)
            for pair in config.of("memorise")
        ]

    @classmethod
    def phases(cls, config: ModelConfig) -> tuple[Phase, ...]:
        """Return the search and the training of what it finds; the latter alone with an architecture."""
        assert isinstance(config, OptInterConfig)
        if config.architecture is None:
            return (Search(), Retrain())
        return super().phases(config)

    def forward(
        self,
        emb_BFD: Tensor,
        second_BGI: Tensor | None = None,
        crossed_BMI: Tensor | None = None,
    ) -> Tensor:
        """Return the click logit, shape (B,)."""
        parts = [emb_BFD.flatten(1)]
        product_BPI: Tensor | None = None
        if second_BGI is not None:
            left_BPI = second_BGI.index_select(1, self.left_P)
            product_BPI = left_BPI * second_BGI.index_select(1, self.right_P)
        if self.searches:
            assert product_BPI is not None
            assert crossed_BMI is not None
            mix_P3 = self.mixture()
            parts.append((mix_P3[:, :1] * crossed_BMI + mix_P3[:, 1:2] * product_BPI).flatten(1))
        else:
            parts += [each.flatten(1) for each in (crossed_BMI, product_BPI) if each is not None]
        return self.out(self.mlp(torch.cat(parts, 1))).squeeze(1)

    def mixture(self) -> Tensor:
        """Return the weights of the methods for each pair, (P, 3) in the order of `METHODS`; rows sum to 1.

        The noise, which a strategy sets, counts in training alone; what is barred has no weight.
        """
        weights_P3 = self.architecture_P3 + self.barred_P3
        if self.training:
            weights_P3 = weights_P3 + self.noise_P3
        soft_P3 = torch.softmax(weights_P3 / self.temperature, 1)
        if self.config.search.relaxation != "gumbel-straight" or not self.training:
            return soft_P3
        hard_P3 = torch.zeros_like(soft_P3).scatter_(1, soft_P3.argmax(1, keepdim=True), 1.0)
        return hard_P3 + soft_P3 - soft_P3.detach()
