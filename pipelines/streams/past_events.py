"""Read a log of events at once, from a file or from topics, as one batch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headwater.feature_store.errors import DataError, HeadwaterError, InputError
from headwater.feature_store.online.store import Partition
from headwater.pipelines.streams.arrow import Array, DataType, RecordBatch
from headwater.pipelines.streams.arrow import Table as ArrowTable
from headwater.pipelines.streams.arrow import compute as pc
from headwater.pipelines.streams.bus import Bus
from headwater.pipelines.streams.messages import Reader
from headwater.pipelines.streams.settings import Source, StreamSettings

SILENT_S = 60.0
_POLL_MS = 200
_MAX_MESSAGES = 5000


def read_file(source: Source, path: Path, arrival: str | None = None) -> RecordBatch:
    """Return the events of a Parquet file, as `Reader` gives them, in the order of the file.

    They arrived at the times of the column `arrival`, or at their event times.
    """
    schema = Reader(source).schema
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {error}.") from error
    columns: dict[str, Any] = {}
    for column in source.columns:
        if column.name in table.column_names:
            columns[column.name] = _cast(table, column.name, schema.field(column.name).type, path)
        elif column.optional:
            columns[column.name] = pa.nulls(table.num_rows, schema.field(column.name).type)
        else:
            raise DataError(f"{path}: no column {column.name!r}, which source.columns declares.")
    times = columns[source.time]
    if times.null_count:
        raise DataError(f"{path}: column {source.time!r}, the event time, has nulls.")
    columns["_ts_ms"] = pc.multiply(times, 1000) if source.time_unit == "s" else times
    if arrival is not None and arrival not in table.column_names:
        raise DataError(f"{path}: no column {arrival!r}, the arrival time.")
    columns["_arrival_ts_ms"] = (
        columns["_ts_ms"] if arrival is None else _cast(table, arrival, pa.int64(), path)
    )
    columns["_topic"] = pa.repeat(source.topics[0], table.num_rows)
    columns["_partition"] = pa.array(np.zeros(table.num_rows), pa.int32())
    columns["_offset"] = pa.array(np.arange(table.num_rows), pa.int64())
    columns["_row"] = pa.array(np.zeros(table.num_rows), pa.int32())
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def read_topics(settings: StreamSettings, bus: Bus, last: int) -> RecordBatch:
    """Return the newest events of a job's topics, about `last` of them; what is not readable is left out."""
    return Reader(settings.source).read(newest_messages(settings.topics, bus, last))[0]


def newest_messages(topics: Sequence[str], bus: Bus, last: int) -> dict[Partition, list[Any]]:
    """Return about `last` of the newest messages of topics, by partition."""
    consumer = bus.reader(topics)
    try:
        partitions = [partition for topic in topics for partition in consumer.partitions(topic)]
        if not partitions:
            raise InputError(f"the cluster has none of the topics {', '.join(topics)}.")
        bounds = consumer.bounds(partitions)
        share = -(-last // len(partitions))
        for partition, (first, end) in bounds.items():
            consumer.seek(partition, max(first, end - share))
        messages: dict[Partition, list[Any]] = {}
        heard_s = time.monotonic()
        while any((consumer.position(part) or 0) < end for part, (_, end) in bounds.items()):
            found = consumer.poll(_POLL_MS, _MAX_MESSAGES)
            if found:
                heard_s = time.monotonic()
            elif time.monotonic() - heard_s > SILENT_S:
                raise HeadwaterError(
                    f"no messages for {SILENT_S:g} s, before the end of the topics."
                )
            for partition, more in found.items():
                messages.setdefault(Partition(*partition), []).extend(more)
    finally:
        consumer.close()
    return messages


def _cast(table: ArrowTable, name: str, kind: DataType, path: Path) -> Array:
    try:
        return table.column(name).cast(kind).combine_chunks()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{path}: column {name!r}: expected {kind}: {error}.") from error
