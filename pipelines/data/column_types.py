"""The one type of a column that several files have, each in its own type."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from headwater.feature_store.convert import element_type
from headwater.feature_store.errors import DataError
from headwater.feature_store.schema import Dtype
from headwater.pipelines.data.arrow_types import MAX_DIGITS
from headwater.pipelines.data.source_file import SourceFile


def _widen(dtype: pl.DataType) -> pl.DataType:
    """Return the one type that stands for all of its kind, so that files written by several hands agree."""
    if isinstance(dtype, pl.List | pl.Array):
        return pl.List(_widen(element_type(dtype)))
    if isinstance(dtype, pl.Int128 | pl.UInt128):
        return _WIDE_INTEGER
    if dtype.is_integer() and not isinstance(dtype, pl.UInt64):
        return pl.Int64()
    if dtype.is_float():
        return pl.Float64()
    if isinstance(dtype, pl.Decimal):
        return pl.Decimal(MAX_DIGITS, dtype.scale)
    if isinstance(dtype, pl.Categorical | pl.Enum):
        return pl.String()
    return pl.Datetime("us", dtype.time_zone) if isinstance(dtype, pl.Datetime) else dtype


def as_declared(dtype: pl.DataType, declared: Dtype | None) -> pl.DataType:
    """Return the type to read numbers in where a feature declares one: each becomes it exactly."""
    if isinstance(dtype, pl.List):
        return pl.List(as_declared(element_type(dtype), declared))
    is_mixed = isinstance(dtype, pl.Float64 | pl.Decimal | pl.UInt64)
    if declared == "int64" and is_mixed:
        return pl.Int64()
    return pl.Float64() if declared == "double" and is_mixed else dtype


def unify(
    types: dict[str, pl.DataType],
    found: Mapping[str, pl.DataType],
    file: SourceFile,
    origin: dict[str, str],
) -> None:
    """Widen `types` to hold `found`, the types of (a part of) `file`; `origin` tells which file set them."""
    for name in types.keys() & found.keys():
        wide = _widen(found[name])
        both = _common(types[name], wide)
        if (
            both is None
            and file.format == "ndjson"
            and not (types[name].is_nested() or wide.is_nested())
        ):
            # What Polars makes of mixed values inside one chunk.
            both = pl.String()
        if both is None:
            raise DataError(
                f"{file.path}: column {name!r} is {wide}, but {types[name]} in {origin[name]}; "
                f"expected one type in all files."
            )
        if both != types[name] or name not in origin:
            origin[name] = file.path
        types[name] = both


def _common(a: pl.DataType, b: pl.DataType) -> pl.DataType | None:
    """Return the type that holds the values of both, None where there is none."""
    if a == b or isinstance(b, pl.Null):
        return a
    if isinstance(a, pl.Null):
        return b
    if isinstance(a, pl.List) and isinstance(b, pl.List):
        inner = _common(element_type(a), element_type(b))
        return None if inner is None else pl.List(inner)
    if isinstance(a, pl.Datetime) and isinstance(b, pl.Datetime):
        # A time without a zone is UTC.
        return pl.Datetime("us", "UTC")
    numbers = [each for each in (a, b) if not isinstance(each, pl.Boolean)]
    if not all(isinstance(each, _NUMBERS) for each in numbers):
        return None
    if any(isinstance(each, pl.Float64) for each in numbers):
        return pl.Float64()
    if all(isinstance(each, pl.Int64) for each in numbers):
        return pl.Int64()
    if len(numbers) == 1:
        return numbers[0]
    scales = (each.scale for each in numbers if isinstance(each, pl.Decimal))
    return pl.Decimal(MAX_DIGITS, max(scales, default=0))


_NUMBERS = (pl.Int64, pl.UInt64, pl.Float64, pl.Decimal)
_WIDE_INTEGER = pl.Decimal(MAX_DIGITS, 0)
"""The type of integers that 64 bits may not hold."""
