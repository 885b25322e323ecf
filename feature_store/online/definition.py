"""The definition of online features: tables of features by a key, as a store carries it.

A row is [event time of its newest event, state of each feature], as msgpack; its table's features say in
which order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from headwater.feature_store.online.kinds import Events, Feature, Folded, Vector
from headwater.feature_store.schema import Dtype


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The features of one kind of key, as of users."""

    name: str
    key: str
    """Column of the key."""
    key_dtype: Dtype
    features: tuple[Feature, ...]

    @property
    def folded(self) -> list[Folded]:
        """The features that events change, in the order of their states in a row."""
        return [feature for feature in self.features if not isinstance(feature, Vector)]

    @property
    def vectors(self) -> list[Vector]:
        """The features that were loaded from files."""
        return [feature for feature in self.features if isinstance(feature, Vector)]

    def vector_table(self, vector: Vector) -> str:
        """Return the name of the store's table that holds a vector."""
        return f"{self.name}.{vector.name}"


class Definition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a job's rows follow: a job whose definition differs may not write to them."""

    job: str
    topics: tuple[str, ...]
    """In order; a source is (place of the topic) * 65,536 + partition."""
    time: str
    event_id: str
    """Column that names an event, so that one sent twice counts once; '' where there is none."""
    lateness_ms: int
    tables: tuple[Table, ...]

    def encoded(self) -> bytes:
        """Return the definition as JSON, the same bytes for the same definition."""
        return msgspec.json.encode(self, order="deterministic")


def read_definition(encoded: bytes | msgspec.Raw) -> Definition:
    """Return the definition that a store carries."""
    return msgspec.json.decode(encoded, type=Definition)


def encode_key(value: int | str) -> bytes:
    """Return a key of the store: an integer by its decimal digits, as it is hashed too."""
    return str(value).encode()


def fold_row(
    row: bytes | None, features: Sequence[Folded], events: Events, rows: Sequence[int]
) -> bytes:
    """Return a row with the events of `rows` in it; the row before them is None where there was none."""
    newest_ms = max(events.times_ms[number] for number in rows)
    if row is None:
        states: list[Any] = [feature.empty() for feature in features]
    else:
        before_ms, states = msgspec.msgpack.decode(row)
        newest_ms = max(newest_ms, before_ms)
    states = [
        feature.fold(state, events, rows) for feature, state in zip(features, states, strict=True)
    ]
    return msgspec.msgpack.encode([newest_ms, states])
