"""Messages in, a record batch of events out; what cannot be read becomes a dead letter.

The batch has the declared columns, then the runtime's own: `_ts_ms` (event time), `_arrival_ts_ms`, and the
place of the event, `_topic`, `_partition`, `_offset`, `_row`. Missing values are null.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeAlias

import msgspec
import numpy as np
import pyarrow as pa

from headwater.feature_store.online.store import Partition
from headwater.feature_store.schema import INT64_MIN, Dtype
from headwater.pipelines.streams.arrow import Array, DataType, RecordBatch, Schema
from headwater.pipelines.streams.arrow import compute as pc
from headwater.pipelines.streams.effects import DeadLetter, Place
from headwater.pipelines.streams.settings import Source

VERSION_METADATA = b"headwater.version"
NO_TIME_MS = 253_402_300_800_000
"""The first millisecond after the year 9999; event times lie from 0 to below it."""
Messages: TypeAlias = Mapping[Partition, Sequence[Any]]

_ARROW: dict[Dtype, DataType] = {
    "int64": pa.int64(),
    "double": pa.float64(),
    "string": pa.string(),
}
_PYTHON: dict[Dtype, Any] = {
    "int64": Annotated[int, msgspec.Meta(ge=INT64_MIN, le=2**63 - 1)],
    "double": float,
    "string": str,
}
_PLACES = (
    ("_ts_ms", pa.int64()),
    ("_arrival_ts_ms", pa.int64()),
    ("_topic", pa.string()),
    ("_partition", pa.int32()),
    ("_offset", pa.int64()),
    ("_row", pa.int32()),
)
_FIELD = re.compile(r"(?:at `\$\.|field `)([^`]+)`")


class _Versioned(msgspec.Struct):
    v: int = 1


def no_events(schema: Schema) -> RecordBatch:
    """Return a batch without rows."""
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)


class Reader:
    """Reads the messages of a source."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.schema = pa.schema(
            [
                *((column.name, _ARROW[column.dtype]) for column in source.columns),
                *_PLACES,
            ]
        )
        self._decoder = _decoder(source)

    def read(self, messages: Messages) -> tuple[RecordBatch, list[DeadLetter]]:
        """Return the events of messages, in the order of partition and offset, and what is not readable."""
        rejects: list[DeadLetter] = []
        parts = [
            part
            for partition, found in messages.items()
            for part in (
                self._json(partition, found, rejects)
                if self._source.format == "json"
                else self._arrow(partition, found, rejects)
            )
        ]
        return pa.concat_batches(parts) if parts else no_events(self.schema), rejects

    def _json(
        self, partition: Partition, messages: Sequence[Any], rejects: list[DeadLetter]
    ) -> Iterator[RecordBatch]:
        decode, limit, version = (
            self._decoder.decode,
            self._source.max_message_bytes,
            self._source.version,
        )
        events: list[Any] = []
        kept: list[Any] = []
        for message in messages:
            value = message.value or b""
            try:
                if len(value) > limit:
                    raise _Reject("oversized", "", _too_large(value, limit))
                event = decode(value)
                if event.v != version:
                    raise _Reject("version", "v", _other_version(event.v, version))
            except msgspec.MsgspecError as error:
                rejects.append(_unreadable(partition, message, value, version, error))
            except UnicodeDecodeError as error:
                rejects.append(_dead(partition, message, "malformed", "", f"not UTF-8: {error}"))
            except _Reject as reject:
                rejects.append(_dead(partition, message, *reject.args))
            else:
                events.append(event)
                kept.append(message)
        if not kept:
            return
        columns = zip(*map(msgspec.structs.astuple, events), strict=True)
        arrays = [
            _missing_as_null(pa.array(values, _ARROW[column.dtype]), column.dtype)
            for column, values in zip(self._source.columns, columns, strict=False)
        ]
        yield self._placed(partition, arrays, kept, np.zeros(len(kept), np.int32))

    def _names(self) -> list[str]:
        return [column.name for column in self._source.columns]

    def _arrow(
        self, partition: Partition, messages: Sequence[Any], rejects: list[DeadLetter]
    ) -> Iterator[RecordBatch]:
        for message in messages:
            value = message.value or b""
            try:
                batch = self._table(value)
            except _Reject as reject:
                rejects.append(_dead(partition, message, *reject.args))
                continue
            keep = np.ones(batch.num_rows, bool)
            for column in self._source.columns:
                if column.optional or not batch.column(column.name).null_count:
                    continue
                null = np.asarray(batch.column(column.name).is_null())
                rejects.extend(
                    _dead(
                        partition, message, "malformed", column.name, "required, but null", int(row)
                    )
                    for row in np.flatnonzero(null & keep)
                )
                keep &= ~null
            rows = np.flatnonzero(keep).astype(np.int32)
            if len(rows):
                kept = batch.take(pa.array(rows))
                yield self._placed(partition, kept.columns, [message] * len(rows), rows)

    def _table(self, value: bytes) -> RecordBatch:
        """Return the declared columns of an Arrow message as one batch."""
        limit = self._source.max_message_bytes
        if len(value) > limit:
            raise _Reject("oversized", "", _too_large(value, limit))
        try:
            with pa.ipc.open_stream(value) as stream:
                table = stream.read_all()
        except (pa.ArrowInvalid, OSError) as error:
            raise _Reject("malformed", "", f"not an Arrow IPC stream: {error}") from None
        metadata = table.schema.metadata or {}
        found = metadata.get(VERSION_METADATA, b"1").decode(errors="replace")
        if found != str(self._source.version):
            raise _Reject("version", "", _other_version(found, self._source.version))
        arrays: list[Array] = []
        for column in self._source.columns:
            kind = _ARROW[column.dtype]
            if column.name not in table.column_names:
                if not column.optional:
                    raise _Reject("malformed", column.name, "required, but absent")
                arrays.append(pa.nulls(table.num_rows, kind))
                continue
            given = table.column(column.name)
            try:
                array = given.combine_chunks().cast(kind)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise _Reject(
                    "malformed", column.name, f"expected {column.dtype}: {error}"
                ) from None
            arrays.append(_missing_as_null(array, column.dtype))
        return pa.RecordBatch.from_arrays(arrays, names=self._names())

    def _placed(
        self,
        partition: Partition,
        columns: Iterable[Array],
        messages: Sequence[Any],
        rows: np.ndarray[Any, np.dtype[np.int32]],
    ) -> RecordBatch:
        """Return columns as a batch with the places of their events."""
        arrays = list(columns)
        times = arrays[self._names().index(self._source.time)]
        if self._source.time_unit == "s":
            # What would overflow is no time, which the clock rejects.
            times = pc.if_else(pc.less(times, NO_TIME_MS // 1000), pc.multiply(times, 1000), -1)
        count = len(messages)
        arrays += [
            times,
            pa.array([message.timestamp for message in messages], pa.int64()),
            pa.repeat(pa.scalar(partition.topic), count),
            pa.repeat(pa.scalar(partition.partition, pa.int32()), count),
            pa.array([message.offset for message in messages], pa.int64()),
            pa.array(rows),
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)


class _Reject(Exception):  # noqa: N818
    """Reason, field and detail of a message that is not readable."""


def _decoder(source: Source) -> msgspec.json.Decoder[Any]:
    """Return what decodes a message to a struct of its columns, in order, and then its version `v`."""
    fields: list[Any] = []
    names: dict[str, str] = {}
    # Named by place, since a column's name need not be one of Python's; required ones cannot follow optional
    # ones but by keyword, and are told apart all the same.
    for place, column in enumerate(source.columns):
        kind = _PYTHON[column.dtype]
        field = f"c{place}"
        fields.append((field, kind | None, None) if column.optional else (field, kind))
        names[field] = column.name
    # Where `v` is a column of the job's own, all messages have the version that is expected.
    is_own = "v" in names.values()
    if not is_own:
        fields.append(("v", int, 1))
    event = msgspec.defstruct(
        "Event",
        fields,
        rename=names | {"v": "v"},
        kw_only=True,
        gc=False,
        namespace={"v": source.version} if is_own else None,
    )
    return msgspec.json.Decoder(event)


def _missing_as_null(array: Array, dtype: Dtype) -> Array:
    """Return the array with null where a value is the missing one of its type."""
    match dtype:
        case "int64":
            missing = pc.equal(array, INT64_MIN)
        case "double":
            missing = pc.is_nan(array)
        case "string":
            missing = pc.equal(array, "")
    if not pc.any(missing).as_py():
        return array
    return pc.if_else(missing, pa.scalar(None, array.type), array)


def _too_large(value: bytes, limit: int) -> str:
    return f"{len(value):,} bytes, of at most {limit:,} by source.max_message_bytes"


def _other_version(found: object, expected: int) -> str:
    return f"version {found}, expected {expected} by source.version"


def _unreadable(
    partition: Partition, message: Any, value: bytes, version: int, error: msgspec.MsgspecError
) -> DeadLetter:
    """Return the dead letter of JSON that does not fit: of another version, or malformed."""
    try:
        found = msgspec.json.decode(value, type=_Versioned).v
    except (msgspec.MsgspecError, UnicodeDecodeError):
        found = version
    if found != version:
        return _dead(partition, message, "version", "v", _other_version(found, version))
    field = _FIELD.search(str(error))
    return _dead(partition, message, "malformed", field[1] if field else "", str(error))


def _dead(
    partition: Partition, message: Any, reason: str, field: str, detail: str, row: int = 0
) -> DeadLetter:
    return DeadLetter(Place(*partition, message.offset, row), reason, field, detail)
