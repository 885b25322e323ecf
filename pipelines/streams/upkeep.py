"""What is done with a job beside running it: bind its store, show where it stands, reset it, forget a key."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from headwater.feature_store.errors import InputError, JobError, did_you_mean
from headwater.feature_store.online.definition import Definition, encode_key, read_definition
from headwater.feature_store.online.store import Bound, OnlineStore, Write
from headwater.pipelines.streams.bus import Bus
from headwater.pipelines.streams.clock import Clock
from headwater.pipelines.streams.settings import StreamSettings


@dataclass(frozen=True, slots=True)
class PartitionStatus:
    """Where a job stands with a partition; None where something is not known."""

    topic: str
    partition: int
    position: int | None
    """The next message that the job consumes."""
    published: int | None
    """The position of the group."""
    end: int
    """The end of the log."""
    lag: int
    newest_ts_ms: int | None
    """The newest event time."""


def bind(store: OnlineStore, definition: bytes, settings: StreamSettings) -> None:
    """Make the store the job's own; JobError where it holds rows of another definition."""
    bound = store.bound()
    if bound is None:
        store.bind(Bound(msgspec.Raw(definition), settings.source.offset))
        return
    if bytes(bound.definition) != definition:
        raise JobError(
            f"{settings.store}: the store of job {settings.name!r} follows another definition, and its rows "
            "cannot be read by this one. Give the changed job another `name`, or start anew by `headwater "
            "stream reset STREAM.toml`."
        )
    if bound.offset != settings.source.offset:
        raise JobError(
            f"source.offset: {settings.source.offset!r} has no effect on a job that has begun, "
            f"from {bound.offset!r}. Put that back, or start anew by `headwater stream reset STREAM.toml`."
        )


def status(settings: StreamSettings, store: OnlineStore, bus: Bus) -> list[PartitionStatus]:
    """Return where the job stands with each partition of its topics."""
    consumer = bus.consumer(settings.name, [])
    clock = Clock(settings.source, store)
    positions = store.positions()
    try:
        found: list[PartitionStatus] = []
        partitions = [
            partition
            for topic in settings.topics
            for partition in sorted(consumer.partitions(topic))
        ]
        for partition, (first, end) in consumer.bounds(partitions).items():
            clock.load(partition)
            group = consumer.committed(partition)
            position = positions.get(partition)
            found.append(
                PartitionStatus(
                    *partition,
                    position,
                    None if group is None else group.offset,
                    end,
                    end - (first if position is None else position),
                    clock.newest_ms.get(partition),
                )
            )
        return found
    finally:
        consumer.close()


def reset(settings: StreamSettings, store: OnlineStore, bus: Bus) -> None:
    """Remove the job's rows and positions, and those of its group; refused while the job runs."""
    bus.forget_group(settings.name)
    store.clear()


def forget(store: OnlineStore, key: int | str, table: str | None = None) -> list[str]:
    """Remove the rows of a key, of all tables or one; returns the tables that had one.

    A consumer that is at work on the key sees that its row changed, and handles its events again.
    """
    definition = _definition(store)
    names = [each.name for each in definition.tables]
    if table is not None and table not in names:
        raise InputError(
            f"no table {table!r}.{did_you_mean(table, names)} Tables: {', '.join(names)}."
        )
    stored = [
        name
        for each in definition.tables
        if table in (None, each.name)
        for name in (each.name, *(each.vector_table(vector) for vector in each.vectors))
    ]
    encoded = encode_key(key)
    held = [name for name in stored if store.get(name, [encoded])[0] is not None]
    store.commit({}, [Write(name, encoded, None) for name in held], [])
    return held


def _definition(store: OnlineStore) -> Definition:
    bound = store.bound()
    if bound is None:
        raise InputError("the store holds no rows of this job.")
    return read_definition(bound.definition)
