"""Event time: what is late, ahead or repeated does not depend on how batches are cut."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from headwater.feature_store.online.lmdb import LmdbStore
from headwater.feature_store.online.store import Partition
from headwater.pipelines.streams.arrow import RecordBatch
from headwater.pipelines.streams.clock import IDS, Clock
from headwater.pipelines.streams.settings import Source

PLACE = Partition("clicks", 0)
NOW_MS = 1_700_000_000_000
SOURCE = Source.model_validate(
    {
        "topics": ["clicks"],
        "time": "time",
        "event_id": "id",
        "allowed_lateness_s": 10,
        "max_ahead_s": 5,
        "columns": [
            {"name": "time", "dtype": "int64"},
            {"name": "id", "dtype": "string", "optional": True},
        ],
    }
)
Event = tuple[int, str | None]


def batch(events: list[Event], start: int) -> RecordBatch:
    times, ids = [NOW_MS + each[0] for each in events], [each[1] for each in events]
    count = len(events)
    return pa.RecordBatch.from_pydict(
        {
            "time": pa.array(times, pa.int64()),
            "id": pa.array(ids, pa.string()),
            "_ts_ms": pa.array(times, pa.int64()),
            "_arrival_ts_ms": pa.array([NOW_MS] * count, pa.int64()),
            "_topic": pa.repeat("clicks", count),
            "_partition": pa.array(np.zeros(count), pa.int32()),
            "_offset": pa.array(np.arange(start, start + count), pa.int64()),
            "_row": pa.array(np.zeros(count), pa.int32()),
        }
    )


def sift(
    events: list[Event], cuts: list[int]
) -> tuple[list[int], list[tuple[int, str]], list[bytes]]:
    """Return the offsets that pass, offset and reason of those that do not, and the ids remembered."""
    with TemporaryDirectory() as folder:
        store = LmdbStore(Path(folder) / "store", "job")
        clock = Clock(SOURCE, store)
        store.begin({PLACE: 0})
        passed: list[int] = []
        rejects: list[tuple[int, str]] = []
        for start, end in spans(cuts, len(events)):
            # As another member would, that knows what the store knows.
            clock.load(PLACE)
            timely = clock.sift(batch(events[start:end], start))
            store.commit({PLACE: (start, end)}, timely.writes, [])
            passed += timely.events.column("_offset").to_pylist()
            rejects += [(each.place.offset, each.reason) for each in timely.rejects]
        ids = store.scan(IDS, b"", b"\xff", 1000)
        store.close()
    return passed, sorted(rejects), ids


def spans(cuts: list[int], count: int) -> Iterator[tuple[int, int]]:
    for start, end in zip([0, *cuts], [*cuts, count], strict=True):
        if start < end:
            yield start, end


EVENTS = st.lists(
    st.tuples(st.integers(-40_000, 8_000), st.none() | st.sampled_from("abcde")), min_size=1
)


@given(EVENTS, st.data())
def test_cuts_do_not_matter(events: list[Event], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(events)), max_size=5)))
    assert sift(events, cuts)[:2] == sift(events, [])[:2]


def test_each_rejected_event_has_its_reason() -> None:
    events: list[Event] = [
        (0, None),
        (-10_000, None),
        (-10_001, None),
        (5_001, None),
        (5_000, None),
        (-5_001, None),
    ]
    passed, rejects, _ = sift(events, [])
    assert passed == [0, 1, 4]
    assert rejects == [(2, "late"), (3, "future"), (5, "late")]


def test_an_id_is_known_again_and_forgotten_once_it_would_be_late() -> None:
    passed, rejects, ids = sift([(0, "a"), (0, "a"), (1, "b"), (0, "a")], [2])
    assert (passed, rejects) == ([0, 2], [])
    assert len(ids) == 2
    _, _, ids = sift([(-30_000, "a"), (-20_000, "b"), (0, "c"), (1, "d")], [1, 2, 3])
    assert len(ids) == 2
