"""Golden rows: raw rows whose scores a service must reproduce before it uses a release.

Most are real. Some are made from real ones, so that the branches that real rows seldom take are
checked too: all values missing, every second one missing, values never seen, empty and too long lists.
"""

from __future__ import annotations

from typing import Any

import polars as pl

from headwater.feature_store.normalise import named, values_of
from headwater.feature_store.schema import INT64_MIN, RawColumn, Schema

INT64_MAX = 2**63 - 1


def golden_rows(
    schema: Schema, rows: pl.DataFrame, count: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return at most `count` rows in two frames: real ones, spread over `rows`, and made-up ones.

    `rows` are normalised raw columns. Infinities are left out: JSON cannot hold them.
    """
    rows = rows.select(named(column.name) for column in schema.raw)
    doubles = [c.name for c in schema.raw if c.dtype == "double" and not c.is_list]
    finite = rows.filter(*(named(name).is_finite().fill_null(value=True) for name in doubles))
    lists = [c.name for c in schema.raw if c.dtype == "double" and c.is_list]
    finite = finite.filter(
        *(~named(name).list.eval(pl.element().is_infinite()).list.any() for name in lists)
    )
    made = made_up_rows(schema, finite).head(count)
    num_real = min(count - len(made), len(finite))
    step = max(1, len(finite) // max(1, num_real))
    return finite.gather_every(step).head(num_real), made


def made_up_rows(schema: Schema, rows: pl.DataFrame) -> pl.DataFrame:
    """Return a few rows that real data may never have, of the same columns and types as `rows`."""
    if rows.is_empty():
        return rows
    base = rows.row(0, named=True)
    every: list[dict[str, Any]] = [
        {column.name: None for column in schema.raw},
        {c.name: None if i % 2 else base[c.name] for i, c in enumerate(schema.raw)},
        {c.name: base[c.name] if i % 2 else None for i, c in enumerate(schema.raw)},
        {column.name: _unseen(column, values_of(rows, column.name)) for column in schema.raw},
    ]
    if any(column.is_list for column in schema.raw):
        lengths = {column.inputs[0]: column.length for column in schema.columns}
        every.append({c.name: [] if c.is_list else base[c.name] for c in schema.raw})
        every.append(
            {
                c.name: _too_long(values_of(rows, c.name), lengths.get(c.name, 1))
                if c.is_list
                else base[c.name]
                for c in schema.raw
            }
        )
    return pl.DataFrame(every, schema=rows.schema)


def _unseen(column: RawColumn, values: pl.Series) -> Any:
    """Return a value that no row of the sample has; for a list, one entry of it."""
    if column.is_list:
        entries = values.explode(empty_as_null=False, keep_nulls=False)
        return [_unseen(RawColumn(name=column.name, dtype=column.dtype), entries)]
    if column.dtype == "string":
        return "unseen \u00e9\u4e2d " + str(values.max() or "")
    top = values.max()
    # Not by far: a number that is no key may be scaled.
    if top == INT64_MAX and column.dtype == "int64":
        seen = set(values)
        return next(value for value in range(INT64_MAX, INT64_MIN, -1) if value not in seen)
    return (top if isinstance(top, int | float) else 0) + 1


def _too_long(values: pl.Series, length: int) -> list[Any]:
    """Return a list of more entries than the feature keeps."""
    entries = values.explode(empty_as_null=False, keep_nulls=False).head(length + 1).to_list()
    return (entries * (length + 1))[: length + 1] if entries else []
