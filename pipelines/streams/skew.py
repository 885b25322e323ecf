"""Skew: the same events through both times of a feature, offline by a join and online event by event.

*By event time* the events are folded in the order of their times, and each is asked for before it: that must
equal the join. *As seen* they are folded in the order of their arrival, and an event counts once it has
arrived: the difference is the freshness that is lost to delays.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import polars as pl

from headwater.feature_store.online.definition import Definition, Table, fold_row
from headwater.feature_store.online.kinds import Events
from headwater.pipelines.streams.arrow import RecordBatch
from headwater.pipelines.streams.features import FeaturesJob
from headwater.pipelines.streams.offline import ORDER, offline_values


@dataclass(frozen=True, slots=True)
class Skew:
    """How often a feature differs from the offline join."""

    feature: str
    values: int
    different: int
    """By event time; anything but 0 is a fault."""
    late: int
    """As seen: values that delays changed."""
    example: str
    """The first difference by event time; '' without one."""


def measure_skew(definition: Definition, events: RecordBatch) -> list[Skew]:
    """Return the skew of each feature over a log, as `Reader` gives it; its order is that of arrival."""
    log = pl.DataFrame(pl.from_arrow(events)).sort(ORDER)
    offline = offline_values(definition, log)
    batch = FeaturesJob(definition).events_of(log.to_arrow().combine_chunks().to_batches()[0])
    arrivals = log["_arrival_ts_ms"].to_list()
    by_time = _online(definition, batch, batch.times_ms)
    as_seen = _online(definition, batch, arrivals)
    result: list[Skew] = []
    for name, expected in offline.items():
        wrong = [
            place for place, value in enumerate(expected) if not _same(value, by_time[name][place])
        ]
        late = sum(
            not _same(value, seen) for value, seen in zip(by_time[name], as_seen[name], strict=True)
        )
        example = ""
        if wrong:
            place = wrong[0]
            example = (
                f"event at {batch.times_ms[place]} ms: offline {expected[place]!r}, online "
                f"{by_time[name][place]!r}"
            )
        result.append(Skew(name, len(expected), len(wrong), late, example))
    return result


def _online(
    definition: Definition, events: Events, known_ms: Sequence[int]
) -> dict[str, list[Any]]:
    """Return by `table.feature` the online value at each event: of those known before its time.

    `known_ms` says when each event is known; the state is asked at its own event time.
    """
    count = len(events.times_ms)
    moments: list[tuple[int, int, int]] = [
        # At one moment all are asked before any is folded.
        *((time_ms, 0, place) for place, time_ms in enumerate(events.times_ms)),
        *((at_ms, 1, place) for place, at_ms in enumerate(known_ms)),
    ]
    values: dict[str, list[Any]] = {
        f"{table.name}.{feature.name}": [None] * count
        for table in definition.tables
        for feature in table.folded
    }
    rows: dict[tuple[str, Any], bytes] = {}
    for _, is_known, place in sorted(moments):
        for table in definition.tables:
            key = events.columns[table.key][place]
            if key is None:
                continue
            row = rows.get((table.name, key))
            if is_known:
                rows[table.name, key] = fold_row(row, table.folded, events, [place])
            else:
                for name, value in _of_row(table, row, events.times_ms[place]):
                    values[f"{table.name}.{name}"][place] = value
    return values


def _of_row(table: Table, row: bytes | None, t_ms: int) -> Iterable[tuple[str, Any]]:
    states = None if row is None else msgspec.msgpack.decode(row)[1]
    for place, feature in enumerate(table.folded):
        value = feature.missing() if states is None else feature.value(states[place], t_ms)
        yield feature.name, value


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, float) and isinstance(right, float):
        return left == right or (math.isnan(left) and math.isnan(right))
    return left == right
