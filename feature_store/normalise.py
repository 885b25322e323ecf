"""Raw columns of any type that logs come in, brought to the three types that encoders read.

Integers, bools and decimals without a fraction become Int64; floats and other decimals Float64; categories
String; dates and datetimes Int64 milliseconds UTC (a datetime without zone is UTC). Null, NaN, '' and
INT64_MIN are one thing afterwards: null. A list is one of those three types by element.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import polars as pl
import polars.selectors as cs

from headwater.feature_store import schema as fs
from headwater.feature_store.convert import Conversion, convert, element_type, is_integer
from headwater.feature_store.dtypes import DTYPES
from headwater.feature_store.errors import DataError, did_you_mean
from headwater.feature_store.readings import Reading, Refusal, read

POLARS_TYPES: dict[fs.Dtype, pl.DataType] = {
    "int64": pl.Int64(),
    "double": pl.Float64(),
    "string": pl.String(),
}


def named(name: str) -> pl.Expr:
    """Return the column of exactly this name: `pl.col` takes `*` and `^..$` for patterns."""
    return cs.by_name(name).as_expr() if is_pattern(name) else pl.col(name)


def values_of(frame: pl.DataFrame, name: str) -> pl.Series:
    """Return the values of a column under a plain name: methods of a series take its own for a pattern."""
    return frame.get_column(name).alias("values")


def is_pattern(name: str) -> bool:
    """Return whether Polars takes a name for a pattern of names."""
    return name == "*" or (name.startswith("^") and name.endswith("$"))


def normalise(frame: pl.DataFrame, raw: Sequence[fs.RawColumn]) -> pl.DataFrame:
    """Return a frame with the columns `raw` in normal form and all others as they were.

    Raises DataError for an absent column, a type that cannot become the wanted one, and a value that
    cannot, with its row from 1.
    """
    for each in raw:
        if each.name not in frame.columns:
            raise DataError(missing_column(each.name, frame.columns))

    def fail(row: int, column: str, message: str) -> NoReturn:
        raise DataError(f"row {row + 1}, column {column!r}: {message}")

    forms = [normal_form(each, frame.schema[each.name]) for each in raw]
    return frame.with_columns(read(frame, forms, fail).get_columns())


def normal_form(raw: fs.RawColumn, found: pl.DataType) -> Reading:
    """Return a raw column, which the data has as type `found`, in normal form.

    Raises DataError where no value of that type can become the wanted one.
    """
    source = named(raw.name)
    if raw.is_list != isinstance(found, pl.List | pl.Array):
        shape = "a list" if raw.is_list else "one value an example"
        raise DataError(f"column {raw.name!r}: expected {shape}, found {found}.")
    inner = element_type(found) if isinstance(found, pl.List | pl.Array) else found
    wanted = POLARS_TYPES[raw.dtype]
    element = convert(pl.element(), inner, wanted)
    if element is None:
        raise DataError(f"column {raw.name!r}: {_refused_type(inner, raw.dtype)}")
    if not raw.is_list:
        converted = convert(source, found, wanted)
        assert converted is not None
        value = _without_missing(converted.value, raw.dtype)
        return Reading(raw.name, raw.name, value, _refusals(converted, raw.dtype))
    converted = convert(source, found, pl.List(wanted))
    assert converted is not None
    entries = converted.value.list.eval(_without_missing(pl.element(), raw.dtype))
    return Reading(raw.name, raw.name, entries, _refusals(converted, raw.dtype))


def infer_dtype(name: str, dtype: pl.DataType) -> fs.RawColumn:
    """Return the raw column that Polars' type suggests; DataError where no encoder reads it."""
    is_list = isinstance(dtype, pl.List | pl.Array)
    inner = element_type(dtype) if isinstance(dtype, pl.List | pl.Array) else dtype
    if is_integer(inner) or inner.is_temporal() or isinstance(inner, pl.Boolean | pl.Null):
        wanted: fs.Dtype = "int64"
    elif inner.is_numeric():
        wanted = "double"
    else:
        wanted = "string"
    raw = fs.RawColumn(name=name, dtype=wanted, is_list=is_list)
    normal_form(raw, dtype)
    return raw


def missing_column(name: str, columns: Sequence[str]) -> str:
    """Return the message for a column that the data does not have, with the nearest name it has."""
    hint = did_you_mean(name, columns)
    return f"column {name!r} is not in the data, which has: {', '.join(columns)}.{hint}"


def wrong_value(found: str, dtype: fs.Dtype) -> str:
    """Return the message for a value that cannot be read as the type of its column."""
    as_time = " (a time: ISO 8601 or milliseconds, UTC)" if dtype == "int64" else ""
    return (
        f"found {found}, expected {dtype}: {DTYPES[dtype].meaning}{as_time}. Correct the value, "
        f"leave it empty (a missing value is allowed), or train with another `dtype` of the feature."
    )


def _refusals(form: Conversion, dtype: fs.Dtype) -> tuple[Refusal, ...]:
    if form.wrong is None:
        return ()
    return (Refusal(form.wrong, lambda value: wrong_value(value, dtype)),)


def _refused_type(found: pl.DataType, dtype: fs.Dtype) -> str:
    is_known = found.is_numeric() or isinstance(found, pl.String | pl.Boolean)
    if is_known and dtype == "string":
        return (
            f"expected string, found {found}, which can be written in several ways; read it as double, or "
            f"as int64 where all values are whole."
        )
    return (
        f"{found} is no type that an encoder reads; cast it to a number, a text or a list of them, as by "
        f"`derive` in [data]."
    )


def _without_missing(value: pl.Expr, dtype: fs.Dtype) -> pl.Expr:
    """Return a value with null for what the wire writes as missing."""
    if dtype == "double":
        return value.fill_nan(None)
    return pl.when(value != DTYPES[dtype].missing).then(value)
