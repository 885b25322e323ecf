"""Look up features while serving: keys and a time in, values out, by the definition in the store."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from headwater.feature_store.errors import InputError, did_you_mean
from headwater.feature_store.online.definition import Table, encode_key, read_definition
from headwater.feature_store.online.kinds import Value
from headwater.feature_store.online.store import OnlineStore


@dataclass(frozen=True, slots=True)
class Found:
    """The features of a table for some keys."""

    values: dict[str, list[Value]]
    """By feature, a value for each key, in their order."""
    num_missing: dict[str, int]
    """By feature, the keys that have no row, so that it took its missing value."""


class Lookup:
    """The features of one job in a store. Not for several threads at once."""

    def __init__(self, store: OnlineStore, *, source: str) -> None:
        """`source` names the store in errors, as its URL."""
        bound = store.bound()
        if bound is None:
            raise InputError(
                f"{source}: no job has written here. Start `headwater stream features STREAM.toml` first."
            )
        self._store = store
        self._source = source
        definition = read_definition(bound.definition)
        self.tables: dict[str, Table] = {table.name: table for table in definition.tables}

    def look_up(
        self, keys: Mapping[str, Sequence[int | str]], t_ms: int | None = None
    ) -> dict[str, Found]:
        """Return the features of tables for their keys, at a time in milliseconds since 1970 UTC.

        Without a time all that is known counts: the time is now, or that of a row's newest event where this
        machine's clock is behind it. A key without a row has missing values, never an error.
        """
        now_ms = time.time_ns() // 1_000_000 if t_ms is None else t_ms
        return {
            name: self._of_table(
                self._table(name), list(map(encode_key, wanted)), now_ms, t_ms is None
            )
            for name, wanted in keys.items()
        }

    def _of_table(self, table: Table, keys: list[bytes], now_ms: int, is_now: bool) -> Found:
        values: dict[str, list[Value]] = {}
        num_missing: dict[str, int] = {}
        if features := table.folded:
            rows = [
                None if row is None else msgspec.msgpack.decode(row)
                for row in self._store.get(table.name, keys)
            ]
            times_ms = [
                now_ms if row is None or not is_now else max(now_ms, row[0] + 1) for row in rows
            ]
            for place, feature in enumerate(features):
                missing = feature.missing()
                values[feature.name] = [
                    missing if row is None else feature.value(row[1][place], at_ms)
                    for row, at_ms in zip(rows, times_ms, strict=True)
                ]
                num_missing[feature.name] = rows.count(None)
        for vector in table.vectors:
            found = self._store.get(table.vector_table(vector), keys)
            missing = vector.missing()
            values[vector.name] = [
                missing if each is None else np.frombuffer(each, "<f4").tolist() for each in found
            ]
            num_missing[vector.name] = found.count(None)
        return Found(values, num_missing)

    def _table(self, name: str) -> Table:
        if name not in self.tables:
            known = ", ".join(self.tables)
            raise InputError(
                f"{self._source}: no table {name!r}; there are {known}.{did_you_mean(name, self.tables)}"
            )
        return self.tables[name]
