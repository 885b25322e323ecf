"""What a handler sees and what it answers: events and state in, effects out.

A handler is pure: the runtime alone applies what it answers, and may call it again for the same events.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from headwater.feature_store.online.store import OnlineStore, Write
from headwater.pipelines.streams.arrow import RecordBatch, Table


class Place(NamedTuple):
    """The place of an event: the message, and the row in it."""

    topic: str
    partition: int
    offset: int
    row: int = 0


@dataclass(frozen=True, slots=True)
class Output:
    """A message to be sent once, because of the event at `place`."""

    place: Place
    topic: str
    value: bytes | None
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class File:
    """A Parquet file to be written once, because of events of one partition from `place` on."""

    place: Place
    path: str
    """Below the job's folder of files."""
    rows: Table


@dataclass(frozen=True, slots=True)
class Rename:
    """A file that is written, to be given its name."""

    place: Place
    staged: str
    path: str


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An event that cannot be used, and why."""

    place: Place
    reason: str
    """One of `REASONS`, which metrics count by."""
    field: str
    """Column at fault; '' where it is the message as a whole."""
    detail: str
    """What was found, and what was expected."""


REASONS = ("malformed", "version", "oversized", "late", "future", "handler")
"""Not readable; of another version; too large; too late; ahead of its arrival; refused by the job."""


@dataclass(frozen=True, slots=True)
class Effects:
    """What a batch of events does."""

    writes: Sequence[Write] = ()
    outputs: Sequence[Output] = ()
    files: Sequence[File] = ()
    rejects: Sequence[DeadLetter] = ()


class StateView:
    """The rows of a store as a handler sees them; it remembers what was read, for the commit to compare."""

    def __init__(self, store: OnlineStore) -> None:
        self._store = store
        self._read: dict[str, dict[bytes, bytes | None]] = {}
        self._written: dict[str, dict[bytes, bytes | None]] = {}

    def get(self, table: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the rows of `keys` in their order; None where there is none."""
        read = self._read.setdefault(table, {})
        absent = [key for key in dict.fromkeys(keys) if key not in read]
        read.update(zip(absent, self._store.get(table, absent), strict=True))
        written = self._written.get(table)
        if not written:
            return [read[key] for key in keys]
        return [written[key] if key in written else read[key] for key in keys]

    def write(self, writes: Sequence[Write]) -> None:
        """Let later reads see rows that earlier events of the batch wrote."""
        for each in writes:
            self._written.setdefault(each.table, {})[each.key] = each.value

    def reads(self) -> Mapping[str, Mapping[bytes, bytes | None]]:
        """Return by table and key what was read of the store."""
        return self._read

    def writes(self) -> list[Write]:
        """Return the last write of each row."""
        return [
            Write(table, key, value)
            for table, rows in self._written.items()
            for key, value in rows.items()
        ]


class StreamJob(Protocol):
    """A job: a pure function from a batch of events and the state to effects."""

    def handle(self, events: RecordBatch, state: StateView, /) -> Effects:
        """Return what the events do. An exception is narrowed down to the event that causes it."""
        ...
