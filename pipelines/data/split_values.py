"""The values by which a column says where a row belongs: as the job writes them, and as the column has them.

Values are compared as values, not as they are written: 5 and '5' are the integer 5 in a column of integers,
and the text 5 in one of text. A month or a day stands for all times in it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import polars as pl

from headwater.feature_store.convert import is_integer
from headwater.feature_store.errors import JobError
from headwater.feature_store.normalise import named
from headwater.pipelines.job_splits import ColumnSplit, SplitValue, split_text
from headwater.pipelines.prepared import SPLITS, SplitName

SHOWN_VALUES = 8

_MONTH = re.compile(r"(\d{4})-(\d\d)")
_TIME = re.compile(r"\d{4}-\d\d-\d\d([T ].+)?")
_INTEGER = re.compile(r"[+-]?\d+")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_Period = tuple[int, int]
"""First microsecond since 1970, UTC, and the one after the last."""


def part_of(split: ColumnSplit, dtype: pl.DataType) -> pl.Expr:
    """Return the number of the part that the value of `split.column` is in, Int8; null for one in none.

    JobError where a written value can be none of a column of this type, or is in two parts.
    """
    if dtype.is_nested():
        raise JobError(
            f"data.split.column: found {dtype} in column {split.column!r}, expected text, numbers, true or "
            f"false, dates or times. Derive such a column in [data.derive]."
        )
    is_time = isinstance(dtype, pl.Date | pl.Datetime)
    tests = _in_periods(split, dtype) if is_time else _among(split, dtype)
    number = pl.lit(None, pl.Int8)
    for part, test in tests.items():
        number = pl.when(test).then(pl.lit(SPLITS.index(part), pl.Int8)).otherwise(number)
    return number


def _in_periods(split: ColumnSplit, dtype: pl.DataType) -> dict[SplitName, pl.Expr]:
    periods = _read(split, dtype, _period)
    _check_apart(periods)
    column = named(split.column)
    time = (column.cast(pl.Datetime("us")) if dtype == pl.Date else column).dt.timestamp("us")
    return {
        part: pl.any_horizontal((time >= first) & (time < end) for first, end in found)
        for part, found in periods.items()
        if found
    }


def _among(split: ColumnSplit, dtype: pl.DataType) -> dict[SplitName, pl.Expr]:
    column, read = named(split.column), split_text
    if isinstance(dtype, pl.Decimal):
        dtype = pl.Int64() if is_integer(dtype) else pl.Float64()
        column = column.cast(dtype, strict=False)
    if isinstance(dtype, pl.Boolean):
        read = _truth
    elif dtype.is_float():
        read = _float
    elif dtype.is_integer():
        read = partial(_integer, is_signed=dtype.is_signed_integer())
    else:
        column = column.cast(pl.String)
    values = _read(split, dtype, read)
    _check_distinct(values)
    return {part: column.is_in(found) for part, found in values.items() if found}


def known_values(split: ColumnSplit) -> str:
    """Return all values that are in a part, for messages."""
    return "; ".join(f"{part} {_listed(getattr(split, part))}" for part in SPLITS)


def _read(
    split: ColumnSplit, dtype: pl.DataType, read: Callable[[SplitValue], Any]
) -> dict[SplitName, list[Any]]:
    """Return the values of each part as those of the column; `read` gives None for what is none."""
    found: dict[SplitName, list[Any]] = {}
    for part in SPLITS:
        written: list[SplitValue] = getattr(split, part)
        found[part] = [value for each in written if (value := read(each)) is not None]
        # The default says that the data may have such rows; a column of numbers has none.
        if len(found[part]) < len(written) and (part != "test" or written != ["test"]):
            wrong = next(each for each in written if read(each) is None)
            raise JobError(
                f"data.split.{part}: found {shown_value(wrong)}, which is no value of column "
                f"{split.column!r} ({dtype}). Expected {_kind(dtype)}."
            )
    return found


def _kind(dtype: pl.DataType) -> str:
    if isinstance(dtype, pl.Boolean):
        return "true or false"
    if dtype.is_numeric():
        return "numbers" if dtype.is_float() else "whole numbers"
    return "months, days or times, as '2026-03', '2026-03-05' or '2026-03-05T10:20:00'"


def _check_distinct(values: Mapping[SplitName, list[Any]]) -> None:
    owner: dict[Any, SplitName] = {}
    for part, found in values.items():
        for value in found:
            if owner.setdefault(value, part) != part:
                raise _in_two(owner[value], part, shown_value(value))


def _check_apart(periods: Mapping[SplitName, list[_Period]]) -> None:
    ordered = sorted((period, part) for part, found in periods.items() for period in found)
    reached, owner = -math.inf, SPLITS[0]
    for (first, end), part in ordered:
        if first < reached and part != owner:
            raise _in_two(owner, part, f"{_EPOCH + timedelta(microseconds=first)}")
        if end > reached:
            reached, owner = end, part


def _in_two(one: str, other: str, value: str) -> JobError:
    return JobError(
        f"data.split: `{one}` and `{other}` both hold {value}; put it into one of them."
    )


def _truth(value: SplitValue) -> bool | None:
    return {"true": True, "1": True, "false": False, "0": False}.get(split_text(value).lower())


def _integer(value: SplitValue, *, is_signed: bool) -> int | None:
    """Return the whole number that is written, within 64 bits."""
    text = _number_text(value)
    if not _NUMBER.fullmatch(text):
        return None
    # Not by way of float, which rounds long ids.
    number = int(text) if _INTEGER.fullmatch(text) else float(text)
    low, high = (-(2**63), 2**63) if is_signed else (0, 2**64)
    return int(number) if low <= number < high and number == int(number) else None


def _float(value: SplitValue) -> float | None:
    text = _number_text(value)
    return float(text) if _NUMBER.fullmatch(text) and math.isfinite(float(text)) else None


def _number_text(value: SplitValue) -> str:
    """Return a value as text; true and false are 1 and 0 beside numbers, as in the data."""
    text = split_text(value)
    return {"true": "1", "false": "0"}.get(text.lower(), text)


def _period(value: SplitValue) -> _Period | None:
    """Return the month, day or moment that is written in ISO form; one without a zone is UTC."""
    if isinstance(value, bool | int | float):
        return None
    text = split_text(value)
    try:
        if month := _MONTH.fullmatch(text):
            first = datetime(int(month[1]), int(month[2]), 1, tzinfo=UTC)
            end = (first + timedelta(days=31)).replace(day=1)
        elif form := _TIME.fullmatch(text):
            first = datetime.fromisoformat(text)
            first = first.replace(tzinfo=first.tzinfo or UTC)
            end = first + (timedelta(microseconds=1) if form[1] else timedelta(days=1))
        else:
            return None
    except (ValueError, OverflowError):
        return None
    microsecond = timedelta(microseconds=1)
    return (first - _EPOCH) // microsecond, (end - _EPOCH) // microsecond


def shown_value(value: Any) -> str:
    """Return a value of the job or the data as a message shows it: text in quotes."""
    return repr(value) if isinstance(value, str) else split_text(value)


def _listed(values: list[SplitValue]) -> str:
    more = f" and {len(values) - SHOWN_VALUES} more" if len(values) > SHOWN_VALUES else ""
    return (", ".join(map(shown_value, values[:SHOWN_VALUES])) or "none") + more
