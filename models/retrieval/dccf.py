"""DCCF (SIGIR 2023): a graph of users and items, disentangled by intents, and its views contrasted.

A layer adds four messages to the vectors X: propagation over the graph, G = S X; the mixture T of learned
prototypes (intents) that each vector chooses; and means over neighbours, weighted by likeness of G (Q) and of
T (R) at the ends of an edge. The sum of all layers, the table included, gives the final vectors. The local
view G is contrasted with T, Q and R in every layer. Nothing is drawn.

V nodes (users, then items), B examples, D dimension, K intents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from headwater.models.base import ModelConfig
from headwater.models.graphs import user_item_graph
from headwater.models.phases import Descend, Phase
from headwater.models.retrieval.contrast import contrast
from headwater.models.retrieval.dccf_config import DCCFConfig
from headwater.models.retrieval.intents import mix_intents
from headwater.models.retrieval.interactions import Interactions, Pairs
from headwater.models.retrieval.pairwise import PairwiseModel, bpr
from headwater.models.strategy import OneLoss


@dataclass(frozen=True, slots=True)
class Views:
    """Messages of one layer, (V, D) each."""

    local_VD: Tensor
    """Over the graph as it is."""
    others: tuple[Tensor, ...]
    """Graph-adaptive, intents, intent-adaptive: those that the settings have."""


@dataclass(frozen=True, slots=True)
class Output:
    """Margins of a batch, and the views of all nodes, a record a layer."""

    margin_B: Tensor
    layers: tuple[Views, ...]


class DCCF(PairwiseModel):
    """Disentangled contrastive collaborative filtering."""

    config_class = DCCFConfig
    needs_whole_batch: ClassVar[bool] = True
    config: DCCFConfig

    def __init__(self, config: DCCFConfig, interactions: Interactions) -> None:
        super().__init__(config, interactions)
        self.graph = user_item_graph(interactions)
        shape = (config.embedding_dim, config.num_intents)
        self.user_intent_DK = nn.Parameter(torch.empty(shape))
        self.item_intent_DK = nn.Parameter(torch.empty(shape))
        self.term_weight_4 = nn.Parameter(torch.ones(4)) if config.learn_terms else None
        """Weights of the messages: local, graph-adaptive, intents, intent-adaptive."""
        init = nn.init.xavier_normal_ if config.init == "xavier_normal" else nn.init.xavier_uniform_
        for weight in (*self.known(), self.user_intent_DK, self.item_intent_DK):
            init(weight)

    @classmethod
    def draws_of(cls, config: ModelConfig) -> int | None:
        """Return the users of an epoch, where users are drawn."""
        assert isinstance(config, DCCFConfig)
        return config.draws if config.sampling == "users" else None

    @classmethod
    def phases(cls, config: ModelConfig) -> tuple[Phase, ...]:
        """Return one descent on one loss, which ends with the epoch that the settings keep."""
        assert isinstance(config, DCCFConfig)
        return (Descend(OneLoss, keep=config.keep, mode="dense"),)

    def intents(self, node_VD: Tensor) -> Tensor:
        """Return the mixture of its side's prototypes that each vector chooses, (V, D)."""
        user_UD, item_ND = node_VD[: self.num_users], node_VD[self.num_users :]
        mixed = (
            mix_intents(user_UD, self.user_intent_DK),
            mix_intents(item_ND, self.item_intent_DK),
        )
        return torch.cat(mixed)

    def layer(self, node_VD: Tensor) -> tuple[Tensor, Views]:
        """Return the vectors after one layer, and its views."""
        config, graph = self.config, self.graph
        views = {0: graph.propagate(node_VD)}
        if config.graph_adaptive_view:
            views[1] = graph.propagate_alike(views[0], node_VD)
        if config.intent_view or config.intent_adaptive_view:
            intent_VD = self.intents(node_VD)
            if config.intent_view:
                views[2] = intent_VD
            if config.intent_adaptive_view:
                views[3] = graph.propagate_alike(intent_VD, node_VD)
        total_VD, weight_4 = node_VD, self.term_weight_4
        for term, message_VD in views.items():
            total_VD = total_VD + (message_VD if weight_4 is None else weight_4[term] * message_VD)
        local_VD, *others = views.values()
        return total_VD, Views(local_VD, tuple(others))

    def encode(self) -> tuple[Tensor, tuple[Views, ...]]:
        """Return the sum of all layers, (V, D), and the views of each."""
        node_VD = total_VD = self.node_VD
        layers: list[Views] = []
        for _ in range(self.config.num_layers):
            node_VD, views = self.layer(node_VD)
            layers.append(views)
            total_VD = total_VD + node_VD
        return total_VD, tuple(layers)

    def vectors(self) -> Tensor:
        """Return the sum of all layers, (V, D)."""
        return self.encode()[0]

    def forward(self, batch: Pairs) -> Output:
        """Return how far each item is above the other, and the views."""
        final_VD, layers = self.encode()
        return Output(self.margin(final_VD, batch), layers)

    def loss(self, output: Output, batch: Pairs) -> Tensor:
        """Return B times the published loss, whose ranking term alone is a mean over the batch of B examples.

        The published penalties are sums (of rows of the batch, and of whole weights), and the contrast is a
        sum of means over the batch's distinct users or items. Training divides what is returned by B, and so
        each has its published weight. The contrast reads a batch as a whole: parts of it on several ranks
        would give another loss. Published code adds 1e-8 inside its logarithms; here they are exact.
        """
        config = self.config
        intents = self.user_intent_DK.square().sum() + self.item_intent_DK.square().sum()
        rest = config.l2_intents * intents
        if config.l2_rows:
            rest = rest + config.l2_rows * self.row_norms(batch)
        if config.l2_table:
            rest = rest + config.l2_table * self.node_VD.square().sum()
        if config.contrast_weight:
            rest = rest + config.contrast_weight * self.contrast(output.layers, batch)
        return bpr(output.margin_B) + len(batch) * rest

    def contrast(self, layers: tuple[Views, ...], batch: Pairs) -> Tensor:
        """Return the contrast of the local view with the others, over layers, views and both sides."""
        config = self.config
        users, positives, negatives = self.rows(batch)
        if config.contrast_items == "all":
            positives = torch.cat([positives, negatives])
        users, items = users.unique(), positives.unique()
        num_items = len(users) if config.item_mean == "users" else len(items)
        rows, sizes = torch.cat([users, items]), [len(users), len(items)]
        total = self.node_VD.new_zeros(())
        for views in layers:
            local = views.local_VD[rows].split(sizes)
            for other_VD in views.others:
                other = other_VD[rows].split(sizes)
                for side, count in enumerate((len(users), num_items)):
                    term = contrast(
                        local[side],
                        other[side],
                        temperature=config.temperature,
                        block=config.contrast_block,
                    )
                    total = total + term / count
        return total
