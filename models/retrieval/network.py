"""A retrieval model as the network that training, checkpoints and evaluation handle."""

from __future__ import annotations

from typing import Any

import torch

from headwater.feature_store.schema import Schema
from headwater.models.base import ModelConfig
from headwater.models.network import Network
from headwater.models.retrieval.base import RetrievalModel
from headwater.models.retrieval.interactions import Interactions
from headwater.models.seeds import derive_seed
from headwater.models.tables.looked import Looked


class RetrievalNetwork(Network):
    """A network without tables: vectors of users and items are weights of the model, read as a whole."""

    def forward(self, batch: Any) -> tuple[Any, Looked]:
        """Return what the model gives for a batch of its examples; nothing is looked up."""
        return self.model(batch), Looked({})


def build_retrieval_network(
    schema: Schema,
    model_class: type[RetrievalModel],
    config: ModelConfig,
    interactions: Interactions,
    seed: int,
) -> RetrievalNetwork:
    """Return a network on the CPU for training interactions; its first values depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "model"))
        model = model_class(config, interactions)
    return RetrievalNetwork(schema, model, "dense", seed, ())
