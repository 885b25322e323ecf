"""Send dead letters again, once each, to the topics that only their job reads."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from headwater.feature_store.errors import HeadwaterError
from headwater.feature_store.online.store import Partition
from headwater.pipelines.streams.bus import At, Bus, Committed, Consumer
from headwater.pipelines.streams.effects import Output, Place
from headwater.pipelines.streams.settings import StreamSettings

WAIT_S = 60.0
_POLL_MS = 200
_MAX_MESSAGES = 1000


def replay(settings: StreamSettings, bus: Bus, *, at: At = lambda _: None) -> Counter[str]:
    """Send what is in the dead-letter topic to the retry topics; returns counts by reason.

    What was sent before is not sent again: the group `<name>.replay` moves in the same transaction. Letters
    without their message, which was too large, are counted as `left out`.
    """
    topic, group = settings.dead_letter_topic, f"{settings.name}.replay"
    bus.make_topics([topic, *settings.retry_topics])
    consumer = bus.consumer(group, [topic])
    producer = bus.producer(group, at)
    counts: Counter[str] = Counter()
    ends: dict[Partition, int] | None = None
    deadline = time.monotonic() + WAIT_S
    try:
        while ends is None or _rest(consumer, ends):
            if time.monotonic() > deadline:
                raise HeadwaterError(
                    f"topic {topic!r}: no letters for {WAIT_S:g} s; perhaps another replay is running."
                )
            messages = consumer.poll(_POLL_MS, _MAX_MESSAGES)
            membership = consumer.membership()
            changes = consumer.changes()
            if changes.assigned:
                ends = _start(consumer, sorted(changes.assigned))
                continue
            outputs: list[Output] = []
            positions: dict[Partition, Committed] = {}
            for partition, found in messages.items():
                for message in found:
                    output = _again(message, settings, Partition(*partition))
                    counts["left out" if output is None else _header(message, "reason")] += 1
                    outputs += [] if output is None else [output]
                positions[Partition(*partition)] = Committed(found[-1].offset + 1, "")
            if positions:
                deadline = time.monotonic() + WAIT_S
                producer.publish(outputs, positions, membership)
    finally:
        producer.close()
        consumer.close()
    return counts


def _rest(consumer: Consumer, ends: dict[Partition, int]) -> bool:
    """Return whether a partition is not read to its end, past the marks of transactions."""
    return any((consumer.position(partition) or 0) < end for partition, end in ends.items())


def _start(consumer: Consumer, partitions: list[Partition]) -> dict[Partition, int]:
    """Go to the group's positions; return the ends of the partitions."""
    ends: dict[Partition, int] = {}
    for partition, (first, end) in consumer.bounds(partitions).items():
        group = consumer.committed(partition)
        consumer.seek(partition, first if group is None else max(first, group.offset))
        ends[partition] = end
    return ends


def _again(message: Any, settings: StreamSettings, partition: Partition) -> Output | None:
    """Return the message that a letter holds, for the retry topic; None where it holds none."""
    if _header(message, "whole") != "yes":
        return None
    origin = _header(message, "topic")
    # A letter that came back keeps to its retry topic.
    if origin not in settings.retry_topics:
        origin = f"{origin}.retry.{settings.name}"
    value = message.value
    if settings.source.format == "arrow" and _header(message, "reason") not in (
        "malformed",
        "version",
    ):
        value = _one_row(value, int(_header(message, "row")))
    return Output(Place(*partition, message.offset), origin, value, message.key)


def _one_row(value: bytes, row: int) -> bytes:
    """Return an Arrow message of one row of another."""
    with pa.ipc.open_stream(value) as stream:
        table = stream.read_all()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.slice(row, 1))
    return sink.getvalue().to_pybytes()


def _header(message: Any, name: str) -> str:
    headers: Mapping[str, bytes] = dict(message.headers)
    return headers.get(f"headwater.{name}", b"").decode()
