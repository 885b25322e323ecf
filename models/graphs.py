"""Graph of users and items, and messages over its edges, without a dense matrix of users and items.

A node is a row of users, or U + a row of items. The pattern of the adjacency matrix is stored once, by rows
(CSR); it is symmetric, so each matrix here has a backward pass of the same form.

U rows of users, N rows of items, V = U + N nodes, E directed edges, P pairs of nodes with an edge, D
dimension.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headwater.models.retrieval.interactions import Interactions

_LEAST_SUM = 1e-6
"""Sum of the weights of a node's edges below which it gets no message: so much rounding leaves of zero."""


class Graph(nn.Module):
    """A symmetric graph as a CSR pattern, in buffers that move with the model and that no checkpoint holds.

    Sums follow the order of the rows of users and items, so the order of events changes nothing. On a GPU
    products add in no fixed order, and runs do not repeat bit by bit. Float32 is kept under autocast.
    """

    start_V: Tensor
    """Where the edges of each node begin, and the end of all: (V + 1,)."""
    node_E: Tensor
    """Node that each edge leads to."""
    weight_E: Tensor
    """1 / sqrt(edges of one node * edges of the other)."""
    pair_start_V: Tensor
    """The same pattern with each pair of nodes once, at the lower one: (V + 1,)."""
    pair_node_P: Tensor
    pair_E: Tensor
    """Pair of each edge: both directions have the same."""

    def __init__(self, start_V: np.ndarray[Any, Any], node_E: np.ndarray[Any, Any]) -> None:
        super().__init__()
        # MKL takes int32 as it is, and half of what a product reads is indices.
        index = torch.int32 if len(node_E) < 2**31 else torch.int64
        degree_V = np.diff(start_V)
        weight_E = 1 / np.sqrt(np.repeat(degree_V, degree_V) * degree_V[node_E])
        num_nodes = len(degree_V)
        row_E = np.repeat(np.arange(num_nodes), degree_V)
        keys_E = np.minimum(row_E, node_E) * num_nodes + np.maximum(row_E, node_E)
        keys_P, pair_E = np.unique(keys_E, return_inverse=True)
        pairs_V = np.bincount(keys_P // num_nodes, minlength=num_nodes)
        self.register_buffer("start_V", torch.tensor(start_V, dtype=index), persistent=False)
        self.register_buffer("node_E", torch.tensor(node_E, dtype=index), persistent=False)
        pattern = {
            "pair_start_V": np.concatenate([[0], pairs_V.cumsum()]),
            "pair_node_P": keys_P % num_nodes,
            "pair_E": pair_E,
        }
        for name, values in pattern.items():
            self.register_buffer(name, torch.tensor(values, dtype=index), persistent=False)
        self.register_buffer(
            "weight_E", torch.tensor(weight_E, dtype=torch.float32), persistent=False
        )
        with warnings.catch_warnings():  # torch says at the first such tensor that they are beta
            warnings.simplefilter("ignore")
            self.matrix(self.weight_E)

    def matrix(self, value_E: Tensor) -> Tensor:
        """Return the (V, V) sparse matrix that has these values at the edges."""
        num_nodes = len(self.start_V) - 1
        return torch.sparse_csr_tensor(
            self.start_V, self.node_E, value_E, (num_nodes, num_nodes), check_invariants=False
        )

    def propagate(self, node_VD: Tensor) -> Tensor:
        """Return S X of node vectors X, where S = D^-1/2 A D^-1/2: (V, D), zeros without edges."""
        return _propagate(self, node_VD.to(self.weight_E.dtype))

    def propagate_alike(self, alike_VD: Tensor, node_VD: Tensor) -> Tensor:
        """Return, for each node, the mean of its neighbours' vectors `node_VD`, weighted by likeness: (V, D).

        An edge weighs (1 + cosine) / 2 of `alike_VD` at its ends. Where all edges of a node weigh nothing,
        or it has none, its row is zeros. Gradients flow through the weights and through their sum.
        """
        dtype = self.weight_E.dtype
        unit_VD = nn.functional.normalize(alike_VD.to(dtype))
        return _propagate_alike(self, unit_VD, node_VD.to(dtype))

    def likeness(self, unit_VD: Tensor) -> Tensor:
        """Return (1 + cosine) / 2 of the unit vectors at the ends of each edge, in [0, 1]: (E,)."""
        return self.products(unit_VD, unit_VD).mul_(0.5).add_(0.5).clamp_(0, 1)

    def products(self, a_VD: Tensor, b_VD: Tensor) -> Tensor:
        """Return the products of `a` at the lower node of each edge and `b` at the higher one: (E,).

        Each is computed once for both directions.
        """
        num_nodes = len(self.start_V) - 1
        zero_P = a_VD.new_zeros(len(self.pair_node_P))
        pattern = torch.sparse_csr_tensor(
            self.pair_start_V,
            self.pair_node_P,
            zero_P,
            (num_nodes, num_nodes),
            check_invariants=False,
        )
        found = torch.sparse.sampled_addmm(pattern, a_VD, b_VD.T, beta=0)
        return found.values().index_select(0, self.pair_E)


def user_item_graph(interactions: Interactions) -> Graph:
    """Return the graph of the pairs of known users and items with an event, each pair once both ways."""
    num_users, num_items = interactions.num_users, interactions.num_items
    user_E, item_E = interactions.users(), interactions.item_E.astype(np.int64)
    is_known_E = (user_E > 1) & (item_E > 1)
    keys = np.unique(user_E[is_known_E] * num_items + item_E[is_known_E])
    user_E, item_E = keys // num_items, keys % num_items
    by_item = np.argsort(item_E, kind="stable")
    node_E = np.concatenate([num_users + item_E, user_E[by_item]])
    degree_V = np.concatenate(
        [np.bincount(user_E, minlength=num_users), np.bincount(item_E, minlength=num_items)]
    )
    return Graph(np.concatenate([[0], degree_V.cumsum()]), node_E)


class _Propagate(torch.autograd.Function):
    """S X, whose gradient for X is S times that of the result, as S is symmetric."""

    @staticmethod
    def forward(ctx: Any, graph: Graph, node_VD: Tensor) -> Tensor:
        ctx.graph = graph
        return _product(graph, graph.weight_E, node_VD)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return None, _product(ctx.graph, ctx.graph.weight_E, grads[0])


class _PropagateAlike(torch.autograd.Function):
    """Q = A X / A 1, where A_ht = (1 + n_h n_t) / 2 at the edges, for unit vectors n.

    Let g be the gradient of Q divided by the sums A 1. A is symmetric, so the gradient of X is A g. Edge
    (h, t) gets g_h x_t + s_h, where s_h = -g_h q_h comes through the sum of h. Both directions of an edge
    read the same n_h n_t, so n_h gets half the sum over t of (g_h x_t + s_h + g_t x_h + s_t) n_t: one sampled
    product of concatenated rows gives the brackets, which are the same both ways, as is likeness. No array
    of E vectors is made, forward or backward.
    """

    @staticmethod
    def forward(ctx: Any, graph: Graph, unit_VD: Tensor, node_VD: Tensor) -> Tensor:
        weight_E = graph.likeness(unit_VD)
        sum_V1 = _product(graph, weight_E, node_VD.new_ones(len(node_VD), 1))
        scale_V1 = torch.where(sum_V1 > _LEAST_SUM, 1 / sum_V1, 0.0)
        mean_VD = _product(graph, weight_E, node_VD).mul_(scale_V1)
        ctx.graph = graph
        ctx.save_for_backward(weight_E, unit_VD, node_VD, mean_VD, scale_V1)
        return mean_VD

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        graph: Graph = ctx.graph
        weight_E, unit_VD, node_VD, mean_VD, scale_V1 = ctx.saved_tensors
        grad_VD = grads[0] * scale_V1
        sum_grad_V1 = -torch.linalg.vecdot(grad_VD, mean_VD).unsqueeze(1)
        one_V1 = torch.ones_like(scale_V1)
        bracket_E = graph.products(
            torch.cat([grad_VD, node_VD, sum_grad_V1, one_V1], 1),
            torch.cat([node_VD, grad_VD, one_V1, sum_grad_V1], 1),
        )
        unit_grad_VD = _product(graph, bracket_E, unit_VD).mul_(0.5)
        return None, unit_grad_VD, _product(graph, weight_E, grad_VD)


def _product(graph: Graph, value_E: Tensor, node_VD: Tensor) -> Tensor:
    """Return the product of the matrix that has `value_E` at the edges and node vectors, (V, D)."""
    with torch.autocast(node_VD.device.type, enabled=False):
        if node_VD.device.type != "cpu":
            return graph.matrix(value_E) @ node_VD
        # A row is a bag of neighbours: torch sums bags in a third of the time of its sparse product.
        return nn.functional.embedding_bag(
            graph.node_E,
            node_VD,
            graph.start_V,
            mode="sum",
            per_sample_weights=value_E,
            include_last_offset=True,
        )


def _propagate(graph: Graph, node_VD: Tensor) -> Tensor:
    return _Propagate.apply(graph, node_VD)


def _propagate_alike(graph: Graph, unit_VD: Tensor, node_VD: Tensor) -> Tensor:
    return _PropagateAlike.apply(graph, unit_VD, node_VD)
