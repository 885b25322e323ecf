"""What a member does with a partition that it is given, before it reads from it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import structlog

from headwater.feature_store.errors import HeadwaterError, InputError
from headwater.feature_store.online.store import Moved, OnlineStore, Partition
from headwater.pipelines.streams.bus import Bus, Committed, Consumer, Producer
from headwater.pipelines.streams.files import clear_staged
from headwater.pipelines.streams.outbox import named_files, publish_rest
from headwater.pipelines.streams.settings import StreamSettings

log = structlog.get_logger(__name__)

START_NOTE = "start"
"""Left with a group's first position, before the store has one: nothing was consumed yet."""


class Recovered(NamedTuple):
    """Where a partition stands."""

    stored: int
    """The store's position, from which reading goes on."""
    published: int
    """The group's: outputs of offsets below it were sent, and are never sent again."""


def recover(
    partition: Partition,
    store: OnlineStore,
    consumer: Consumer,
    producer: Producer,
    membership: object,
    folder: Path | None = None,
) -> Recovered:
    """Send what the last owner decided and did not send, and go to the store's position."""
    group = consumer.committed(partition)
    stored = store.positions().get(partition)
    first, end = consumer.bounds([partition])[partition]
    if stored is None:
        stored = _begin(partition, group, first, store, producer, membership)
        group = Committed(stored, START_NOTE)
    _require_in_log(partition, stored, first, end)
    if group is None:
        if store.outbox(partition, 0, 1):
            raise HeadwaterError(
                f"topic {partition.topic!r}, partition {partition.partition}: the store stands at {stored} "
                "with outputs that may have been sent, but the group has no position that would say which. "
                "`headwater stream reset STREAM.toml` starts anew."
            )
        producer.publish((), {partition: Committed(stored, START_NOTE)}, membership)
        group = Committed(stored, START_NOTE)
    if stored < group.offset:
        log.warning(
            "the store is older than what was published: reading again",
            topic=partition.topic,
            partition=partition.partition,
            stored=stored,
            published=group.offset,
        )
    else:
        num_sent = publish_rest(
            store, producer, partition, group.offset, stored, membership, folder
        )
        if num_sent:
            log.info(
                "sent what the last owner did not",
                topic=partition.topic,
                partition=partition.partition,
                outputs=num_sent,
            )
    if folder is not None:
        clear_staged(folder, partition, stored, named_files(store, partition))
    consumer.seek(partition, stored)
    return Recovered(stored, max(stored, group.offset))


def _begin(
    partition: Partition,
    group: Committed | None,
    first: int,
    store: OnlineStore,
    producer: Producer,
    membership: object,
) -> int:
    """Give a partition that appeared after the job's first start its position: the beginning."""
    if group is not None and group.note != START_NOTE:
        raise _unknown(partition, group.offset)
    start = first if group is None else group.offset
    if group is None:
        producer.publish((), {partition: Committed(start, START_NOTE)}, membership)
    try:
        store.begin({partition: start})
    except Moved as moved:
        stored = moved.stored[partition]
        assert stored is not None
        return stored
    return start


def check_wiring(settings: StreamSettings, store: OnlineStore, bus: Bus) -> None:
    """Make the job's own topics, see that the others are there, and give a new job its first positions.

    All partitions of a topic begin together, so that `offset` is about one moment. InputError where a topic
    is absent, or where the store does not know positions that the group has.
    """
    bus.make_topics([settings.dead_letter_topic, *settings.retry_topics])
    consumer = bus.consumer(settings.name, [])
    try:
        known = {partition.topic for partition in store.positions()}
        for topic in settings.topics:
            partitions = sorted(consumer.partitions(topic))
            if not partitions:
                raise InputError(
                    f"topic {topic!r}: the cluster has none of this name. Make it, or correct source.topics."
                )
            if topic in known:
                continue
            for partition in partitions:
                group = consumer.committed(partition)
                if group is not None and group.note != START_NOTE:
                    raise _unknown(partition, group.offset)
            offset = settings.source.offset if topic in settings.source.topics else "earliest"
            starts = _starts(consumer, partitions, offset)
            try:
                store.begin(starts)
            except Moved:
                # Another process of the job was first; its positions hold.
                continue
    finally:
        consumer.close()


def _starts(consumer: Consumer, partitions: list[Partition], offset: str) -> dict[Partition, int]:
    if offset.startswith("ts="):
        return consumer.offsets_at(partitions, int(offset.removeprefix("ts=")))
    bounds = consumer.bounds(partitions)
    return {each: bounds[each][offset == "latest"] for each in partitions}


def _require_in_log(partition: Partition, stored: int, first: int, end: int) -> None:
    if first <= stored <= end:
        return
    raise HeadwaterError(
        f"topic {partition.topic!r}, partition {partition.partition}: the store stands at {stored}, and the "
        f"log reaches from {first} to {end}: messages were removed before they were read, or the topic was "
        "made again. `headwater stream reset STREAM.toml` starts anew, from what is left."
    )


def _unknown(partition: Partition, group: int) -> InputError:
    return InputError(
        f"topic {partition.topic!r}, partition {partition.partition}: the group has read up to {group}, and "
        "the store knows nothing of it. Name the store that the job wrote to, or start anew by `headwater "
        "stream reset STREAM.toml`."
    )
