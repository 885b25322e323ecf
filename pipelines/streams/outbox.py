"""The outbox: outputs that were decided with the state, and are sent after it, each once.

A batch's outputs lie in the store with its rows and positions. They are sent in one Kafka transaction with
the group's positions, which therefore say what was sent. After a kill at any step, whoever owns a partition
next sends what lies between the group's position and the store's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from headwater.feature_store.online.store import Cause, Entry, OnlineStore, Partition
from headwater.pipelines.streams.bus import Committed, Producer
from headwater.pipelines.streams.effects import DeadLetter, Output, Place, Rename
from headwater.pipelines.streams.files import finish

AnyOutput: TypeAlias = Output | Rename
SENT_AT_ONCE = 5000
"""Entries of one transaction, when those of a member that died are sent."""


class _Sent(msgspec.Struct, array_like=True, tag="message"):
    """A message in the store."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]


class _Renamed(msgspec.Struct, array_like=True, tag="file"):
    """A file in the store."""

    staged: str
    path: str


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(_Sent | _Renamed)


def unsent(outputs: Sequence[AnyOutput], published: Mapping[Partition, int]) -> list[AnyOutput]:
    """Return outputs in the order of their causes, without those that were published before."""
    return sorted(
        (
            output
            for output in outputs
            if output.place.offset
            >= published[Partition(output.place.topic, output.place.partition)]
        ),
        key=lambda output: output.place,
    )


def entries_of(outputs: Sequence[AnyOutput]) -> list[Entry]:
    """Return outputs, in the order of their causes, as entries that are numbered within their cause."""
    entries: list[Entry] = []
    for place, same in groupby(outputs, key=lambda output: output.place):
        for number, output in enumerate(same):
            if isinstance(output, Rename):
                sent = _Renamed(output.staged, output.path)
            else:
                sent = _Sent(output.topic, output.key, output.value, list(output.headers))
            entries.append(Entry(Cause(*place, number), _ENCODER.encode(sent)))
    return entries


def output_of(entry: Entry) -> AnyOutput:
    """Return the output that an entry holds."""
    sent = _DECODER.decode(entry.output)
    place = Place(*entry.cause[:4])
    if isinstance(sent, _Renamed):
        return Rename(place, sent.staged, sent.path)
    return Output(place, sent.topic, sent.value, sent.key, tuple(sent.headers))


def carry_out(
    outputs: Sequence[AnyOutput],
    positions: Mapping[Partition, Committed],
    producer: Producer,
    membership: object,
    folder: Path | None,
) -> None:
    """Give files their names, then send messages with the group's positions; may be done again."""
    if folder is not None:
        finish(folder, [output for output in outputs if isinstance(output, Rename)])
    messages = [output for output in outputs if isinstance(output, Output)]
    producer.publish(messages, positions, membership)


def publish_rest(
    store: OnlineStore,
    producer: Producer,
    partition: Partition,
    published: int,
    stored: int,
    membership: object,
    folder: Path | None,
) -> int:
    """Carry out a partition's entries from the group's position up to the store's; returns how many."""
    total = 0
    while published < stored:
        entries = [
            entry
            for entry in store.outbox(partition, published, SENT_AT_ONCE)
            if entry.cause.offset < stored
        ]
        end = stored
        if len(entries) == SENT_AT_ONCE:
            # The last offset may have more outputs than were read, so it waits, unless it is the only one.
            end = entries[-1].cause.offset
            whole = [entry for entry in entries if entry.cause.offset < end]
            if whole:
                entries = whole
            else:
                entries = _of_offset(store, partition, end)
                end += 1
        outputs = [output_of(entry) for entry in entries]
        carry_out(outputs, {partition: Committed(end, "")}, producer, membership, folder)
        total += len(outputs)
        published = end
    return total


def named_files(store: OnlineStore, partition: Partition) -> set[str]:
    """Return the staged files that a partition's entries name."""
    named: set[str] = set()
    start = 0
    while entries := store.outbox(partition, start, SENT_AT_ONCE):
        outputs = map(output_of, entries)
        named |= {output.staged for output in outputs if isinstance(output, Rename)}
        if len(entries) < SENT_AT_ONCE:
            break
        # The last offset is read again, in case that it has more entries.
        start = max(entries[-1].cause.offset, start + 1)
    return named


def _of_offset(store: OnlineStore, partition: Partition, offset: int) -> list[Entry]:
    """Return all entries of one offset, however many."""
    limit = SENT_AT_ONCE
    while True:
        limit *= 2
        entries = store.outbox(partition, offset, limit)
        if len(entries) < limit or entries[-1].cause.offset != offset:
            return [entry for entry in entries if entry.cause.offset == offset]


def letter_output(letter: DeadLetter, topic: str, message: Any, limit: int) -> Output:
    """Return the message of a dead letter: the original, with headers that say where from and why.

    Of a message above `limit` bytes only the headers are sent, since the dead-letter topic may not take it.
    """
    value = message.value
    place = letter.place
    headers = {
        "topic": place.topic,
        "partition": str(place.partition),
        "offset": str(place.offset),
        "row": str(place.row),
        "field": letter.field,
        "reason": letter.reason,
        "detail": letter.detail[:1000],
        "whole": "no" if value is not None and len(value) > limit else "yes",
    }
    return Output(
        place,
        topic,
        value if headers["whole"] == "yes" else b"",
        message.key,
        tuple((f"headwater.{name}", text.encode()) for name, text in headers.items()),
    )
