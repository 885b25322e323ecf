"""The summary of ranked answers: what is counted, which slices there are, and its file."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from headwater.pipelines.evaluation.bootstrap import mean_intervals
from headwater.pipelines.evaluation.ranking import Ranked
from headwater.pipelines.evaluation.retrieval_records import RetrievalSplit
from headwater.pipelines.evaluation.retrieval_summary import Catalogue, summarise_ranking

NUM_ITEMS = 102


def ranked_users(users: int = 60) -> Ranked:
    """Return users with answers from the popular end and two test items each, one unknown for some."""
    rng = np.random.default_rng(0)
    item_QK = np.stack([2 + rng.permutation(30)[:20] for _ in range(users)]).astype(np.int32)
    relevant_QR = np.stack([2 + rng.permutation(100)[:2] for _ in range(users)])
    relevant_QR[::6, 0] = 1
    hit_QK = (item_QK[:, :, None] == relevant_QR[:, None]).any(2)
    relevant_E = np.sort(relevant_QR, axis=1).astype(np.int32).ravel()
    return Ranked(NUM_ITEMS, np.arange(users), item_QK, hit_QK, np.full(users, 2), relevant_E)


def catalogue_of(ranked: Ranked) -> Catalogue:
    events_N = np.maximum(0, 60 - np.arange(NUM_ITEMS))
    return Catalogue(
        events_N=events_N,
        known_Q=1 + np.arange(len(ranked)) % 10,
        history=lambda row: list(range(2, 2 + row)),
        user_name=lambda row: f"user {row}",
        item_name=lambda row: f"item {row}",
    )


def summary(ranked: Ranked) -> RetrievalSplit:
    return summarise_ranking(
        ranked,
        catalogue_of(ranked),
        [5, 20],
        rows=150,
        users_without_items=3,
        masked=["train"],
    )


def test_counts_of_users_and_items() -> None:
    found = summary(ranked_users())
    assert (found.users, found.users_without_items) == (60, 3)
    assert (found.test_items, found.unknown_items) == (120, 10)
    assert found.masked == ["train"]
    low, high = found.intervals["ndcg@20"] or (0, 0)
    assert low < (found.metrics["ndcg@20"] or 0) < high
    assert found.curves[0].k == [1, 2, 3, 5, 7, 10, 15, 20]
    curve = {each.metric: each.value for each in found.curves}
    assert curve["recall"][-1] == found.metrics["recall@20"]
    assert curve["recall"] == sorted(curve["recall"])


def test_slices_part_test_items_and_users_without_loss() -> None:
    found = summary(ranked_users())
    items = {each.name: each for each in found.slices if each.by == "items"}
    assert list(items) == ["warm", "cold", "unknown"]
    assert sum(each.test_items for each in items.values()) == found.test_items
    assert items["unknown"].metrics["recall@20"] == 0
    assert items["cold"].metrics["recall@20"] == 0  # no answer has an item beyond row 31
    users = [each for each in found.slices if each.by == "users"]
    assert [each.name for each in users] == [f"{i} to {i + 1} events" for i in range(1, 10, 2)]
    assert [each.users for each in users] == [12] * 5
    # The whole is the mean of its parts, by their users.
    whole = sum(each.users * (each.metrics["ndcg@5"] or 0) for each in users) / found.users
    assert whole == pytest.approx(found.metrics["ndcg@5"])


def test_popularity_deciles_add_up_and_show_the_lean_on_popular_items() -> None:
    found = summary(ranked_users())
    assert [decile.items for decile in found.deciles] == [10] * 10
    for name in ("events", "taken", "answered"):
        assert sum(getattr(each, name) for each in found.deciles) == pytest.approx(1)
        curve = getattr(found.popularity, name)
        assert (curve[0], curve[-1]) == (0, 1)
        assert curve == sorted(curve)
    assert sum(each.answered for each in found.deciles[:3]) == pytest.approx(1)
    assert sum(each.taken for each in found.deciles[:3]) < 0.5


def test_ten_users_are_shown_by_their_names() -> None:
    found = summary(ranked_users())
    assert len(found.examples) == 10
    last = found.examples[-1]
    assert last.user == "user 59"
    assert last.history == [f"item {row}" for row in range(51, 61)]
    assert len(last.shown) == 10
    hits = {each.item for example in found.examples for each in example.shown if each.hit}
    assert hits <= {item for example in found.examples for item in example.test_items}
    first = found.examples[0]
    assert (len(first.test_items), first.unknown_items) == (1, 1)


def test_a_summary_survives_its_file_even_without_users() -> None:
    ranked = ranked_users()
    for each in (ranked, ranked.where(np.zeros(60, np.bool_))):
        found = summary(each)
        text = msgspec.json.encode(found)
        assert b"NaN" not in text
        read = msgspec.json.decode(text, type=RetrievalSplit)
        assert read.users == len(each)
        assert msgspec.json.encode(read) == text
    assert found.examples == []
    assert found.metrics["recall@5"] is None or np.isnan(found.metrics["recall@5"])


def test_intervals_of_means_cover_what_the_normal_law_says() -> None:
    rng = np.random.default_rng(1)
    values = {"a": rng.normal(3, 1, 2000), "b": np.full(2000, np.nan), "c": np.full(2000, 2.0)}
    values["a"][::2] = np.nan
    found = mean_intervals(values)
    assert found["b"] is None
    assert found["c"] == (2.0, 2.0)
    low, high = found["a"] or (0, 0)
    assert high - low == pytest.approx(2 * 1.96 / np.sqrt(1000), rel=0.2)
    assert mean_intervals(values) == found
    assert mean_intervals({"a": np.empty(0)}) == {"a": None}
