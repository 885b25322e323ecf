"""Types for columns that come as text: what every value of a CSV column agrees on.

The whole column decides, not its first rows, so that a late value cannot break a pass that began well. A
column of numbers is one whose text survives the way back: '00123' stays text, and so do an integer beyond
64 bits, and fractions beside an integer that no float64 equals. Times are ISO 8601 (`feature_store.times`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import polars as pl

from headwater.feature_store import times
from headwater.feature_store.convert import EXACT_FLOAT, truth_of_text
from headwater.feature_store.normalise import named

TIME = pl.Datetime("us")

_INTEGER = r"^-?(0|[1-9][0-9]*)$"
_LEADING_ZERO = r"^[+-]?0[0-9]"


class TextProfile:
    """The types that the text of some columns still allows, after the chunks seen so far."""

    def __init__(self, columns: Iterable[str]) -> None:
        self._possible = {name: list(_TESTS) for name in columns}
        self._filled = dict.fromkeys(self._possible, False)

    def add(self, frame: pl.DataFrame) -> None:
        """Drop the types that a value of these String columns contradicts."""
        tests: dict[str, tuple[str, type[pl.DataType]]] = {}
        expressions: list[pl.Expr] = []
        for name, possible in self._possible.items():
            text = named(name)
            expressions.append(text.is_not_null().any().alias(f"{name}|any"))
            for dtype in possible:
                key = f"{name}|{dtype.__name__}"
                tests[key] = name, dtype
                holds = text.is_null() | _TESTS[dtype](text)
                expressions.append(holds.all().alias(key))
        if not expressions:
            return
        found = frame.select(expressions).row(0, named=True)
        for key, (name, dtype) in tests.items():
            if not found[key]:
                self._possible[name].remove(dtype)
        for name in self._filled:
            self._filled[name] |= found[f"{name}|any"]

    def types(self) -> dict[str, pl.DataType]:
        """Return the narrowest type of each column; Null for one without any value, else String."""
        types: dict[str, pl.DataType] = {}
        for name, possible in self._possible.items():
            if not self._filled[name]:
                types[name] = pl.Null()
            elif possible:
                types[name] = TIME if possible[0] is pl.Datetime else possible[0]()
            else:
                types[name] = pl.String()
        return types


def parse(text: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """Return the values of a column whose text `TextProfile` found to be of this type."""
    if isinstance(dtype, pl.Boolean):
        return truth_of_text(text)
    if isinstance(dtype, pl.Datetime):
        return times.datetime(text)
    return text.cast(dtype, strict=False)


def _is_integer(text: pl.Expr) -> pl.Expr:
    return text.str.contains(_INTEGER) & text.cast(pl.Int64, strict=False).is_not_null()


def _is_float(text: pl.Expr) -> pl.Expr:
    number, integer = text.cast(pl.Float64, strict=False), text.cast(pl.Int64, strict=False)
    is_exact = (number.abs() < EXACT_FLOAT) | (number.cast(pl.Int64, strict=False) == integer)
    # An integer beyond 64 bits has no exact value to compare with.
    survives = is_exact.fill_null(value=False) | ~text.str.contains(_INTEGER)
    return number.is_not_null() & survives & ~text.str.contains(_LEADING_ZERO)


def _is_bool(text: pl.Expr) -> pl.Expr:
    return text.str.to_lowercase().is_in(["true", "false"])


def _is_time(text: pl.Expr) -> pl.Expr:
    return times.datetime(text).is_not_null()


_TESTS: dict[type[pl.DataType], Callable[[pl.Expr], pl.Expr]] = {
    pl.Boolean: _is_bool,
    pl.Int64: _is_integer,
    pl.Float64: _is_float,
    pl.Datetime: _is_time,
}
