"""Types for columns that come as text: what every value of a CSV column agrees on.

The whole column decides, not its first rows, so that a late value cannot break a pass that began well. A
column of numbers is one whose text survives the way back: '00123' stays text, and so does an integer beyond
64 bits. Times are ISO 8601 and UTC: '2024-05-01', '2024-05-01 10:20', '2024-05-01T10:20:30.5Z'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import polars as pl

TIME = pl.Datetime("us")

_INTEGER = r"^-?(0|[1-9]\d*)$"
_LEADING_ZERO = r"^[+-]?0\d"
_ISO = r"^\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?Z?)?$"


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
            expressions.append(pl.col(name).is_not_null().any().alias(f"{name}|any"))
            for dtype in possible:
                key = f"{name}|{dtype.__name__}"
                tests[key] = name, dtype
                holds = pl.col(name).is_null() | _TESTS[dtype](pl.col(name))
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
    """Return the values of a String column; null where the text is not one of `dtype`."""
    if isinstance(dtype, pl.Boolean):
        return text.str.to_lowercase().replace_strict(
            {"true": True, "false": False}, default=None, return_dtype=pl.Boolean
        )
    if isinstance(dtype, pl.Datetime):
        return _time(text)
    return text.cast(dtype, strict=False)


def number(text: pl.Expr, dtype: pl.Int64 | pl.Float64) -> pl.Expr:
    """Return the number that each text says by itself; null where it says none of type `dtype`.

    A time is milliseconds since 1970, true and false are 1 and 0: what a column gives whose type all
    its values agree on.
    """
    found = [text.cast(pl.Float64, strict=False)]
    if isinstance(dtype, pl.Int64):
        whole = found[0].cast(pl.Int64, strict=False)
        exact = pl.when(whole.cast(pl.Float64) == found[0]).then(whole)
        found = [text.cast(pl.Int64, strict=False), exact]
    time = pl.when(text.str.contains(_ISO)).then(_time(text)).dt.timestamp("ms")
    return pl.coalesce(*found, parse(text, pl.Boolean()).cast(dtype), time.cast(dtype))


def _is_integer(text: pl.Expr) -> pl.Expr:
    return text.str.contains(_INTEGER) & text.cast(pl.Int64, strict=False).is_not_null()


def _is_float(text: pl.Expr) -> pl.Expr:
    too_long = text.str.contains(_INTEGER) & text.cast(pl.Int64, strict=False).is_null()
    number = text.cast(pl.Float64, strict=False).is_not_null()
    return number & ~too_long & ~text.str.contains(_LEADING_ZERO)


def _is_bool(text: pl.Expr) -> pl.Expr:
    return text.str.to_lowercase().is_in(["true", "false"])


def _is_time(text: pl.Expr) -> pl.Expr:
    return text.str.contains(_ISO) & _time(text).is_not_null()


def _time(text: pl.Expr) -> pl.Expr:
    plain = text.str.replace("T", " ").str.strip_suffix("Z")
    length = plain.str.len_chars()
    full = (
        pl.when(length == 10)
        .then(plain + " 00:00:00")
        .when(length == 16)
        .then(plain + ":00")
        .otherwise(plain)
    )
    return full.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us", strict=False)


_TESTS: dict[type[pl.DataType], Callable[[pl.Expr], pl.Expr]] = {
    pl.Boolean: _is_bool,
    pl.Int64: _is_integer,
    pl.Float64: _is_float,
    pl.Datetime: _is_time,
}
