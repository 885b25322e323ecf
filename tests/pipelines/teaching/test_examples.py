"""Batches that retrieval models learn from, against plain Python, for any interactions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headwater.models.retrieval.interactions import Interactions
from headwater.pipelines.family import Reading
from headwater.pipelines.ranks import Ranks
from headwater.pipelines.teaching.examples import (
    PairExamples,
    PrefixExamples,
    SequenceExamples,
    SetExamples,
    UserPairExamples,
)
from headwater.pipelines.teaching.queries import ask_users

CPU = torch.device("cpu")
ITEMS = 9

Logs = list[list[int]]
logs = st.lists(st.lists(st.integers(2, ITEMS - 1), max_size=7), min_size=1, max_size=6)


def interactions(histories: Logs) -> Interactions:
    """Return events of users 2, 3, ..; nobody is missing or unknown."""
    counts = [0, 0, *map(len, histories)]
    return Interactions(
        len(counts),
        ITEMS,
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        np.array([item for history in histories for item in history], np.int32),
    )


def rows(batch: Any, *names: str) -> list[tuple[Any, ...]]:
    """Return the examples of a batch as plain values, histories without padding."""
    found: list[tuple[Any, ...]] = []
    for i in range(len(batch)):
        values = [getattr(batch, name)[i] for name in names]
        found.append(
            tuple(
                tuple(value[: batch.length_B[i]].tolist()) if value.dim() else int(value)
                for value in values
            )
        )
    return found


@given(logs, st.integers(1, 5), st.integers(1, 4))
def test_every_prefix_foretells_its_next_item_once_an_epoch(
    histories: Logs, size: int, longest: int
) -> None:
    examples = PrefixExamples(interactions(histories), Reading(size), Ranks(), CPU, longest=longest)
    found = [row for batch in examples.epoch(3) for row in rows(batch, "item_BL", "target_B")]
    wanted = [
        (tuple(history[:end][-longest:]), history[end])
        for history in histories
        for end in range(1, len(history))
    ]
    assert Counter(found) == Counter(wanted)
    assert examples.rows == len(wanted)


@given(logs, st.integers(1, 5), st.integers(1, 4))
def test_every_user_with_two_events_is_one_sequence(
    histories: Logs, size: int, longest: int
) -> None:
    examples = SequenceExamples(
        interactions(histories), Reading(size), Ranks(), CPU, longest=longest
    )
    found = [row for batch in examples.epoch(0) for row in rows(batch, "item_BL", "target_BL")]
    wanted = [
        (tuple(history[:-1][-longest:]), tuple(history[1:][-longest:]))
        for history in histories
        if len(history) > 1
    ]
    assert Counter(found) == Counter(wanted)


@given(logs, st.integers(1, 5))
def test_a_set_has_each_item_once(histories: Logs, size: int) -> None:
    examples = SetExamples(interactions(histories), Reading(size), Ranks(), CPU)
    found = [row[0] for batch in examples.epoch(0) for row in rows(batch, "item_BL")]
    assert Counter(found) == Counter(tuple(sorted(set(each))) for each in histories if each)


@given(logs, st.integers(1, 5), st.integers(0, 3))
def test_pairs_are_all_events_and_items_that_their_users_lack(
    histories: Logs, size: int, epoch: int
) -> None:
    examples = PairExamples(interactions(histories), Reading(size, seed=5), Ranks(), CPU)
    found = [
        row
        for batch in examples.epoch(epoch)
        for row in rows(batch, "user_B", "positive_B", "negative_B")
    ]
    wanted = [(user, item) for user, own in enumerate(histories, start=2) for item in own]
    assert Counter((user, item) for user, item, _ in found) == Counter(wanted)
    for user, _, negative in found:
        own = set(histories[user - 2])
        assert 2 <= negative < ITEMS
        assert negative not in own or len(own) == ITEMS - 2


def test_users_are_drawn_evenly_whatever_their_events() -> None:
    log = interactions([[2] * 300, [3], [4, 5, 6]])
    examples = UserPairExamples(log, Reading(1000), Ranks(), CPU, draws=30_000)
    found = Counter(int(user) for batch in examples.epoch(0) for user in batch.user_B)
    assert sum(found.values()) == examples.rows == 30_000
    for user in (2, 3, 4):
        assert found[user] == pytest.approx(10_000, abs=500)


@pytest.mark.parametrize(
    "kind",
    [
        lambda *given: PrefixExamples(*given, longest=3),
        lambda *given: SequenceExamples(*given, longest=3),
        PairExamples,
        SetExamples,
    ],
)
def test_ranks_share_each_batch_and_epochs_resume_anywhere(kind: Callable[..., Any]) -> None:
    log = interactions([[2, 3, 4, 5, 6], [3, 4, 2], [6, 7, 8, 2], [5, 4]])
    alone = kind(log, Reading(3, seed=7), Ranks(), CPU)
    names = list(next(alone.epoch(1)).__dataclass_fields__)
    whole = [rows(batch, *names) for batch in alone.epoch(1)]
    parts = [
        [
            rows(batch, *names)
            for batch in kind(log, Reading(3, seed=7), Ranks(rank, 2), CPU).epoch(1)
        ]
        for rank in (0, 1)
    ]
    assert [Counter([*a, *b]) for a, b in zip(*parts, strict=True)] == [Counter(b) for b in whole]
    assert [rows(batch, *names) for batch in alone.epoch(1, 1)] == whole[1:]
    assert [rows(batch, *names) for batch in alone.epoch(2)] != whole


@given(logs, st.data())
def test_queries_have_what_came_before_and_mask_what_they_should(
    histories: Logs, data: st.DataObject
) -> None:
    more = data.draw(
        st.lists(
            st.lists(st.integers(1, ITEMS - 1), max_size=4),
            min_size=len(histories),
            max_size=len(histories),
        )
    )
    asked = ask_users(
        interactions(more),
        [interactions(histories)],
        masked=[interactions(histories)],
        events_N=np.zeros(ITEMS, np.int64),
        batch_size=2,
        device=CPU,
        longest=3,
    )
    users = [user for user, own in enumerate(more, start=2) if own]
    assert asked.user_Q.tolist() == users
    found = [row for batch in asked.epoch(0) for row in rows(batch, "user_B", "item_BL")]
    assert found == [(user, tuple(histories[user - 2][-3:])) for user in users]
    for query, user in enumerate(users):
        assert asked.relevant.of(query).tolist() == more[user - 2]
        assert asked.seen.of(query).tolist() == histories[user - 2]
