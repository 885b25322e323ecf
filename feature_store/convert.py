"""Values of one type as those of another: the same value, or none. One rule for files, joins and scores.

What number is a value? An integer is exact from every type that can hold it: integers of any width,
decimals and floats without a fraction, their text, bools (1 and 0) and times (milliseconds since 1970,
UTC). A value that is none of the wanted type is wrong, never another one nearby. A float64 is the
nearest one, as a client's JSON is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

from headwater.feature_store import times

EXACT_FLOAT = 2.0**53
"""Below it every integer is a float64, so that a float that was read from text is the integer meant."""

_UNITS = ("ms", "us", "ns")
_WHOLE = r"^[+-]?[0-9]+\.0*$"
_EXACT_DIGITS = 15
"""Decimals of so many digits become the nearest float64 by one division."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """The values of a column in another type, and which of them are wrong."""

    value: pl.Expr
    """In the wanted type; null where the value is missing or wrong."""
    wrong: pl.Expr | None = None
    """True where a value is there that cannot be read so, never null; None where that cannot be."""


def convert(
    value: pl.Expr, found: pl.DataType, wanted: pl.DataType, *, rounds: bool = True
) -> Conversion | None:
    """Return values of type `found` as `wanted`; None where no value of the one is one of the other.

    Without `rounds`, an integer that no float64 equals is wrong as a float64.
    """
    if found == wanted:
        return Conversion(value)
    if isinstance(found, pl.Array):
        value, found = value.arr.to_list(), pl.List(found.inner)
    if isinstance(found, pl.Null):
        return Conversion(value.cast(wanted))
    if isinstance(found, pl.List) and isinstance(wanted, pl.List):
        inner = convert(pl.element(), element_type(found), element_type(wanted), rounds=rounds)
        return None if inner is None else _in_lists(value, inner)
    if isinstance(found, pl.Categorical | pl.Enum):
        value, found = value.cast(pl.String), pl.String()
    if isinstance(wanted, pl.Int64):
        return _to_int64(value, found)
    if isinstance(wanted, pl.Float64):
        return _to_double(value, found, rounds=rounds)
    if isinstance(wanted, pl.Datetime):
        return _to_datetime(value, found, wanted)
    if found == wanted:  # as the text of categories
        return Conversion(value)
    for accepts, rule in _OTHER_RULES.get(type(wanted), ()):
        if accepts(found):
            return rule(value, wanted)
    return None


def element_type(dtype: pl.List | pl.Array) -> pl.DataType:
    """Return the type of a list's entries."""
    inner = dtype.inner
    return inner if isinstance(inner, pl.DataType) else inner()


def is_integer(dtype: pl.DataType) -> bool:
    """Return whether a type holds integers alone: those of any width, and decimals without a fraction."""
    return dtype.is_integer() or (isinstance(dtype, pl.Decimal) and dtype.scale == 0)


def _in_lists(value: pl.Expr, inner: Conversion) -> Conversion:
    wrong = None
    if inner.wrong is not None:
        wrong = value.list.eval(inner.wrong).list.any().fill_null(value=False)
    return Conversion(value.list.eval(inner.value), wrong)


def _checked(value: pl.Expr, converted: pl.Expr) -> Conversion:
    """Return a conversion that gives null for what is wrong."""
    return Conversion(converted, value.is_not_null() & converted.is_null())


def _to_int64(value: pl.Expr, found: pl.DataType) -> Conversion | None:
    if isinstance(found, pl.String):
        known = pl.when((value != "") & ~_is_nan_text(value)).then(value)
        return _checked(known, integer_of_text(value))
    if isinstance(found, pl.Date | pl.Datetime):
        return Conversion(_milliseconds(value, found))
    if found.is_float():
        number = value.cast(pl.Float64).fill_nan(None)
        whole = number.cast(pl.Int64, strict=False)
        return _checked(number, pl.when(whole.cast(pl.Float64) == number).then(whole))
    if isinstance(found, pl.Decimal):
        whole = value.cast(pl.Int64, strict=False)
        # The way back can leave the range of the type, but only of another number.
        same = whole.cast(pl.Decimal(38, found.scale), strict=False) == value
        return _checked(value, pl.when(same).then(whole))
    if found.is_integer() and (found.is_unsigned_integer() or isinstance(found, pl.Int128)):
        if isinstance(found, pl.UInt8 | pl.UInt16 | pl.UInt32):
            return Conversion(value.cast(pl.Int64))
        return _checked(value, value.cast(pl.Int64, strict=False))
    if found.is_integer() or isinstance(found, pl.Boolean):
        return Conversion(value.cast(pl.Int64))
    return None


def _to_double(value: pl.Expr, found: pl.DataType, *, rounds: bool) -> Conversion | None:
    if isinstance(found, pl.String):
        known = pl.when(value != "").then(value)
        return _checked(known, double_of_text(value))
    if isinstance(found, pl.Date | pl.Datetime):
        return Conversion(_milliseconds(value, found).cast(pl.Float64))
    if isinstance(found, pl.Decimal) and (found.precision or 38) > _EXACT_DIGITS:
        # Polars rounds the digits and then the quotient: by its text it is the nearest float64.
        double = value.cast(pl.String).cast(pl.Float64)
    elif found.is_numeric() or isinstance(found, pl.Boolean):
        double = value.cast(pl.Float64)
    else:
        return None
    integer = None if rounds or found.is_float() else _to_int64(value, found)
    if integer is None:
        return Conversion(double)
    back = double.cast(pl.Int64, strict=False)
    inexact = integer.value.is_not_null() & ~(back == integer.value).fill_null(value=False)
    return Conversion(pl.when(~inexact).then(double), inexact)


def _to_datetime(value: pl.Expr, found: pl.DataType, wanted: pl.Datetime) -> Conversion | None:
    zone = wanted.time_zone
    if isinstance(found, pl.String):
        time = times.datetime(value)
        aware = time if zone is None else time.dt.replace_time_zone("UTC")
        moved = aware.cast(pl.Datetime(wanted.time_unit, zone))
        return _checked(pl.when(value != "").then(value), moved)
    if not isinstance(found, pl.Datetime):
        return None
    # A time without a zone is UTC.
    own = found.time_zone
    utc = value.dt.replace_time_zone("UTC") if own is None else value.dt.convert_time_zone("UTC")
    moved = utc.dt.replace_time_zone(None) if zone is None else utc.dt.convert_time_zone(zone)
    moved = value if own == zone else moved
    thousands = _UNITS.index(wanted.time_unit) - _UNITS.index(found.time_unit)
    if thousands <= 0:
        return Conversion(moved.cast(wanted))
    # A finer unit reaches less far, and Polars panics beyond.
    factor = 1000**thousands
    number = moved.to_physical()
    fits = number.is_between(-(2**63 // factor), 2**63 // factor)
    return _checked(value, (pl.when(fits).then(number) * factor).cast(wanted))


def _milliseconds(value: pl.Expr, found: pl.DataType) -> pl.Expr:
    """Return dates and datetimes as milliseconds since 1970, UTC."""
    time = value.cast(pl.Datetime("ms")) if isinstance(found, pl.Date) else value
    return time.dt.timestamp("ms")


def integer_of_text(text: pl.Expr) -> pl.Expr:
    """Return the integer that each text says by itself, Int64; null where it says none.

    '17', '17.0', '1.7e1' (below 2^53), 'true', and a time in ISO 8601, as milliseconds since 1970, UTC.
    """
    whole = pl.when(text.str.contains(_WHOLE)).then(text.str.replace(r"\.0*$", ""))
    number = text.cast(pl.Float64, strict=False)
    rounded = pl.when(number.abs() < EXACT_FLOAT).then(number).cast(pl.Int64, strict=False)
    return pl.coalesce(
        text.cast(pl.Int64, strict=False),
        whole.cast(pl.Int64, strict=False),
        pl.when(rounded.cast(pl.Float64) == number).then(rounded),
        truth_of_text(text).cast(pl.Int64),
        times.milliseconds(text),
    )


def double_of_text(text: pl.Expr) -> pl.Expr:
    """Return the number nearest to what each text says, Float64; null where it says none.

    Numbers, 'nan', 'inf', 'true', and a time in ISO 8601, as milliseconds since 1970, UTC.
    """
    return pl.coalesce(
        text.cast(pl.Float64, strict=False),
        truth_of_text(text).cast(pl.Float64),
        times.milliseconds(text).cast(pl.Float64),
    )


def truth_of_text(text: pl.Expr) -> pl.Expr:
    """Return Boolean: true and false in letters of any case; null for any other text."""
    return text.str.to_lowercase().replace_strict(
        {"true": True, "false": False}, default=None, return_dtype=pl.Boolean
    )


def _is_nan_text(text: pl.Expr) -> pl.Expr:
    return text.cast(pl.Float64, strict=False).is_nan().fill_null(value=False)


_Rule = Callable[[pl.Expr, pl.DataType], Conversion]


def _cast(value: pl.Expr, wanted: pl.DataType) -> Conversion:
    return Conversion(value.cast(wanted))


def _decimal(value: pl.Expr, wanted: pl.DataType) -> Conversion:
    return _checked(value, value.cast(wanted, strict=False))


def _decimal_of_truth(value: pl.Expr, wanted: pl.DataType) -> Conversion:
    return Conversion(value.cast(pl.Int64).cast(wanted))


def _truth(value: pl.Expr, _: pl.DataType) -> Conversion:
    return _checked(pl.when(value != "").then(value), truth_of_text(value))


def _is_exact_number(dtype: pl.DataType) -> bool:
    return dtype.is_integer() or isinstance(dtype, pl.Decimal)


_OTHER_RULES: dict[type[pl.DataType], tuple[tuple[Callable[[pl.DataType], bool], _Rule], ...]] = {
    pl.String: ((is_integer, _cast),),
    pl.Decimal: (
        (_is_exact_number, _decimal),
        (lambda found: isinstance(found, pl.Boolean), _decimal_of_truth),
    ),
    pl.Boolean: ((lambda found: isinstance(found, pl.String), _truth),),
}
"""Rules for the other wanted types, by what they are read from."""
