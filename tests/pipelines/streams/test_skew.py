"""The offline join and the online state give the same values for any log."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.feature_store.online.definition import Definition, Table
from headwater.feature_store.online.kinds import Count, History, Last, Rate
from headwater.pipelines.streams.arrow import RecordBatch
from headwater.pipelines.streams.skew import measure_skew

TABLES = (
    Table(
        "users",
        "user",
        "string",
        (
            Count("all"),
            Count("clicks", {"type": ("click",)}),
            Count("spent", {}, "amount", 4000, 1000),
            Count("minute", {"type": ("click", "view")}, "", 60_000, 10_000),
            Last("last", "amount", "int64", ttl_ms=3000),
            Last("type", "type", "string"),
            History("amounts", "amount", "int64", 3, {"type": ("click",)}),
            History("fresh", "amount", "int64", 4, ttl_ms=2500),
        ),
    ),
    Table(
        "items",
        "item",
        "int64",
        (
            Rate("ctr", Count("of", {"type": ("click",)}), Count("over", {"type": ("view",)})),
            Rate(
                "smooth",
                Count("of", {"type": ("click",)}, "", 5000, 1000),
                Count("over", {"type": ("view",)}, "", 5000, 1000),
                0.1,
                5,
            ),
        ),
    ),
)
DEFINITION = Definition("job", ("events",), "ts_ms", "", 10_000, TABLES)


Row = tuple[str | None, int | None, str, int | None, int, int]


def log(rows: Sequence[Row]) -> RecordBatch:
    user, item, kind, amount, times, delays = (list(each) for each in zip(*rows, strict=True))
    count = len(rows)
    return pa.RecordBatch.from_pydict(
        {
            "user": pa.array(user, pa.string()),
            "item": pa.array(item, pa.int64()),
            "type": pa.array(kind, pa.string()),
            "amount": pa.array(amount, pa.int64()),
            "_ts_ms": pa.array(times, pa.int64()),
            "_arrival_ts_ms": pa.array(np.add(times, delays), pa.int64()),
            "_topic": pa.repeat("events", count),
            "_partition": pa.array(np.arange(count) % 2, pa.int32()),
            "_offset": pa.array(np.arange(count) // 2, pa.int64()),
            "_row": pa.array(np.zeros(count), pa.int32()),
        }
    )


ROWS = st.tuples(
    st.none() | st.sampled_from("abc"),
    st.none() | st.integers(1, 3),
    st.sampled_from(["click", "view", "buy"]),
    st.none() | st.integers(-9, 9),
    st.integers(0, 30_000),
    st.integers(0, 500),
)


@given(st.lists(ROWS, min_size=1, max_size=60))
def test_offline_equals_online_by_event_time(
    rows: Sequence[Row],
) -> None:
    assert [each.example for each in measure_skew(DEFINITION, log(rows)) if each.different] == []


def test_delays_are_seen_as_lost_freshness() -> None:
    rows = [("a", 1, "click", 1, second * 1000, 0) for second in range(20)]
    assert not any(each.late for each in measure_skew(DEFINITION, log(rows)))
    delayed = [(*row[:5], 1500) for row in rows]
    skew = {each.feature: each for each in measure_skew(DEFINITION, log(delayed))}
    assert (skew["users.all"].different, skew["users.all"].late) == (0, 19)


def test_a_wrong_value_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Count, "value", lambda self, state, t_ms: -1)
    found = {
        each.feature: each
        for each in measure_skew(
            DEFINITION, log([("a", 1, "view", 1, 5, 0), ("a", 1, "view", 1, 9, 0)])
        )
    }
    assert found["users.all"].different == 1
    assert "online -1" in found["users.all"].example
