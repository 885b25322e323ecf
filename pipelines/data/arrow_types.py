"""Arrow types as Polars can take them: Polars lacks some, and panics at others."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

ArrowType = Any
"""A `pyarrow.DataType`, which has no types of its own."""

MAX_DIGITS = 38
"""Digits of a decimal in Polars, and in 128 bits."""


def polars_type(found: ArrowType) -> ArrowType | None:
    """Return the Arrow type as which Polars takes values of type `found`; None where there is none.

    What it takes as it is comes back as it is. A value is the same in both, but for a decimal of 256 bits
    that has too many digits, which fails when it is cast.
    """
    if isinstance(found, pa.BaseExtensionType):
        return polars_type(found.storage_type)
    if pa.types.is_timestamp(found):
        return found if _knows_zone(found.tz) else pa.timestamp(found.unit, "UTC")
    if pa.types.is_decimal(found):
        return _decimal(found)
    if pa.types.is_dictionary(found):
        is_text = pa.types.is_string(found.value_type) or pa.types.is_large_string(found.value_type)
        return found if is_text else polars_type(found.value_type)
    if is_list(found):
        return _list(found)
    if pa.types.is_struct(found):
        return _struct(found)
    is_absent = pa.types.is_union(found) or pa.types.is_interval(found)
    return None if is_absent or pa.types.is_run_end_encoded(found) else found


def as_polars_takes(values: Any, wanted: ArrowType) -> Any:
    """Return an array in the type that `polars_type` gives for its own.

    Raises ArrowInvalid for a value that does not fit.
    """
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    if _is_list_view(values.type):
        # Arrow's own cast of these gives arrays that are not valid.
        lengths = pc.call_function("list_value_length", [values]).fill_null(0).cast(pa.int64())
        offsets = np.concatenate([[0], np.cumsum(lengths.to_numpy())])
        inner = pc.cast(values.flatten(), wanted.value_type)
        values = pa.LargeListArray.from_arrays(offsets, inner, mask=values.is_null())
    return values if values.type == wanted else pc.cast(values, wanted)


def is_list(found: ArrowType) -> bool:
    """Return whether a type is one of lists, of any kind."""
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, _is_list_view)
    return any(kind(found) for kind in kinds)


def _is_list_view(found: ArrowType) -> bool:
    return pa.types.is_list_view(found) or pa.types.is_large_list_view(found)


def _list(found: ArrowType) -> ArrowType | None:
    inner = polars_type(found.value_type)
    if inner is None or (is_list(inner) and inner != found.value_type):
        return None
    if pa.types.is_fixed_size_list(found):
        return pa.list_(inner, found.list_size)
    if pa.types.is_list(found):
        return pa.list_(inner)
    return pa.large_list(inner)


@lru_cache
def _knows_zone(zone: str | None) -> bool:
    """Return whether Polars knows a time zone: it has names, as UTC or Europe/Rome, but no offsets.

    A time with any zone is stored as UTC, so that another name changes no value.
    """
    try:
        pl.Series(pa.array([], pa.timestamp("us", zone)))
    except pl.exceptions.PolarsError:
        return False
    return True


def _decimal(found: ArrowType) -> ArrowType | None:
    if found.scale < 0 or found.scale > MAX_DIGITS:
        return None
    return found if found.precision <= MAX_DIGITS else pa.decimal128(MAX_DIGITS, found.scale)


def _struct(found: ArrowType) -> ArrowType | None:
    fields = [found.field(index) for index in range(found.num_fields)]
    inner = [polars_type(field.type) for field in fields]
    names = {field.name for field in fields}
    if len(names) < len(fields) or any(each is None for each in inner):
        return None
    if inner == [field.type for field in fields]:
        return found
    return pa.struct([field.with_type(each) for field, each in zip(fields, inner, strict=True)])
