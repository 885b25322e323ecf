"""Raw columns of any type that logs come in, brought to the three types that encoders read.

Integers, bools and unsigned integers become Int64; floats and decimals Float64; categories String;
dates and datetimes Int64 milliseconds UTC (a datetime without zone is UTC). Null, NaN, '' and
INT64_MIN are one thing afterwards: null. A list is one of those three types by element.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager

import polars as pl

from headwater.feature_store import schema as fs
from headwater.feature_store.errors import DataError

POLARS_TYPES: dict[fs.Dtype, pl.DataType] = {
    "int64": pl.Int64(),
    "double": pl.Float64(),
    "string": pl.String(),
}


def normalise(lf: pl.LazyFrame, raw: Sequence[fs.RawColumn]) -> pl.LazyFrame:
    """Return the frame with the columns `raw` in normal form and all others as they were.

    Raises DataError for an absent column or a type that cannot become the wanted one. A single
    value that cannot, as the text 'N/A' in an int64 column, shows when the frame is collected:
    collect inside `data_errors()`.
    """
    found = lf.collect_schema()
    for column in raw:
        if column.name not in found:
            raise DataError(missing_column(column.name, found.names()))
    return lf.with_columns(normal_form(column, found[column.name]) for column in raw)


def normal_form(column: fs.RawColumn, found: pl.DataType) -> pl.Expr:
    """Return a raw column, which the data has as type `found`, in normal form.

    Raises DataError where no value of that type can become the wanted one.
    """
    source = pl.col(column.name)
    if column.is_list != isinstance(found, pl.List | pl.Array):
        shape = "a list" if column.is_list else "one value an example"
        raise DataError(f"column {column.name!r}: expected {shape}, found {found}.")
    if isinstance(found, pl.Array):
        source = source.arr.to_list()
    if isinstance(found, pl.List | pl.Array):
        return source.list.eval(_scalar(pl.element(), element_type(found), column))
    return _scalar(source, found, column)


def always_converts(column: fs.RawColumn, found: pl.DataType) -> bool:
    """Return whether every value of type `found`, for which there is a normal form, has one."""
    inner = element_type(found) if isinstance(found, pl.List | pl.Array) else found
    if isinstance(inner, pl.String | pl.Categorical | pl.Enum):
        return column.dtype == "string"
    if column.dtype == "int64":
        return not (inner.is_float() or inner.is_decimal() or isinstance(inner, pl.UInt64))
    return True


def infer_dtype(name: str, dtype: pl.DataType) -> fs.RawColumn:
    """Return the raw column that Polars' type suggests; DataError where no encoder reads it."""
    is_list = isinstance(dtype, pl.List | pl.Array)
    inner = element_type(dtype) if isinstance(dtype, pl.List | pl.Array) else dtype
    if inner.is_integer() or inner.is_temporal() or isinstance(inner, pl.Boolean | pl.Null):
        wanted: fs.Dtype = "int64"
    elif inner.is_numeric():
        wanted = "double"
    else:
        wanted = "string"
    raw = fs.RawColumn(name=name, dtype=wanted, is_list=is_list)
    _scalar(pl.element(), inner, raw)
    return raw


def missing_column(name: str, columns: Sequence[str]) -> str:
    """Return the message for a column that the data does not have, with the nearest name it has."""
    near = difflib.get_close_matches(name, columns, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"column {name!r} is not in the data, which has: {', '.join(columns)}.{hint}"


@contextmanager
def data_errors(source: str = "data") -> Generator[None]:
    """Raise DataError, with `source` and column, for a value that could not be read as its type."""
    try:
        yield
    except pl.exceptions.InvalidOperationError as error:
        pattern = r"conversion from `(.+?)` to `(.+?)` failed in column '(.*?)' for (.*)"
        match = re.search(pattern, str(error))
        if match is None:
            raise
        found, wanted, column, values = match.groups()
        words = {"i64": "int64", "f64": "double", "str": "string"}
        found, wanted = words.get(found, found), words.get(wanted, wanted)
        raise DataError(
            f"{source}: column {column!r}: expected {wanted}, found {found} for {values}. Clean "
            f"the values, or set the feature's `dtype` or its `column`."
        ) from None


def element_type(dtype: pl.List | pl.Array) -> pl.DataType:
    """Return the type of a list's entries."""
    inner = dtype.inner
    return inner if isinstance(inner, pl.DataType) else inner()


def _scalar(value: pl.Expr, found: pl.DataType, column: fs.RawColumn) -> pl.Expr:
    """Return one value in normal form; DataError where no value of type `found` can have it."""
    if isinstance(found, pl.Categorical | pl.Enum):
        value, found = value.cast(pl.String), pl.String()
    if isinstance(found, pl.Date):
        value, found = value.cast(pl.Datetime("ms")).dt.timestamp("ms"), pl.Int64()
    elif isinstance(found, pl.Datetime):
        value, found = value.dt.timestamp("ms"), pl.Int64()
    wanted = POLARS_TYPES[column.dtype]
    is_text, is_number = isinstance(found, pl.String), found.is_numeric()
    if not (is_text or is_number or isinstance(found, pl.Boolean | pl.Null)):
        raise DataError(
            f"column {column.name!r}: {found} is no type that an encoder reads; cast it to a "
            f"number, a text or a list of them, as by `derive` in [data]."
        )
    if column.dtype == "string" and not (
        is_text or found.is_integer() or isinstance(found, pl.Null)
    ):
        raise DataError(
            f"column {column.name!r}: expected string, found {found}, which can be written in "
            f"several ways; read it as double, or as int64 where all values are whole."
        )
    if is_text:
        value = _without(value, "")
    if is_number and not found.is_integer() and column.dtype == "int64":
        value = _whole(value)
    value = value.cast(wanted)
    if column.dtype == "double":
        return value.fill_nan(None)
    return _without(value, fs.INT64_MIN) if column.dtype == "int64" else value


def _without(value: pl.Expr, missing: int | str) -> pl.Expr:
    return pl.when(value != missing).then(value)


def _whole(value: pl.Expr) -> pl.Expr:
    """Return the integers in a float; one with a fraction fails the cast, shown by its text."""
    number = value.cast(pl.Float64).fill_nan(None)
    integer = number.cast(pl.Int64, strict=False)
    exact = integer.cast(pl.Float64) == number
    refused = pl.when(~exact.fill_null(value=False)).then(number)
    return pl.when(exact).then(integer).otherwise(refused.cast(pl.String).cast(pl.Int64))
