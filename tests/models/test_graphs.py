"""Products over the graph: against dense matrices, in any order of edges, and where weights vanish."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from headwater.models.graphs import Graph, user_item_graph
from headwater.models.retrieval.interactions import Interactions


def make_interactions(pairs: list[tuple[int, int]], num_users: int, num_items: int) -> Interactions:
    """Return interactions of users with items in the given order of each user."""
    ordered = sorted(pairs, key=lambda pair: pair[0])
    counts = np.bincount([user for user, _ in ordered], minlength=num_users)
    return Interactions(
        num_users,
        num_items,
        np.concatenate([[0], counts.cumsum()]),
        np.array([item for _, item in ordered], dtype=np.int32),
    )


PAIRS = [(2, 2), (2, 3), (3, 3), (3, 4), (4, 2), (4, 4), (4, 5), (5, 6), (6, 5)]
NUM_USERS, NUM_ITEMS = 8, 9
"""User 7 and items 7 and 8 have no event."""


@pytest.fixture
def graph() -> Graph:
    return user_item_graph(make_interactions(PAIRS, NUM_USERS, NUM_ITEMS)).double()


def adjacency(pairs: list[tuple[int, int]] = PAIRS) -> Tensor:
    dense_VV = torch.zeros(NUM_USERS + NUM_ITEMS, NUM_USERS + NUM_ITEMS, dtype=torch.float64)
    for user, item in pairs:
        dense_VV[user, NUM_USERS + item] = dense_VV[NUM_USERS + item, user] = 1
    return dense_VV


def symmetric(adjacency_VV: Tensor) -> Tensor:
    scale_V = adjacency_VV.sum(1).pow(-0.5).nan_to_num(0, 0, 0)
    return scale_V[:, None] * adjacency_VV * scale_V


def alike(adjacency_VV: Tensor, alike_VD: Tensor) -> Tensor:
    """The row-normalised weights of edges as a dense matrix, by the formula of the paper."""
    unit_VD = nn.functional.normalize(alike_VD)
    weight_VV = adjacency_VV * (unit_VD @ unit_VD.T + 1) / 2
    return weight_VV / weight_VV.sum(1, keepdim=True).clamp_min(1e-9)


def random(seed: int, dim: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(NUM_USERS + NUM_ITEMS, dim, generator=generator, dtype=torch.float64)


def test_the_pattern_has_each_pair_once_both_ways_and_nothing_between_two_of_a_side(
    graph: Graph,
) -> None:
    dense_VV = graph.matrix(torch.ones_like(graph.weight_E)).to_dense()
    assert torch.equal(dense_VV, adjacency())
    assert len(graph.node_E) == 2 * len(PAIRS)
    assert graph.node_E.dtype == torch.int32


def test_the_normalised_matrix_is_symmetric_with_spectral_radius_of_one(graph: Graph) -> None:
    dense_VV = graph.matrix(graph.weight_E).to_dense()
    torch.testing.assert_close(dense_VV, symmetric(adjacency()), atol=1e-7, rtol=0)
    torch.testing.assert_close(dense_VV, dense_VV.T)
    assert torch.linalg.eigvalsh(dense_VV).abs().max() == pytest.approx(1, abs=1e-6)


def test_repeated_events_and_rows_of_missing_and_unknown_make_no_edge(graph: Graph) -> None:
    events = [*PAIRS, *PAIRS[:3], (0, 3), (1, 3), (3, 0), (3, 1)]
    again = user_item_graph(make_interactions(events, NUM_USERS, NUM_ITEMS))
    assert torch.equal(again.node_E, graph.node_E)
    assert torch.equal(again.start_V, graph.start_V)


@given(order=st.permutations(PAIRS))
@settings(max_examples=20, deadline=None)
def test_the_order_of_events_changes_nothing(order: list[tuple[int, int]]) -> None:
    ours, other = (
        user_item_graph(make_interactions(pairs, NUM_USERS, NUM_ITEMS)).double()
        for pairs in (PAIRS, order)
    )
    node_VD = random(0)
    assert torch.equal(ours.propagate(node_VD), other.propagate(node_VD))
    assert torch.equal(
        ours.propagate_alike(node_VD, node_VD), other.propagate_alike(node_VD, node_VD)
    )


def test_products_equal_those_with_dense_matrices(graph: Graph) -> None:
    alike_VD, node_VD = random(1), random(2)
    torch.testing.assert_close(
        graph.propagate(node_VD), symmetric(adjacency()) @ node_VD, atol=1e-6, rtol=1e-6
    )
    torch.testing.assert_close(
        graph.propagate_alike(alike_VD, node_VD), alike(adjacency(), alike_VD) @ node_VD
    )


def test_gradients_equal_finite_differences(graph: Graph) -> None:
    inputs = (random(3, 3).requires_grad_(), random(4, 3).requires_grad_())
    assert torch.autograd.gradcheck(graph.propagate, inputs[:1])
    assert torch.autograd.gradcheck(graph.propagate_alike, inputs)


def test_gradients_equal_those_through_dense_matrices(graph: Graph) -> None:
    alike_VD, node_VD = random(3).requires_grad_(), random(4).requires_grad_()
    weight_VD = random(5)
    ours = (graph.propagate_alike(alike_VD, node_VD) * weight_VD).sum()
    dense = (alike(adjacency(), alike_VD) @ node_VD * weight_VD).sum()
    for found, expected in zip(
        torch.autograd.grad(ours, (alike_VD, node_VD)),
        torch.autograd.grad(dense, (alike_VD, node_VD)),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)


def test_weights_of_a_row_sum_to_one_with_edges_and_to_zero_without(graph: Graph) -> None:
    sum_V1 = graph.propagate_alike(random(6), torch.ones(len(adjacency()), 1).double())
    has_edge_V = adjacency().sum(1) > 0
    torch.testing.assert_close(sum_V1.squeeze(1), has_edge_V.double())
    likeness_E = graph.likeness(nn.functional.normalize(random(6)))
    assert likeness_E.min() >= 0
    assert likeness_E.max() <= 1


@given(scale=st.floats(0.01, 100))
@settings(max_examples=20, deadline=None)
def test_a_scale_of_what_weighs_edges_changes_no_weight(scale: float) -> None:
    graph = user_item_graph(make_interactions(PAIRS, NUM_USERS, NUM_ITEMS)).double()
    torch.testing.assert_close(
        graph.propagate_alike(scale * random(7), random(8)),
        graph.propagate_alike(random(7), random(8)),
    )


def test_equal_vectors_come_back_where_there_are_edges(graph: Graph) -> None:
    node_VD = random(9)[:1].expand(len(adjacency()), -1)
    has_edge_V1 = (adjacency().sum(1) > 0).double()[:, None]
    torch.testing.assert_close(graph.propagate_alike(node_VD, node_VD), node_VD * has_edge_V1)


@pytest.mark.parametrize("angle", [0.0, 0.3, 1.1])
def test_opposite_ends_of_an_only_edge_give_zeros_and_finite_gradients(angle: float) -> None:
    graph = user_item_graph(make_interactions([(2, 2)], 3, 3))
    direction_D = torch.tensor([np.cos(angle), np.sin(angle)], dtype=torch.float32)
    alike_VD = torch.stack([direction_D] * 3 + [-3 * direction_D] * 3).requires_grad_()
    node_VD = torch.ones(6, 2, requires_grad=True)
    found_VD = graph.propagate_alike(alike_VD, node_VD)
    assert torch.equal(found_VD, torch.zeros(6, 2))
    found_VD.sum().backward()
    for tensor in (alike_VD, node_VD):
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()


def test_vectors_of_zeros_weigh_edges_evenly(graph: Graph) -> None:
    node_VD, zero_VD = random(1), torch.zeros(17, 5, dtype=torch.float64, requires_grad=True)
    found_VD = graph.propagate_alike(zero_VD, node_VD)
    adjacency_VV = adjacency()
    mean_VV = adjacency_VV / adjacency_VV.sum(1, keepdim=True).clamp_min(1)
    torch.testing.assert_close(found_VD, mean_VV @ node_VD)
    found_VD.sum().backward()
    assert zero_VD.grad is not None
    assert torch.isfinite(zero_VD.grad).all()


def test_products_stay_in_float32_under_autocast() -> None:
    graph = user_item_graph(make_interactions(PAIRS, NUM_USERS, NUM_ITEMS))
    node_VD = random(0).float().requires_grad_()
    plain_VD = graph.propagate_alike(graph.propagate(node_VD), node_VD)
    with torch.autocast("cpu", torch.bfloat16):
        found_VD = graph.propagate_alike(graph.propagate(node_VD), node_VD)
        half_VD = graph.propagate(node_VD.bfloat16())
    assert torch.equal(found_VD, plain_VD)
    assert half_VD.dtype == torch.float32
    half_VD.sum().backward()


def test_nothing_larger_than_a_number_an_edge_is_made() -> None:
    size, dim = 40, 8
    pairs = [(user, item) for user in range(2, size) for item in range(2, size)]
    graph = user_item_graph(make_interactions(pairs, size, size))
    node_VD = torch.randn(2 * size, dim, requires_grad=True)
    sizes: list[int] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.layout == torch.strided:
                sizes.append(out.numel())
            return out

    with Watch():
        graph.propagate_alike(graph.propagate(node_VD), node_VD).sum().backward()
    assert max(sizes) == len(graph.node_E) == 2 * len(pairs)


def test_no_checkpoint_holds_the_graph(graph: Graph) -> None:
    assert not graph.state_dict()


def test_a_graph_without_edges_sends_nothing() -> None:
    graph = user_item_graph(make_interactions([], 4, 4))
    node_VD = torch.ones(8, 2)
    assert torch.equal(graph.propagate(node_VD), torch.zeros(8, 2))
    assert torch.equal(graph.propagate_alike(node_VD, node_VD), torch.zeros(8, 2))
