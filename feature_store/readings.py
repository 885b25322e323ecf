"""Columns read off raw ones, and the one way in which a wrong value is found and shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import polars as pl

Fail = Callable[[int, str, str], None]
"""Raises the error for a row of a frame (from 0), a raw column and a message."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Rows that are refused, and the message for the raw value found in the first of them."""

    rows: pl.Expr
    """True where the row is refused, never null."""
    message: Callable[[str], str]
    """Of the value as `shown_at` gives it."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One column, read off one raw column."""

    name: str
    column: str
    """The raw column."""
    value: pl.Expr
    refusals: tuple[Refusal, ...] = ()


def read(frame: pl.DataFrame, readings: Sequence[Reading], fail: Fail) -> pl.DataFrame:
    """Return the columns read off a frame; fails at the first value that is refused, column by column."""
    # In one query, which computes what value and refusal share once; by place, as names may repeat.
    refusals = [(each, refusal) for each in readings for refusal in each.refusals]
    found = frame.select(
        *(each.value.alias(f"value.{i}") for i, each in enumerate(readings)),
        *(refusal.rows.alias(f"refused.{i}") for i, (_, refusal) in enumerate(refusals)),
    )
    for i, (each, refusal) in enumerate(refusals):
        for row in found.get_column(f"refused.{i}").arg_true().head(1):
            value = shown_at(frame.get_column(each.column), row)
            fail(row, each.column, refusal.message(value))
    values = found.get_columns()[: len(readings)]
    return pl.DataFrame(
        [series.alias(each.name) for series, each in zip(values, readings, strict=True)]
    )


def shown_at(column: pl.Series, row: int) -> str:
    """Return a value as messages show it: a list by its entries, a decimal by its digits."""
    column = column.alias("values")
    if isinstance(column.dtype, pl.List | pl.Array):
        entries = column[row]
        return f"[{', '.join(shown_at(entries, place) for place in range(len(entries)))}]"
    if isinstance(column.dtype, pl.Date | pl.Datetime):
        # Python has no times beyond the year 9999.
        number = column.to_physical()[row]
        unit = "D" if isinstance(column.dtype, pl.Date) else column.dtype.time_unit
        return "None" if number is None else str(np.datetime64(number, unit)).replace("T", " ")
    value = column[row]
    return str(value) if isinstance(value, Decimal) else repr(value)
