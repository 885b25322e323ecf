"""The protocol of an online store: rows, positions and outbox, changed together or not at all.

A store belongs to one stream job. Its positions alone say what the job has consumed. A commit is a
compare-and-set: it applies only where the stored positions are those from which its batch started, and what
its handler read is still there. So neither a consumer that was thought dead nor a store that came back older
can count an event twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import msgspec


class Partition(NamedTuple):
    """A partition of a topic; equal to the tuple that Kafka's client has for it."""

    topic: str
    partition: int


class Cause(NamedTuple):
    """The input that an output comes from, and which of its outputs it is; orders the outbox."""

    topic: str
    partition: int
    offset: int
    row: int
    """Row within an Arrow message; 0 in others."""
    number: int
    """Of the outputs of this row."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An output that is to be carried out, in the outbox."""

    cause: Cause
    output: bytes


@dataclass(frozen=True, slots=True)
class Write:
    """A row's new content; None removes the row."""

    table: str
    key: bytes
    value: bytes | None


class Bound(msgspec.Struct, frozen=True):
    """The job that a store belongs to."""

    definition: msgspec.Raw
    """The declaration that its rows follow, as JSON."""
    offset: str
    """Where reading started."""


class Moved(Exception):  # noqa: N818
    """Another consumer has moved the positions: what was computed from them is void.

    `stored` has for each such partition the position in the store, or None.
    """

    def __init__(self, stored: Mapping[Partition, int | None]) -> None:
        super().__init__(", ".join(f"{topic}-{part}" for topic, part in stored))
        self.stored = dict(stored)


class Unavailable(Exception):  # noqa: N818
    """The store does not answer now; whether a commit was applied is not known."""


class Stale(Exception):  # noqa: N818
    """A row that the handler read has changed since: run it again, from fresh rows."""


Reads = Mapping[str, Mapping[bytes, bytes | None]]
"""By table and key, what a handler read."""


class OnlineStore(Protocol):
    """Rows, positions and outbox of one job. Safe for several processes; not for several threads."""

    def get(self, table: str, keys: Sequence[bytes], /) -> list[bytes | None]:
        """Return the rows of `keys` in their order, as of one moment; None where there is none."""
        ...

    def scan(self, table: str, start: bytes, end: bytes, limit: int, /) -> list[bytes]:
        """Return at most `limit` keys with start <= key < end, in order; of tables that are named `_..`."""
        ...

    def positions(self) -> dict[Partition, int]:
        """Return for each partition the offset of the next message to consume."""
        ...

    def begin(self, positions: Mapping[Partition, int], /) -> None:
        """Store the first positions of partitions; where one has a position raise Moved and store none."""
        ...

    def outbox(self, partition: Partition, start: int, limit: int, /) -> list[Entry]:
        """Return at most `limit` entries of a partition, from the offset `start` on, in order."""
        ...

    def commit(
        self,
        positions: Mapping[Partition, tuple[int, int]],
        writes: Sequence[Write],
        outbox: Sequence[Entry],
        *,
        reads: Reads | None = None,
        published: Mapping[Partition, int] | None = None,
    ) -> None:
        """Apply a batch durably: positions from start to end, rows, and entries of the outbox.

        Entries of a partition below its offset in `published` go. Raises Moved where a stored position is not
        the batch's start, and Stale where a row is not as in `reads`; nothing is changed then.
        """
        ...

    def bound(self) -> Bound | None:
        """Return the job that the store belongs to; None where it is new."""
        ...

    def bind(self, bound: Bound, /) -> None:
        """Make the store that of a job; with rows it must be that job's already."""
        ...

    def clear(self) -> None:
        """Remove everything of the job."""
        ...

    def num_rows(self) -> int:
        """Return the number of rows, of all tables."""
        ...

    def num_outbox(self) -> int:
        """Return the number of entries of the outbox."""
        ...

    def num_bytes(self) -> int:
        """Return the bytes that the store takes."""
        ...

    def close(self) -> None:
        """Close the store."""
        ...
