"""The kinds of online features: each is one function of (events, t), kept up event by event.

`fold` takes events in any order and ends in the same state: that is what makes late events, shuffles and
replays harmless. `value` is the feature at the time `t`, of the events before it. States are msgpack values.

Events are ordered by (event time, source, offset, row), where a source is a partition of one of the job's
topics. A window is made of panes, pieces of time of one length (the grain): at `t` it holds the pane of `t`,
as far as it has come, and the `window_ms / grain_ms - 1` before it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import msgspec

from headwater.feature_store.dtypes import DTYPES
from headwater.feature_store.schema import INT64_MIN, Dtype

Scalar: TypeAlias = int | float | str | bool
Where: TypeAlias = dict[str, tuple[Scalar, ...]]
"""Column to the values that pass; an event passes where all columns do, and every event passes {}."""
Value: TypeAlias = int | float | str | list[Any]


@dataclass(frozen=True, slots=True)
class Events:
    """A batch of events as columns; missing values are None."""

    times_ms: Sequence[int]
    orders: Sequence[tuple[int, int, int]]
    """(source, offset, row) of each event, which breaks ties of time."""
    columns: Mapping[str, Sequence[Any]]
    lateness_ms: int
    """How much older than the newest event another may be and still count."""
    _passing: dict[int, tuple[Where, list[bool]]] = field(default_factory=dict)

    def passing(self, where: Where) -> list[bool] | None:
        """Return which events pass; None where all do. Computed once a batch and `where`."""
        if not where:
            return None
        if id(where) not in self._passing:
            passing = [True] * len(self.times_ms)
            for column, values in where.items():
                allowed = set(values)
                passing = [
                    so_far and value in allowed
                    for so_far, value in zip(passing, self.columns[column], strict=True)
                ]
            self._passing[id(where)] = (where, passing)
        return self._passing[id(where)][1]


class Count(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="count"):
    """Number of events, or the sum of an integer column over them; in a window, or of all time.

    The state is the number, or {pane: number} in a window.
    """

    name: str
    where: Where = {}
    column: str = ""
    """Column to add up; empty where events are counted."""
    window_ms: int = 0
    """0 where it is of all time."""
    grain_ms: int = 0

    def empty(self) -> Any:
        """Return the state before any event."""
        return {} if self.window_ms else 0

    def fold(self, state: Any, events: Events, rows: Sequence[int]) -> Any:
        """Return the state with the events of `rows` in it; may change the one given."""
        passing = events.passing(self.where)
        if passing is not None:
            rows = [row for row in rows if passing[row]]
        amounts = events.columns[self.column] if self.column else None
        if not self.window_ms:
            if amounts is None:
                return state + len(rows)
            return state + sum(amounts[row] or 0 for row in rows)
        grain, times = self.grain_ms, events.times_ms
        for row in rows:
            pane = times[row] // grain
            state[pane] = state.get(pane, 0) + (1 if amounts is None else amounts[row] or 0)
        return self._kept(state, events.lateness_ms)

    def value(self, state: Any, t_ms: int) -> int:
        """Return the count at `t_ms`."""
        if not self.window_ms:
            return state
        last = t_ms // self.grain_ms
        first = last - self.window_ms // self.grain_ms + 1
        return sum(amount for pane, amount in state.items() if first <= pane <= last)

    def missing(self) -> Value:
        """Return the value of a key that no event has named."""
        return 0

    def _kept(self, state: dict[int, int], lateness_ms: int) -> dict[int, int]:
        """Return the panes, in order, that a window may still need, as the newest one says."""
        if not state:
            return state
        panes = sorted(state)
        reach = self.window_ms // self.grain_ms + -(-lateness_ms // self.grain_ms)
        floor = panes[-1] - reach
        return {pane: state[pane] for pane in panes if pane > floor}


class Rate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="rate"):
    """Events of one kind for each of another, as clicks for each impression, smoothed towards `prior`.

    (of + prior * strength) / (over + strength): a prior rate that weighs as much as `strength` events. The
    state is that of the two counts.
    """

    name: str
    of: Count
    over: Count
    prior: float = 0.0
    strength: float = 0.0

    def empty(self) -> Any:
        """Return the state before any event."""
        return [self.of.empty(), self.over.empty()]

    def fold(self, state: Any, events: Events, rows: Sequence[int]) -> Any:
        """Return the state with the events of `rows` in it; may change the one given."""
        return [
            self.of.fold(state[0], events, rows),
            self.over.fold(state[1], events, rows),
        ]

    def value(self, state: Any, t_ms: int) -> float:
        """Return the rate at `t_ms`; NaN without events where nothing is known before."""
        over = self.over.value(state[1], t_ms) + self.strength
        return (
            (self.of.value(state[0], t_ms) + self.prior * self.strength) / over
            if over
            else math.nan
        )

    def missing(self) -> Value:
        """Return the value of a key that no event has named."""
        return self.value(self.empty(), 0)


class Last(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="last"):
    """The newest value of a column that is not missing; forgotten `ttl_ms` after its event.

    The state is [event time, source, offset, row, value], or None.
    """

    name: str
    column: str
    dtype: Dtype
    where: Where = {}
    ttl_ms: int = 0
    """0 where it is kept for ever."""

    def empty(self) -> Any:
        """Return the state before any event."""
        return None

    def fold(self, state: Any, events: Events, rows: Sequence[int]) -> Any:
        """Return the state with the events of `rows` in it."""
        found = _entries(self, events, rows)
        if state is not None:
            found.append(state)
        return max(found, key=_order) if found else None

    def value(self, state: Any, t_ms: int) -> Value:
        """Return the value at `t_ms`."""
        if state is None or state[0] >= t_ms or (self.ttl_ms and t_ms - state[0] > self.ttl_ms):
            return self.missing()
        return state[4]

    def missing(self) -> Value:
        """Return the missing value of the column's type."""
        return DTYPES[self.dtype].missing


class History(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="history"
):
    """The last `length` values of a column, oldest first, without missing ones.

    The state is a list of [event time, source, offset, row, value], in order.
    """

    name: str
    column: str
    dtype: Dtype
    length: int
    where: Where = {}
    ttl_ms: int = 0
    """0 where entries are kept for ever."""

    def empty(self) -> Any:
        """Return the state before any event."""
        return []

    def fold(self, state: Any, events: Events, rows: Sequence[int]) -> Any:
        """Return the state with the events of `rows` in it."""
        found = _entries(self, events, rows)
        if not found:
            return state
        return sorted([*state, *found], key=_order)[-self.length :]

    def value(self, state: Any, t_ms: int) -> Value:
        """Return the values at `t_ms`."""
        oldest_ms = t_ms - self.ttl_ms if self.ttl_ms else INT64_MIN
        return [entry[4] for entry in state if oldest_ms <= entry[0] < t_ms]

    def missing(self) -> Value:
        """Return the history of a key that no event has named."""
        return []


class Vector(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="vector"
):
    """A vector of `dim` numbers that was loaded from a file, and that no event changes.

    It lies in a table of its own, as float32 in the order of x86.
    """

    name: str
    dim: int

    def missing(self) -> Value:
        """Return the vector of a key that has none: NaN in every place."""
        return [math.nan] * self.dim


Folded: TypeAlias = Count | Rate | Last | History
"""The kinds that events change."""
Feature: TypeAlias = Folded | Vector


def _entries(feature: Last | History, events: Events, rows: Sequence[int]) -> list[list[Any]]:
    """Return [event time, source, offset, row, value] of the events that pass and have a value."""
    passing = events.passing(feature.where)
    values, times, orders = events.columns[feature.column], events.times_ms, events.orders
    return [
        [times[row], *orders[row], values[row]]
        for row in rows
        if values[row] is not None and (passing is None or passing[row])
    ]


def _order(entry: list[Any]) -> list[Any]:
    return entry[:4]
