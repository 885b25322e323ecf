"""Event time: which events are too late or ahead of their arrival, and which were sent before.

The watermark of a partition is the newest event time so far, less the allowed lateness: an older event is
late. It moves event by event, so that batches may be cut anywhere, and lies in the store beside the
positions, so that it outlives the process. A retry topic has watermarks of its own.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from headwater.feature_store.online.store import OnlineStore, Partition, Write
from headwater.pipelines.streams.arrow import RecordBatch
from headwater.pipelines.streams.arrow import compute as pc
from headwater.pipelines.streams.effects import DeadLetter, Place
from headwater.pipelines.streams.messages import NO_TIME_MS
from headwater.pipelines.streams.settings import Source

TIMES = "_times"
"""Table of the newest event time of each partition."""
IDS = "_ids"
"""Table of the ids of recent events, in the order of partition and time."""
_TIME = struct.Struct(">q")
_FORGET_AT_ONCE = 10_000


@dataclass(frozen=True, slots=True)
class Timely:
    """What the clock lets through of a batch."""

    events: RecordBatch
    rejects: list[DeadLetter]
    writes: list[Write]
    newest_ms: dict[Partition, int]
    """The newest event time of each partition, after the batch."""
    num_duplicates: int


class Clock:
    """The watermarks of a job's partitions; `newest_ms` is what the store holds."""

    def __init__(self, source: Source, store: OnlineStore) -> None:
        self._source = source
        self._store = store
        self._newest_ms: dict[Partition, int] = {}

    @property
    def newest_ms(self) -> Mapping[Partition, int]:
        """The newest event time of each partition of this member."""
        return self._newest_ms

    def load(self, partition: Partition) -> None:
        """Read a partition's newest event time from the store, as after a change of owner."""
        (found,) = self._store.get(TIMES, [_time_key(partition)])
        self._newest_ms.pop(partition, None)
        if found is not None:
            self._newest_ms[partition] = _TIME.unpack(found)[0]

    def forget(self, partition: Partition) -> None:
        """Forget a partition that another member has now."""
        self._newest_ms.pop(partition, None)

    def advance(self, newest_ms: Mapping[Partition, int]) -> None:
        """Take over the times of a batch that was committed."""
        self._newest_ms.update(newest_ms)

    def sift(self, events: RecordBatch) -> Timely:
        """Return the events that are in time and new; pure, but for what it reads of the store."""
        result = Timely(events, [], [], {}, 0)
        if not events.num_rows:
            return result
        times, arrivals = (np.asarray(events.column(name)) for name in ("_ts_ms", "_arrival_ts_ms"))
        keep = np.ones(events.num_rows, bool)
        num_duplicates = 0
        for partition, rows in _partitions(events):
            newest = self._newest_ms.get(partition, -(2**62))
            here = times[rows]
            no_time = (here < 0) | (here >= NO_TIME_MS)
            ahead = ~no_time & (here > arrivals[rows] + self._source.max_ahead_s * 1000)
            counted = np.where(no_time | ahead, -(2**62), here)
            after = np.maximum(np.maximum.accumulate(counted), newest)
            before = np.concatenate([np.array([newest]), after[:-1]])
            late = ~no_time & ~ahead & (here < before - self._source.lateness_ms)
            for wrong, reason in ((no_time, "malformed"), (ahead, "future"), (late, "late")):
                result.rejects.extend(
                    self._reject(events, int(row), reason)
                    for row in np.flatnonzero(wrong) + rows.start
                )
            fine = ~(no_time | ahead | late)
            if self._source.event_id is not None:
                repeated = self._repeated(
                    events, partition, rows, fine, result.writes, int(after[-1])
                )
                num_duplicates += int((repeated & fine).sum())
                fine &= ~repeated
            keep[rows] = fine
            if after[-1] > newest:
                result.newest_ms[partition] = int(after[-1])
                result.writes.append(Write(TIMES, _time_key(partition), _TIME.pack(int(after[-1]))))
        kept = events if keep.all() else events.filter(pa.array(keep))
        return Timely(kept, result.rejects, result.writes, result.newest_ms, num_duplicates)

    def _reject(self, events: RecordBatch, row: int, reason: str) -> DeadLetter:
        time_ms = events.column("_ts_ms")[row].as_py()
        match reason:
            case "malformed":
                detail = f"{time_ms} is no time of the years 1970 to 9999"
            case "future":
                arrival_ms = events.column("_arrival_ts_ms")[row].as_py()
                detail = (
                    f"{time_ms} is {(time_ms - arrival_ms) / 1000:g} s ahead of its arrival, of at most "
                    f"{self._source.max_ahead_s:g} by source.max_ahead_s"
                )
            case _:
                detail = (
                    f"{time_ms} is older than the newest event of its partition by more than "
                    f"{self._source.allowed_lateness_s:g} s, source.allowed_lateness_s"
                )
        return DeadLetter(place_of(events, row), reason, self._source.time, detail)

    def _repeated(
        self,
        events: RecordBatch,
        partition: Partition,
        rows: slice,
        fine: np.ndarray[tuple[int], np.dtype[np.bool_]],
        writes: list[Write],
        newest_ms: int,
    ) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Return which events were sent before, and add what to remember and to forget to `writes`.

        The id of an event that is older than the watermark is not needed: the event would be late.
        """
        ids = (
            events.column(self._source.event_id)
            .slice(rows.start, rows.stop - rows.start)
            .to_pylist()
        )
        times = np.asarray(events.column("_ts_ms"))[rows].tolist()
        prefix = _time_key(partition)
        keys = [
            None if each is None else prefix + _TIME.pack(time_ms) + _digest(each)
            for each, time_ms in zip(ids, times, strict=True)
        ]
        asked = [key for key, ok in zip(keys, fine, strict=True) if ok and key is not None]
        known = {
            key
            for key, row in zip(asked, self._store.get(IDS, asked), strict=True)
            if row is not None
        }
        repeated = np.zeros(len(keys), bool)
        for place, key in enumerate(keys):
            if key is None or not fine[place]:
                continue
            if key in known:
                repeated[place] = True
            else:
                known.add(key)
                writes.append(Write(IDS, key, b""))
        watermark = prefix + _TIME.pack(max(0, newest_ms - self._source.lateness_ms))
        old = self._store.scan(IDS, prefix, watermark, _FORGET_AT_ONCE + 2 * len(asked))
        writes.extend(Write(IDS, key, None) for key in old)
        return repeated


def place_of(events: RecordBatch, row: int) -> Place:
    """Return the place of the event in a row of a batch."""
    return Place(
        *(events.column(name)[row].as_py() for name in ("_topic", "_partition", "_offset", "_row"))
    )


def _partitions(events: RecordBatch) -> list[tuple[Partition, slice]]:
    """Return the rows of each partition, which follow each other."""
    topics, numbers = events.column("_topic"), events.column("_partition")
    ends = np.union1d(*(pc.run_end_encode(each).run_ends for each in (topics, numbers))).tolist()
    starts = [0, *ends[:-1]]
    return [
        (Partition(topics[start].as_py(), numbers[start].as_py()), slice(start, end))
        for start, end in zip(starts, ends, strict=True)
    ]


def _time_key(partition: Partition) -> bytes:
    """Return the key of a partition, that is no start of another's."""
    return b"%s\0%08d\0" % (partition.topic.encode(), partition.partition)


def _digest(event_id: float | str) -> bytes:
    return hashlib.blake2b(str(event_id).encode(), digest_size=16).digest()
