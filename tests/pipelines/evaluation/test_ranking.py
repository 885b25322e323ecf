"""Answers over the full catalogue: exact order, masks, and blocks that change nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from headwater.feature_store.errors import TrainingError
from headwater.models.base import ModelConfig
from headwater.models.retrieval.base import ScoreModel, VectorModel
from headwater.models.retrieval.interactions import Interactions, Queries
from headwater.pipelines.evaluation import ranking
from headwater.pipelines.evaluation.ranking import Ranked, rank, top_k

CPU = torch.device("cpu")


def interactions(num_items: int, rows: Sequence[Sequence[int]]) -> Interactions:
    """Return the events of users, each a list of item rows."""
    starts = np.cumsum([0, *map(len, rows)])
    items = np.array([item for row in rows for item in row], np.int32)
    return Interactions(len(rows), num_items, starts.astype(np.int64), items)


def ask(users: int, batch: int = 1000) -> list[Queries]:
    """Return a query of each user, in batches."""
    parts = torch.arange(users).split(batch)
    return [Queries(part, torch.zeros(len(part), 1, dtype=torch.long), part * 0) for part in parts]


class Scored(ScoreModel):
    """A model whose scores are given."""

    query = "user"
    taught = "sets"
    config_class = ModelConfig

    def __init__(self, score_UN: Tensor) -> None:
        users, items = score_UN.shape
        super().__init__(ModelConfig(), interactions(items, [[]] * users))
        self.score_UN = nn.Buffer(score_UN)

    def scores(self, asked: Queries) -> Tensor:
        return self.score_UN[asked.user_B]


class Factors(VectorModel):
    """A model of given vectors that counts how often it is refreshed."""

    query = "user"
    taught = "pairs"
    config_class = ModelConfig
    refreshed = 0

    def __init__(self, user_UD: Tensor, item_ND: Tensor) -> None:
        super().__init__(ModelConfig(), interactions(len(item_ND), [[]] * len(user_UD)))
        self.user_UD, self.item_ND = nn.Buffer(user_UD), nn.Buffer(item_ND)

    def refresh(self) -> None:
        self.refreshed += 1

    def items(self) -> Tensor:
        return self.item_ND

    def queries(self, asked: Queries) -> Tensor:
        return self.user_UD[asked.user_B]


def ranked_of(
    scores: Tensor, relevant: list[list[int]], k: int, seen: list[list[int]] | None = None
) -> Ranked:
    num_items = scores.shape[1]
    return rank(
        Scored(scores),
        ask(len(scores)),
        relevant=interactions(num_items, relevant),
        seen=interactions(num_items, seen or [[]] * len(scores)),
        k=k,
        device=CPU,
    )


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 5).flatmap(
        lambda num_items: st.lists(
            st.lists(
                st.sampled_from([-torch.inf, -1.0, 0.0, -0.0, 0.5, 2.0]),
                min_size=num_items + 2,
                max_size=num_items + 2,
            ),
            min_size=1,
            max_size=4,
        )
    ),
    k=st.integers(1, 9),
)
def test_top_k_is_the_head_of_a_stable_sort(rows: list[list[float]], k: int) -> None:
    found = top_k(torch.tensor(rows), k)
    assert found.shape == (len(rows), min(k, len(rows[0])))
    for row, answer in zip(rows, found.tolist(), strict=True):
        order = sorted(range(2, len(row)), key=lambda item: -row[item])
        expected = [item for item in order if row[item] > -torch.inf][: len(answer)]
        assert answer == expected + [0] * (len(answer) - len(expected))


@pytest.mark.parametrize("levels", [1, 3, 40])
def test_ties_go_to_lower_rows_in_a_large_catalogue(levels: int) -> None:
    scores = torch.randint(levels, (16, 3000), generator=torch.Generator().manual_seed(levels))
    expected = scores[:, 2:].float().sort(dim=1, descending=True, stable=True).indices[:, :20] + 2
    assert torch.equal(top_k(scores.float(), 20), expected)


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"not numbers. Lower train\.dense\.lr"):
        top_k(torch.tensor([[0.0, 0.0, 1.0, torch.nan, 2.0]]), 2)


def test_seen_items_are_no_answers() -> None:
    scores = torch.tensor([[9.0, 9, 5, 4, 3, 2]]).repeat(2, 1)
    ranked = ranked_of(scores, [[4], [2, 5]], 3, seen=[[2, 3, 5], [2]])
    assert ranked.item_QK.tolist() == [[4, 0, 0], [3, 4, 5]]
    assert ranked.hit_QK.tolist() == [[True, False, False], [False, False, True]]
    # A relevant item that was also seen stays in the number of relevant ones.
    assert ranked.num_relevant_Q.tolist() == [1, 2]


def test_more_answers_than_items_are_asked_for() -> None:
    ranked = ranked_of(torch.tensor([[0.0, 0, 1, 2]]), [[2]], 50)
    assert ranked.item_QK.tolist() == [[3, 2, 0, 0]]


def test_queries_without_relevant_items_have_no_row_and_items_count_once() -> None:
    ranked = ranked_of(torch.rand(4, 6), [[3, 3, 2], [], [1, 1, 4], []], 2)
    assert ranked.query_Q.tolist() == [0, 2]
    assert ranked.num_relevant_Q.tolist() == [2, 3]
    assert ranked.relevant_E.tolist() == [2, 3, 1, 1, 4]  # two unknown items may be two items
    assert ranked.num_unknown == 2


def test_blocks_and_kinds_of_models_give_the_same_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    # Whole numbers, so that products are exact in any order, and many tie.
    user_UD, item_ND = torch.randint(-3, 4, (40, 4)).float(), torch.randint(-3, 4, (90, 4)).float()
    rng = np.random.default_rng(0)
    relevant = interactions(
        90, [rng.integers(1, 90, rng.integers(0, 6)).tolist() for _ in range(40)]
    )
    seen = interactions(90, [rng.integers(2, 90, 5).tolist() for _ in range(40)])
    model = Factors(user_UD, item_ND).train()

    def answers(model: VectorModel | ScoreModel, batch: int) -> Ranked:
        return rank(model, ask(40, batch), relevant=relevant, seen=seen, k=9, device=CPU)

    whole = answers(model, 40)
    assert model.refreshed == 1
    assert model.training
    monkeypatch.setattr(ranking, "BLOCK_BYTES", 90 * 4 * 3)
    scored = Scored(user_UD @ item_ND.T)
    before = scored.score_UN.clone()
    for again in (answers(model, 7), answers(scored, 7), answers(scored, 1)):
        assert np.array_equal(again.item_QK, whole.item_QK)
        assert np.array_equal(again.hit_QK, whole.hit_QK)
        assert np.array_equal(again.query_Q, whole.query_Q)
    assert torch.equal(scored.score_UN, before)


def test_a_part_of_items_or_queries_is_ranked_as_if_it_were_alone() -> None:
    scores = torch.rand(3, 8)
    relevant = [[2, 3], [4], [1, 5, 6, 7]]
    ranked = ranked_of(scores, relevant, 4)
    chosen_N = np.isin(np.arange(8), [3, 6, 7])
    part = ranked.among(chosen_N)
    alone = ranked_of(scores, [[3], [], [6, 7]], 4)
    for found, expected in ((part, alone), (ranked.where(np.array([True, False, True])), None)):
        expected = expected or ranked_of(scores, [relevant[0], [], relevant[2]], 4)
        assert np.array_equal(found.query_Q, expected.query_Q)
        assert np.array_equal(found.item_QK, expected.item_QK)
        assert np.array_equal(found.hit_QK, expected.hit_QK)
        assert np.array_equal(found.num_relevant_Q, expected.num_relevant_Q)
        assert np.array_equal(found.relevant_E, expected.relevant_E)
