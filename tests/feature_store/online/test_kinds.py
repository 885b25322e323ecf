"""Features as functions of (events, t): any order and any cut of the events ends in the same rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from headwater.feature_store.online.definition import fold_row
from headwater.feature_store.online.kinds import Count, Events, Folded, History, Last, Rate
from headwater.feature_store.schema import INT64_MIN

LATENESS_MS = 5_000
SECOND = 1000


@dataclass(frozen=True)
class Event:
    time_ms: int
    offset: int
    kind: str
    amount: int | None


FEATURES: tuple[Folded, ...] = (
    Count("all"),
    Count("spent", {"kind": ("click",)}, "amount"),
    Count("recent", window_ms=10_000, grain_ms=2_000),
    Count("recent_spent", {"kind": ("click", "view")}, "amount", 6_000, 1_000),
    Rate(
        "rate",
        Count("of", {"kind": ("click",)}, window_ms=8_000, grain_ms=2_000),
        Count("over", {"kind": ("view",)}, window_ms=8_000, grain_ms=2_000),
        prior=0.25,
        strength=4,
    ),
    Last("last", "amount", "int64", {"kind": ("click",)}, ttl_ms=4_000),
    History("history", "amount", "int64", 3),
)


@st.composite
def logs(draw: st.DrawFn) -> list[Event]:
    """Draw events of one key, no older than the allowed lateness when they come, in order of arrival."""
    drawn = draw(
        st.lists(
            st.tuples(
                st.integers(0, 4_000),
                st.integers(0, LATENESS_MS),
                st.sampled_from(["click", "view", "other"]),
                st.none() | st.integers(-5, 5),
            ),
            min_size=1,
            max_size=40,
        )
    )
    newest, log = 100 * SECOND, list[Event]()
    for offset, (step, late, kind, amount) in enumerate(drawn):
        newest += step
        log.append(Event(newest - (late if offset % 3 == 0 else 0), offset, kind, amount))
    return log


def columns(log: list[Event]) -> Events:
    return Events(
        [event.time_ms for event in log],
        [(0, event.offset, 0) for event in log],
        {"kind": [event.kind for event in log], "amount": [event.amount for event in log]},
        LATENESS_MS,
    )


def row_of(log: list[Event], cuts: list[int]) -> bytes:
    row: bytes | None = None
    for start, end in zip([0, *cuts], [*cuts, len(log)], strict=True):
        if part := log[start:end]:
            row = fold_row(row, FEATURES, columns(part), range(len(part)))
    assert row is not None
    return row


@given(logs(), st.randoms(use_true_random=False), st.data())
def test_order_and_cuts_do_not_matter(log: list[Event], random: Any, data: st.DataObject) -> None:
    in_order = sorted(log, key=lambda event: (event.time_ms, event.offset))
    shuffled = list(log)
    random.shuffle(shuffled)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(log)), max_size=4)))
    assert row_of(shuffled, cuts) == row_of(in_order, []) == row_of(log, [len(log) // 2])


def by_hand(log: list[Event], t_ms: int) -> list[Any]:
    """Return the features at a time, straight from their words."""
    before = sorted(
        (event for event in log if event.time_ms < t_ms),
        key=lambda each: (each.time_ms, each.offset),
    )

    def within(window_ms: int, grain_ms: int, *kinds: str) -> list[Event]:
        pane = t_ms // grain_ms
        first = pane - window_ms // grain_ms + 1
        return [
            event
            for event in before
            if first <= event.time_ms // grain_ms <= pane and (not kinds or event.kind in kinds)
        ]

    clicks = [event for event in before if event.kind == "click"]
    valued = [event for event in clicks if event.amount is not None]
    last = INT64_MIN
    if valued and t_ms - valued[-1].time_ms <= 4_000:
        last = valued[-1].amount or 0
    return [
        len(before),
        sum(event.amount or 0 for event in clicks),
        len(within(10_000, 2_000)),
        sum(event.amount or 0 for event in within(6_000, 1_000, "click", "view")),
        (len(within(8_000, 2_000, "click")) + 1) / (len(within(8_000, 2_000, "view")) + 4),
        last,
        [event.amount for event in before if event.amount is not None][-3:],
    ]


@given(logs(), st.integers(1, 30_000))
def test_values_are_those_of_the_definition_once_all_events_are_before(
    log: list[Event], after_ms: int
) -> None:
    import msgspec

    t_ms = max(event.time_ms for event in log) + after_ms
    _, states = msgspec.msgpack.decode(row_of(log, []))
    found = [feature.value(state, t_ms) for feature, state in zip(FEATURES, states, strict=True)]
    assert found == by_hand(log, t_ms)


def test_a_key_without_events_has_missing_values() -> None:
    assert [feature.missing() for feature in FEATURES] == [0, 0, 0, 0, 0.25, INT64_MIN, []]
    bare = Rate("rate", Count("of"), Count("over"))
    assert math.isnan(float(str(bare.missing())))


def test_a_window_forgets_panes_that_no_time_needs() -> None:
    import msgspec

    log = [Event(second * SECOND, second, "view", 1) for second in range(1000)]
    _, states = msgspec.msgpack.decode(row_of(log, []))
    # Five panes of the window, and three of the lateness.
    assert len(states[2]) == 8
