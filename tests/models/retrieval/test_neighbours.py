"""Item-item models and popularity: against dense matrices by their definitions, and their limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from headwater.feature_store.errors import JobError, TrainingError
from headwater.feature_store.schema import Schema
from headwater.models.placement.place import place
from headwater.models.retrieval import neighbours
from headwater.models.retrieval.ease import EASE, EASEConfig
from headwater.models.retrieval.interactions import Interactions, Queries
from headwater.models.retrieval.item_knn import ItemKNN, ItemKNNConfig
from headwater.models.retrieval.neighbours import NeighboursModel
from headwater.models.retrieval.network import build_retrieval_network
from headwater.models.retrieval.popularity import Popularity, PopularityConfig
from headwater.models.retrieval.rp3beta import RP3beta, RP3betaConfig
from headwater.models.retrieval.solve import SolvedModel

USERS, ITEMS = 30, 14
MODELS: list[type[SolvedModel]] = [Popularity, ItemKNN, RP3beta, EASE]
ITEM_MODELS: list[type[NeighboursModel]] = [ItemKNN, RP3beta, EASE]

Matrix = NDArray[np.float64]


def make_events(seed: int = 0) -> Interactions:
    """Return random events, some of them twice and some of unknown items; item 13 has none."""
    random = np.random.default_rng(seed)
    count_U = random.integers(0, 9, USERS)
    count_U[:2] = 0
    share_N = 1 / np.arange(1, ITEMS)
    item_E = random.choice(np.arange(1, ITEMS), count_U.sum(), p=share_N / share_N.sum())
    item_E[item_E == 13] = 2
    starts_U = np.concatenate([[0], count_U.cumsum()])
    return Interactions(USERS, ITEMS, starts_U, item_E.astype(np.int32))


EVENTS = make_events()


def dense(events: Interactions = EVENTS) -> Matrix:
    """Return which user has which known item, (U, N)."""
    matrix_UN = np.zeros((events.num_users, events.num_items))
    for user in range(2, events.num_users):
        matrix_UN[user, events.of(user)] = 1
    matrix_UN[:, :2] = 0
    return matrix_UN


def solve(model_class: type[SolvedModel], events: Interactions = EVENTS, **settings: Any) -> Any:
    model = model_class(model_class.config_class(**settings), events)  # pyright: ignore[reportArgumentType]
    model.solve(lambda _: None)
    return model


def ask(*histories: list[int]) -> Queries:
    longest = max(map(len, histories))
    item_BL = torch.tensor([each + [0] * (longest - len(each)) for each in histories]).long()
    size = len(histories)
    return Queries(torch.ones(size).long(), item_BL.view(size, longest), torch.zeros(size).long())


def weights(model: NeighboursModel) -> Matrix:
    """Return the scores that each item alone gives, (N, N)."""
    return model.scores(ask(*([item] for item in range(ITEMS)))).double().numpy()


def pruned(weight_NN: Matrix, number: int) -> Matrix:
    """Return the largest entries of each column, of equal ones the first; the diagonal is none of them."""
    kept_NN = np.zeros_like(weight_NN)
    for column in range(len(weight_NN)):
        rows = [row for row in range(len(weight_NN)) if row != column and weight_NN[row, column]]
        rows.sort(key=lambda row: (-round(weight_NN[row, column], 6), row))
        kept_NN[rows[:number], column] = weight_NN[rows[:number], column]
    return kept_NN


def cosine(x: Matrix, y: Matrix, weight: Matrix, shrink: float) -> float:
    norms = np.sqrt((weight * x * x).sum() * (weight * y * y).sum())
    return float((weight * x * y).sum() / (norms + shrink)) if norms else 0.0


@pytest.mark.parametrize("number", [3, 100])
@pytest.mark.parametrize("user_weight", ["uniform", "idf"])
def test_item_knn_is_the_shrunk_cosine_of_the_largest(user_weight: str, number: int) -> None:
    matrix_UN = dense()
    weight_U = np.ones(USERS)
    if user_weight == "idf":
        weight_U = np.log((ITEMS - 2) / np.maximum(matrix_UN.sum(1), 1)) ** 2
    expected_NN = np.array(
        [[cosine(x, y, weight_U, 2.5) for y in matrix_UN.T] for x in matrix_UN.T]
    )
    model = solve(ItemKNN, shrink=2.5, user_weight=user_weight, num_neighbours=number)
    np.testing.assert_allclose(weights(model), pruned(expected_NN, number), atol=1e-6)


@pytest.mark.parametrize("number", [3, 100])
def test_rp3beta_is_the_walk_of_three_steps_against_popularity(number: int) -> None:
    matrix_UN = dense()
    of_user_UN = (matrix_UN / np.maximum(matrix_UN.sum(1, keepdims=True), 1)) ** 0.8
    of_item_NU = (matrix_UN.T / np.maximum(matrix_UN.sum(0)[:, None], 1)) ** 0.8
    expected_NN = of_item_NU @ of_user_UN / np.maximum(matrix_UN.sum(0), 1) ** 0.3
    model = solve(RP3beta, alpha=0.8, beta=0.3, num_neighbours=number)
    np.testing.assert_allclose(weights(model), pruned(expected_NN, number), atol=1e-6)


@pytest.mark.parametrize("number", [3, 100])
def test_ease_is_the_closed_form_with_an_empty_diagonal(number: int) -> None:
    matrix_UN = dense()
    inverse_NN = np.linalg.inv(matrix_UN.T @ matrix_UN + 2.0 * np.eye(ITEMS))
    expected_NN = -inverse_NN / np.diag(inverse_NN)
    expected_NN[np.abs(expected_NN) < 1e-12] = 0
    model = solve(EASE, l2=2.0, num_neighbours=number)
    np.testing.assert_allclose(weights(model), pruned(expected_NN, number), atol=1e-5)


@pytest.mark.parametrize("model_class", ITEM_MODELS)
def test_blocks_of_any_size_give_the_same(
    model_class: type[NeighboursModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    histories = ask([2, 3, 4, 5], [6, 2], [7])
    whole = solve(model_class, num_neighbours=4)
    expected = whole.scores(histories)
    monkeypatch.setattr(neighbours, "BLOCK", 20)
    monkeypatch.setattr("headwater.models.retrieval.ease.BLOCK", 40)
    blocks = solve(model_class, num_neighbours=4)
    for name, value in whole.state_dict().items():
        assert torch.equal(blocks.state_dict()[name], value)
    assert torch.equal(blocks.scores(histories), expected)


@pytest.mark.parametrize("model_class", ITEM_MODELS)
def test_a_history_is_a_set_of_known_items(model_class: type[NeighboursModel]) -> None:
    model = solve(model_class)
    weight_NN = torch.from_numpy(weights(model)).float()
    score_BN = model.scores(ask([5, 0, 2, 5, 1, 5], [2, 5], [], [0, 1], [4]))
    torch.testing.assert_close(score_BN[0], weight_NN[2] + weight_NN[5])
    assert torch.equal(score_BN[1], score_BN[0])
    assert not score_BN[2:4].any()
    assert torch.equal(score_BN[4], weight_NN[4])
    assert model.scores(ask([], [])).shape == (2, ITEMS)
    assert not score_BN[:, [0, 1, 13]].any()


@pytest.mark.parametrize("model_class", MODELS)
def test_what_was_solved_loads_into_a_fresh_network(model_class: type[SolvedModel]) -> None:
    def build() -> Any:
        config = model_class.config_class()
        network = build_retrieval_network(
            Schema(raw=(), columns=()), model_class, config, EVENTS, seed=0
        )
        return place(network, torch.device("cpu"))

    solved, fresh = build(), build()
    solved.network.model.solve(lambda _: None)
    fresh.load_weights(solved.weights())
    history = ask([2, 3, 4])
    expected = solved.network.model.scores(history)
    assert expected.any()
    assert torch.equal(fresh.network.model.scores(history), expected)


def test_popularity_counts_events_for_everybody() -> None:
    model = solve(Popularity)
    score_BN = model.scores(ask([2], []))
    assert score_BN.tolist() == [np.bincount(EVENTS.item_E, minlength=ITEMS).tolist()] * 2


def test_popularity_sums_the_weights_of_events() -> None:
    events = Interactions(
        3, 4, np.array([0, 0, 0, 3]), np.array([2, 3, 2], np.int32), np.array([1, 5, 2], np.float32)
    )
    assert solve(Popularity, events).scores(ask([])).tolist() == [[0, 0, 3, 5]]


def test_ease_states_its_memory_and_refuses_too_much() -> None:
    notes: list[str] = []
    EASE(EASEConfig(), EVENTS).solve(notes.append)
    assert notes == ["14 items take a dense matrix of 0.00 GB"]
    with pytest.raises(JobError, match=r"14 items take .* 784 bytes, more than 783\. Raise it"):
        EASE(EASEConfig(max_bytes=783), EVENTS)


def test_ease_says_that_it_needs_more_l2() -> None:
    twins = Interactions(3, 4, np.array([0, 0, 0, 2]), np.array([2, 3], np.int32))
    with pytest.raises(TrainingError, match=r"singular with model\.l2 = 1e-30\. Raise it"):
        solve(EASE, twins, l2=1e-30)


@pytest.mark.parametrize("model_class", MODELS)
def test_without_an_event_nothing_is_likely(model_class: type[SolvedModel]) -> None:
    none = Interactions(USERS, ITEMS, np.zeros(USERS + 1, np.int64), np.zeros(0, np.int32))
    assert not solve(model_class, none).scores(ask([2, 3])).any()


@pytest.mark.parametrize(
    "config_class", [PopularityConfig, ItemKNNConfig, RP3betaConfig, EASEConfig]
)
def test_its_config_goes_through_json_and_back(config_class: type[Any]) -> None:
    config = config_class()
    assert config_class.model_validate_json(config.model_dump_json()) == config
