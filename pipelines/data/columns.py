"""The columns that fitting and encoding read, as expressions over the rows of a job.

Features come in the encoders' normal form and, under names of their own, label, weight, group, time and what
the split rule needs. An expression that can fail on a value, or rows that are refused, are named with the raw
column, so that whoever evaluates them can name the row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import polars_hash

from headwater.feature_store import schema as fs
from headwater.feature_store.errors import DataError
from headwater.feature_store.normalise import infer_dtype, normal_form
from headwater.pipelines.data import splits
from headwater.pipelines.data.split_values import known_values, part_of, shown_value
from headwater.pipelines.job import Features
from headwater.pipelines.job_splits import ColumnSplit, LeaveOneOutSplit, Split, TimeSplit

LABEL, WEIGHT, GROUP, TIME = "__label", "__weight", "__group", "__time"
SPLIT = "__split"

Types = Mapping[str, pl.DataType]

Fail = Callable[[int, str, str], None]
"""Raises DataError for a row of a frame, a raw column and a message."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Rows that are refused, and the message for the raw value found in the first of them."""

    rows: pl.Expr
    """True where the row is refused, never null."""
    message: Callable[[Any], str]


@dataclass(frozen=True, slots=True)
class StagedColumn:
    """One column as it is staged, read off one raw column."""

    name: str
    column: str
    value: pl.Expr
    raw: fs.RawColumn | None = None
    """The normal form that `value` brings the raw column to; None where it cannot fail."""
    refusals: tuple[Refusal, ...] = ()


def staged_columns(
    raw: Mapping[str, fs.RawColumn], features: Features, rule: Split | None, types: Types
) -> list[StagedColumn]:
    """Return all columns but `ROW` and `SPLIT`, over rows of the given types.

    Raises DataError for a type that has no label, weight, key or time.
    """
    staged = [_feature(column, types) for column in raw.values()]
    staged.append(label_column(features.label, types[features.label]))
    if features.weight is not None:
        staged.append(_weight(features.weight))
    if (group := features.group or features.user) is not None:
        staged.append(_key(GROUP, group, types))
    if (time := time_column(features, rule)) is not None:
        staged.append(_ordered(TIME, time, types))
    if isinstance(rule, TimeSplit | LeaveOneOutSplit):
        column = rule.column if isinstance(rule, TimeSplit) else rule.time
        staged.append(_ordered(splits.SPLIT_KEY, column, types, required=True))
    if isinstance(rule, LeaveOneOutSplit):
        staged.append(_key(splits.SPLIT_USER, rule.user, types))
    if isinstance(rule, ColumnSplit):
        staged.append(_split_name(rule, types))
    return staged


def time_column(features: Features, rule: Split | None) -> str | None:
    """Return the column that is staged as TIME; None where the job names no event time."""
    return features.time or (rule.column if isinstance(rule, TimeSplit) else None)


def evaluate(frame: pl.DataFrame, columns: Sequence[StagedColumn], fail: Fail) -> pl.DataFrame:
    """Return the staged columns of a frame; fails at the first value that has none or is refused."""
    try:
        staged = frame.select(each.value.alias(each.name) for each in columns)
    except pl.exceptions.InvalidOperationError:
        for each in columns:
            row = _first_wrong(frame, each)
            if row is not None:
                assert each.raw is not None
                found = frame.get_column(each.column)[row]
                remedy = "Correct the value, or leave it empty: a missing value is allowed."
                fail(row, each.column, f"found {found!r}, expected {each.raw.dtype}. {remedy}")
        raise
    for each in columns:
        for refusal in each.refusals:
            for row in frame.select(refusal.rows).to_series().arg_true().head(1):
                fail(row, each.column, refusal.message(frame.get_column(each.column)[row]))
    return staged


def normal(frame: pl.DataFrame, raw: Mapping[str, fs.RawColumn], fail: Fail) -> pl.DataFrame:
    """Return raw columns in the encoders' normal form; fails at the first value that has none."""
    return evaluate(frame, [_feature(column, frame.schema) for column in raw.values()], fail)


def label_column(name: str, dtype: pl.DataType) -> StagedColumn:
    """Return labels as Float32; refuses what is not 0 or 1."""
    if dtype.is_nested() or dtype.is_temporal():
        raise DataError(f"column {name!r}: {dtype} is no label, expected 0 or 1.")

    def message(value: Any) -> str:
        found = "no value" if value is None else repr(value)
        example = f'derive = {{ clicked = "{name} >= 4" }}'
        return f"found {found}, a label is 0 or 1. Derive one in [data], as {example}, or filter the row."

    numbers = pl.col(name).cast(pl.Float64, strict=False)
    wrong = (~numbers.is_in([0.0, 1.0])).fill_null(value=True)
    return StagedColumn(LABEL, name, numbers.cast(pl.Float32), refusals=(Refusal(wrong, message),))


def _feature(column: fs.RawColumn, types: Types) -> StagedColumn:
    return StagedColumn(
        column.name, column.name, normal_form(column, types[column.name]), raw=column
    )


def _weight(name: str) -> StagedColumn:
    numbers = pl.col(name).cast(pl.Float64, strict=False)
    wrong = ~(numbers.is_finite() & (numbers >= 0)).fill_null(value=False)
    refusal = Refusal(
        wrong, lambda value: f"found {value!r}, a weight is a number and not negative."
    )
    return StagedColumn(WEIGHT, name, numbers.cast(pl.Float32), refusals=(refusal,))


def _key(staged: str, name: str, types: Types) -> StagedColumn:
    """Return ids as int64: integers as they are, text hashed to 64 bits, INT64_MIN where missing."""
    raw = infer_dtype(name, types[name])
    if raw.is_list or raw.dtype == "double":
        found = "a list" if raw.is_list else "a number with a fraction"
        raise DataError(
            f"column {name!r}: found {found}, expected one integer or text a row, a key."
        )
    value = normal_form(raw, types[name])
    if raw.dtype == "string":
        text = polars_hash.NonCryptographicHashingNameSpace(value)
        value = pl.when(value.is_not_null()).then(text.xxh3_64(seed=0).reinterpret(signed=True))
    return StagedColumn(staged, name, value.fill_null(fs.INT64_MIN), raw=raw)


def _ordered(staged: str, name: str, types: Types, *, required: bool = False) -> StagedColumn:
    """Return a time as a number: dates and datetimes in ms, numbers as they are; refuses infinity."""
    raw = infer_dtype(name, types[name])
    if raw.is_list or raw.dtype == "string":
        raise DataError(
            f"column {name!r}: found {types[name]}, expected a time: a number, a date, a datetime or "
            f"ISO 8601 text in a CSV. Derive one in [data]."
        )
    value = normal_form(raw, types[name])
    refusals: list[Refusal] = []
    if raw.dtype == "double":
        text = "found infinity, expected a time. Correct the value or filter the row."
        refusals.append(Refusal(value.is_infinite().fill_null(value=False), lambda _: text))
    if required:
        needed = "found no value; a split in order of time needs one."
        refusals.append(Refusal(value.is_null(), lambda _: needed))
    return StagedColumn(staged, name, value, raw=raw, refusals=tuple(refusals))


def _split_name(rule: ColumnSplit, types: Types) -> StagedColumn:
    """Return the number of each row's part; refuses a value that is in none."""
    key = part_of(rule, types[rule.column])

    def message(value: Any) -> str:
        found = "no value" if value is None else shown_value(value)
        return (
            f"found {found}, data.split knows {known_values(rule)}. Put the value into one of them, or "
            f"filter the row."
        )

    refusal = Refusal(key.is_null(), message)
    return StagedColumn(splits.SPLIT_KEY, rule.column, key, refusals=(refusal,))


def _first_wrong(frame: pl.DataFrame, staged: StagedColumn) -> int | None:
    """Return the first row whose value cannot be read, by halving; None where all can."""

    def fails(end: int) -> bool:
        try:
            frame.head(end).select(staged.value)
        except pl.exceptions.InvalidOperationError:
            return True
        return False

    if staged.raw is None or not fails(frame.height):
        return None
    low, high = 0, frame.height - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fails(middle + 1) else (middle + 1, high)
    return low
