"""A first job for a topic, guessed from some of its messages and written with comments."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from headwater.feature_store.errors import DataError
from headwater.feature_store.schema import INT64_MIN, Dtype

_TIME_UNITS = (("ms", 946_684_800_000, 4_102_444_800_000), ("s", 946_684_800, 4_102_444_800))
"""Times of the years 2000 to 2100."""
_TIME_NAME = re.compile(r"time|date|(^|_)ts($|_)|(^|_)at$", re.IGNORECASE)
_USER_NAME = re.compile(r"user|customer|visitor|session|member", re.IGNORECASE)
_ITEM_NAME = re.compile(r"item|product|article|movie|sku|content|ad($|_)", re.IGNORECASE)
_KIND_NAME = re.compile(r"type|event|action|kind", re.IGNORECASE)
_PLAIN = re.compile(r"^[A-Za-z][A-Za-z0-9_.-]*$")
MAX_KINDS = 8


@dataclass(slots=True)
class _Field:
    """What was seen of a field."""

    types: Counter[type] = field(default_factory=Counter)
    values: Counter[Any] = field(default_factory=Counter)

    def dtype(self) -> Dtype | None:
        """Return the type that fits all values; None where none does."""
        seen = set(self.types) - {type(None)}
        if seen == {int}:
            fits = all(INT64_MIN <= value < 2**63 for value in self.values)
            return "int64" if fits else None
        if seen in ({float}, {int, float}):
            return "double"
        return "string" if seen == {str} else None


def first_stream(topic: str, messages: Sequence[bytes]) -> str:
    """Return the text of a STREAM.toml for a topic of JSON messages; DataError where none is an object."""
    fields, count, unread = _look(messages)
    if not count:
        raise DataError(
            f"topic {topic!r}: none of {len(messages):,} messages is a JSON object. For Arrow messages write "
            "the job by hand: docs/streams.md."
        )
    dtypes: dict[str, Dtype] = {
        name: dtype
        for name, each in fields.items()
        if _PLAIN.match(name) and name != "v" and (dtype := each.dtype()) is not None
    }
    time, unit = _time(fields, dtypes)
    if time is None:
        raise DataError(
            f"topic {topic!r}: no integer field holds times of the years 2000 to 2100 in s or ms; a job "
            f"needs the event time. Fields: {', '.join(fields)}."
        )
    kind = _kind(fields, dtypes)
    keys = _keys(fields, dtypes, {time, kind})
    if not keys:
        raise DataError(f"topic {topic!r}: no field looks like a key, as of users or items.")
    lines = [
        f"# A first job for the topic {topic}, guessed from {count:,} of its messages: read each line.",
        f"name = {json.dumps(topic + '-features')}",
        'store = "lmdb:online"',
        "",
        "[source]",
        f"topics = [{json.dumps(topic)}]",
        f"time = {json.dumps(time)}",
    ]
    if unit != "ms":
        lines.append(f"time_unit = {json.dumps(unit)}")
    if unread:
        lines.append(
            f"# {unread:,} messages are no JSON objects; they will be set aside as dead letters."
        )
    lines.append("columns = [")
    for name, dtype in dtypes.items():
        seen = sum(fields[name].types.values()) - fields[name].types[type(None)]
        optional = ", optional = true" if seen < count else ""
        examples = ", ".join(json.dumps(value) for value, _ in fields[name].values.most_common(2))
        lines.append(
            f"  {{ name = {json.dumps(name)}, dtype = {json.dumps(dtype)}{optional} }},  # {examples[:60]}"
        )
    lines.append("]")
    if left := [name for name in fields if name not in dtypes]:
        lines.append(f"# Left out, since they are no integer, number or text: {', '.join(left)}.")
    for place, key in enumerate(keys):
        lines += ["", *_table(key, keys[1 - place] if len(keys) > 1 else None, kind, fields)]
    return "\n".join(lines) + "\n"


def _look(messages: Sequence[bytes]) -> tuple[dict[str, _Field], int, int]:
    """Return the fields of the messages that are objects, their number, and that of the others."""
    fields: dict[str, _Field] = {}
    count = 0
    for message in messages:
        try:
            event = msgspec.json.decode(message)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
        if not isinstance(event, dict):
            continue
        count += 1
        for name, value in event.items():
            seen = fields.setdefault(name, _Field())
            seen.types[type(value)] += 1
            if isinstance(value, int | float | str):
                seen.values[value] += 1
    return fields, count, len(messages) - count


def _time(fields: dict[str, _Field], dtypes: dict[str, Dtype]) -> tuple[str | None, str]:
    """Return the field of the event time, and its unit."""
    found = [
        (not _TIME_NAME.search(name), name, unit)
        for name, dtype in dtypes.items()
        if dtype == "int64" and not fields[name].types[type(None)]
        for unit, first, end in _TIME_UNITS
        if all(first <= value < end for value in fields[name].values)
    ]
    return min(found)[1:] if found else (None, "")


def _kind(fields: dict[str, _Field], dtypes: dict[str, Dtype]) -> str | None:
    """Return the field that says what happened, as click or view."""
    found = [
        (not _KIND_NAME.search(name), len(fields[name].values), name)
        for name, dtype in dtypes.items()
        if dtype == "string" and 1 < len(fields[name].values) <= MAX_KINDS
    ]
    return min(found)[2] if found else None


def _keys(
    fields: dict[str, _Field], dtypes: dict[str, Dtype], others: set[str | None]
) -> list[str]:
    """Return at most two fields that name users and items: by their names, else those that come again."""
    possible = [name for name, dtype in dtypes.items() if dtype != "double" and name not in others]
    named = [
        next((name for name in possible if pattern.search(name)), None)
        for pattern in (_USER_NAME, _ITEM_NAME)
    ]
    keys = [name for name in named if name is not None]
    again = [
        name
        for name in possible
        if name not in keys and 1 < len(fields[name].values) < sum(fields[name].values.values())
    ]
    return [*dict.fromkeys(keys), *again][: max(1, len(set(keys)))]


def _table(key: str, other: str | None, kind: str | None, fields: dict[str, _Field]) -> list[str]:
    lines = [
        "[[tables]]",
        f"name = {json.dumps(f'by_{key}')}",
        f"key = {json.dumps(key)}",
        "features = [",
        '  { kind = "count", name = "events_1h", window_s = 3600, grain_s = 60 },',
    ]
    if kind is not None:
        top = [value for value, _ in fields[kind].values.most_common(2)]
        for value in top:
            name = json.dumps("num_" + re.sub(r"[^A-Za-z0-9._-]", "_", value))
            where = f"{{ {json.dumps(kind)} = {json.dumps(value)} }}"
            lines.append(f'  {{ kind = "count", name = {name}, where = {where} }},')
    if other is not None:
        lines.append(
            f'  {{ kind = "history", name = "last_{other}", column = {json.dumps(other)}, length = 20 }},'
        )
    return [*lines, "]"]
