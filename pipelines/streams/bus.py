"""The protocol of a message bus, as the runtime needs it, so that a second client library can stand there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from headwater.feature_store.online.store import Partition
from headwater.pipelines.streams.effects import Output

At = Callable[[str], None]
"""Is told each step by its name, before or after it is made; tests kill the process there."""


class BusError(Exception):
    """A step with the bus did not succeed: forget what is in hand, recover, and go on."""


class Message(Protocol):
    """A message as it was read."""

    offset: int
    timestamp: int
    """Arrival time, in milliseconds."""
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


class Committed(NamedTuple):
    """The group's position of a partition, and the word that was left with it."""

    offset: int
    note: str


@dataclass(frozen=True, slots=True)
class Changes:
    """How this member's partitions changed since it last asked."""

    revoked: frozenset[Partition]
    assigned: frozenset[Partition]


class Consumer(Protocol):
    """One member of a consumer group. Every method may raise BusError."""

    def partitions(self, topic: str) -> frozenset[Partition]:
        """Return the partitions of a topic; none where it does not exist."""
        ...

    def poll(self, timeout_ms: int, max_messages: int) -> Mapping[Partition, Sequence[Any]]:
        """Return new messages by partition, as `Message`; none after the timeout."""
        ...

    def membership(self) -> object:
        """Return what proves that this member is in the group now; asked for before `changes`."""
        ...

    def changes(self) -> Changes:
        """Return how the partitions changed since the last call."""
        ...

    def committed(self, partition: Partition) -> Committed | None:
        """Return the group's position, once no open transaction can change it; None where it has none."""
        ...

    def bounds(self, partitions: Sequence[Partition]) -> dict[Partition, tuple[int, int]]:
        """Return the first offset of each partition, and the one after its last."""
        ...

    def offsets_at(self, partitions: Sequence[Partition], ts_ms: int) -> dict[Partition, int]:
        """Return for each partition the first offset that arrived at `ts_ms` or later, or its end."""
        ...

    def position(self, partition: Partition) -> int | None:
        """Return the offset that is read next, past what is no message; None for one of another member."""
        ...

    def lag(self, partition: Partition) -> int:
        """Return how many messages wait, as far as was seen."""
        ...

    def seek(self, partition: Partition, offset: int) -> None:
        """Go on from `offset`, and drop what was fetched before."""
        ...

    def close(self) -> None:
        """Leave the group."""
        ...


class Producer(Protocol):
    """Sends messages and the group's positions in transactions."""

    def publish(
        self,
        outputs: Sequence[Output],
        positions: Mapping[Partition, Committed],
        membership: object,
    ) -> None:
        """Send all and move the group's positions, or neither; BusError also where the member is out."""
        ...

    def close(self) -> None:
        """Close at once; an open transaction is aborted."""
        ...


class Bus(Protocol):
    """Makes consumers and producers of one cluster."""

    def consumer(self, group: str, topics: Sequence[str]) -> Consumer:
        """Return a new member of a group."""
        ...

    def reader(self, topics: Sequence[str]) -> Consumer:
        """Return a consumer of all partitions of topics that is in no group."""
        ...

    def producer(self, group: str, at: At) -> Producer:
        """Return a producer of transactions for a group."""
        ...

    def make_topics(self, names: Sequence[str]) -> None:
        """Make the topics that do not exist yet, with one partition each."""
        ...

    def forget_group(self, group: str) -> None:
        """Remove the positions of a group; InputError while it has members."""
        ...
