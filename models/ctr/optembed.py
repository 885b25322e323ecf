"""OptEmbed (Lyu et al., CIKM 2022, arXiv 2208.04482): which rows of the tables to keep, and how wide.

Three phases (`embedding_search`): a supernet of a base model learns, with a threshold for the rows of each
feature and a dimension drawn for each example and feature; an evolutionary search scores dimensions by that
supernet; the base model is trained again, from the weights that the supernet started from, of what is kept.

B examples, F features, D dimension of the search, E coordinates that are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from headwater.models.base import ModelConfig, Slot
from headwater.models.ctr.base import CTRModel, PrunableModel
from headwater.models.ctr.embedding_search import Evolve, Retrain, TrainSupernet
from headwater.models.ctr.optembed_config import MAIN, OptEmbedConfig, main_slots
from headwater.models.phases import Phase
from headwater.models.registry import load_model


class OptEmbed(CTRModel):
    """The base model on the coordinates that are kept; before the search, on all."""

    config: OptEmbedConfig
    config_class = OptEmbedConfig

    def __init__(self, config: OptEmbedConfig, *, num_features: int) -> None:
        super().__init__(config, num_features=num_features)
        width = sum(config.dimensions.values()) if config.dimensions else None
        base: type[Any] = load_model(config.base.type)
        self.base: PrunableModel = base(config.base, num_features=num_features, width=width)
        self.main = tuple(main_slots(config))

    @classmethod
    def slots(cls, config: ModelConfig) -> Mapping[str, Slot]:
        """Return the base's slots; after the search, a main slot for each dimension."""
        assert isinstance(config, OptEmbedConfig)
        base = load_model(config.base.type).slots(config.base)
        others = {name: slot for name, slot in base.items() if name != MAIN}
        return (main_slots(config) or {MAIN: base[MAIN]}) | others

    @classmethod
    def phases(cls, config: ModelConfig) -> tuple[Phase, ...]:
        """Return the three phases; with an architecture only the last."""
        assert isinstance(config, OptEmbedConfig)
        if config.architecture is None:
            return (TrainSupernet(), Evolve(), Retrain())
        return (Retrain(),)

    def forward(self, **slots: Tensor) -> Tensor:
        """Return the click logit, shape (B,)."""
        if not self.main:
            return self.base(**slots)
        dim = self.config.base.embedding_dim
        parts = [slots.pop(name) for name in self.main]
        emb_BFD = torch.cat([F.pad(part, (0, dim - part.shape[2])) for part in parts], 1)
        return self.base.score(emb_BFD, torch.cat([part.flatten(1) for part in parts], 1), **slots)
