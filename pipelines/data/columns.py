"""The columns that fitting and encoding read, as expressions over the rows of a job.

Features come in the encoders' normal form and, under names that no raw column can have, label, weight, group,
time and what the split rule needs. Rows that are refused are told with the raw column, so that whoever
evaluates the columns can name the row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import polars as pl
import polars_hash

from headwater.feature_store import schema as fs
from headwater.feature_store import times
from headwater.feature_store.convert import convert, double_of_text, element_type
from headwater.feature_store.errors import DataError
from headwater.feature_store.normalise import infer_dtype, named, normal_form
from headwater.feature_store.readings import Fail, Reading, Refusal, read
from headwater.pipelines.data.names import (
    GROUP,
    LABEL,
    SPLIT_KEY,
    SPLIT_USER,
    TIME,
    WEIGHT,
    raw_rows,
    staged_name,
)
from headwater.pipelines.data.split_values import known_values, part_of
from headwater.pipelines.job import Features, LoggedFeatures
from headwater.pipelines.job_splits import ColumnSplit, LeaveOneOutSplit, Split, TimeSplit

Types = Mapping[str, pl.DataType]


@dataclass(frozen=True, slots=True)
class StagedColumn(Reading):
    """One column as it is staged."""

    parses_text: bool = False
    """True where numbers or times are read from text, which costs too much to do in every pass."""


def staged_columns(
    raw: Mapping[str, fs.RawColumn], features: Features, rule: Split | None, types: Types
) -> list[StagedColumn]:
    """Return all staged columns but ROW and SPLIT, over rows of the given types.

    Raises DataError for a type that has no label, weight, key or time.
    """
    staged = [_feature(column, types) for column in raw.values()]
    if features.label:
        staged.append(label_column(features.label, types[features.label]))
    else:
        staged.append(StagedColumn(LABEL, "", pl.lit(1.0, pl.Float32)))
    if features.weight is not None:
        staged.append(_weight(features.weight, types[features.weight]))
    if (group := features.group or features.user) is not None:
        staged.append(_key(GROUP, group, types))
    if (time := time_column(features, rule)) is not None:
        needs = "the order of a user's items" if isinstance(features, LoggedFeatures) else None
        staged.append(_ordered(TIME, time, types, needs))
    if isinstance(rule, TimeSplit | LeaveOneOutSplit):
        column = rule.column if isinstance(rule, TimeSplit) else rule.time
        staged.append(_ordered(SPLIT_KEY, column, types, "a split in order of time"))
    if isinstance(rule, LeaveOneOutSplit):
        staged.append(_key(SPLIT_USER, rule.user, types))
    if isinstance(rule, ColumnSplit):
        staged.append(_split_name(rule, types))
    return staged


def time_column(features: Features, rule: Split | None) -> str | None:
    """Return the column that is staged as TIME; None where the job names no event time."""
    return features.time or (rule.column if isinstance(rule, TimeSplit) else None)


def normal(frame: pl.DataFrame, raw: Mapping[str, fs.RawColumn], fail: Fail) -> pl.DataFrame:
    """Return raw columns in the encoders' normal form; fails at the first value that has none."""
    staged = read(frame, [_feature(column, frame.schema) for column in raw.values()], fail)
    return raw_rows(staged.lazy(), raw).collect()


def label_column(name: str, dtype: pl.DataType) -> StagedColumn:
    """Return labels as Float32; refuses what is not 0 or 1."""
    numbers = None if dtype.is_temporal() else convert(named(name), dtype, pl.Float64())
    if numbers is None:
        raise DataError(f"column {name!r}: {dtype} is no label, expected 0 or 1.")

    def message(value: str) -> str:
        found = "no value" if value == "None" else value
        example = f'derive = {{ clicked = "{name} >= 4" }}'
        return f"found {found}, a label is 0 or 1. Derive one in [data], as {example}, or filter the row."

    wrong = (~numbers.value.is_in([0.0, 1.0])).fill_null(value=True)
    label = numbers.value.cast(pl.Float32)
    return StagedColumn(LABEL, name, label, (Refusal(wrong, message),), dtype == pl.String)


def _feature(column: fs.RawColumn, types: Types) -> StagedColumn:
    return _read(staged_name(column.name), column, types)


def _read(name: str, raw: fs.RawColumn, types: Types) -> StagedColumn:
    """Return a raw column in normal form, staged as `name`; refuses a value that has none."""
    form = normal_form(raw, types[raw.name])
    found = types[raw.name]
    inner = element_type(found) if isinstance(found, pl.List | pl.Array) else found
    parses_text = isinstance(inner, pl.String) and raw.dtype != "string"
    return StagedColumn(name, raw.name, form.value, form.refusals, parses_text)


def _weight(name: str, dtype: pl.DataType) -> StagedColumn:
    numbers = None if dtype.is_temporal() else convert(named(name), dtype, pl.Float64())
    if numbers is None:
        raise DataError(f"column {name!r}: {dtype} is no weight, expected a number.")
    weight = numbers.value
    wrong = ~(weight.is_finite() & (weight >= 0)).fill_null(value=False)
    refusal = Refusal(wrong, lambda value: f"found {value}, a weight is a number and not negative.")
    return StagedColumn(WEIGHT, name, weight.cast(pl.Float32), (refusal,), dtype == pl.String)


def _key(staged: str, name: str, types: Types) -> StagedColumn:
    """Return ids as int64: integers as they are, text hashed to 64 bits, INT64_MIN where missing."""
    raw = infer_dtype(name, types[name])
    if raw.is_list:
        raise DataError(
            f"column {name!r}: found a list, expected one integer or text a row, a key."
        )
    if raw.dtype == "double":
        # As where a column of integers has missing values; a fraction is refused.
        raw = fs.RawColumn(name=name, dtype="int64")
    read = _read(staged, raw, types)
    expected = "expected one integer or text a row, a key. Correct the value, or leave it empty."
    refusals = tuple(
        Refusal(each.rows, lambda value: f"found {value}, {expected}") for each in read.refusals
    )
    value = read.value
    if raw.dtype == "string":
        text = polars_hash.NonCryptographicHashingNameSpace(value)
        value = pl.when(value.is_not_null()).then(text.xxh3_64(seed=0).reinterpret(signed=True))
    return replace(read, value=value.fill_null(fs.INT64_MIN), refusals=refusals)


def _ordered(staged: str, name: str, types: Types, needs: str | None) -> StagedColumn:
    """Return a time as a number: dates, datetimes and their text in ms, numbers as they are.

    A missing one is refused where something `needs` it.
    """
    raw = infer_dtype(name, types[name])
    if raw.is_list:
        raise DataError(
            f"column {name!r}: found {types[name]}, expected a time: a number, a date, a datetime or "
            f"ISO 8601 text. Derive one in [data]."
        )
    if raw.dtype == "string":
        read = _read_time(staged, name, types[name])
    else:
        read = _read(staged, raw, types)
    refusals = list(read.refusals)
    if raw.dtype == "double":
        text = "found infinity, expected a time. Correct the value or filter the row."
        refusals.append(Refusal(read.value.is_infinite().fill_null(value=False), lambda _: text))
    if needs is not None:
        needed = f"found no value; {needs} needs one."
        refusals.append(Refusal(read.value.is_null(), lambda _: needed))
    return replace(read, refusals=tuple(refusals))


def _read_time(staged: str, name: str, dtype: pl.DataType) -> StagedColumn:
    """Return times written as text in ms; refuses text that is none."""
    text = convert(named(name), dtype, pl.String())
    assert text is not None, "the column was found to hold text"
    value = times.milliseconds(text.value)
    wrong = (text.value != "").fill_null(value=False) & value.is_null()

    def message(found: str) -> str:
        return (
            f"found {found}, expected a time in ISO 8601, as 2026-03-01T10:20:00Z, or in all rows a number. "
            f"Correct the value, or leave it empty."
        )

    # In a column of numbers, the text that made it one of text.
    no_number = wrong & double_of_text(text.value).is_null()
    refusals = (Refusal(no_number, message), Refusal(wrong, message))
    return StagedColumn(staged, name, value, refusals, parses_text=True)


def _split_name(rule: ColumnSplit, types: Types) -> StagedColumn:
    """Return the number of each row's part; refuses a value that is in none."""
    key = part_of(rule, types[rule.column])

    def message(value: str) -> str:
        found = "no value" if value == "None" else value
        return (
            f"found {found}, data.split knows {known_values(rule)}. Put the value into one of them, or "
            f"filter the row."
        )

    refusal = Refusal(key.is_null(), message)
    return StagedColumn(SPLIT_KEY, rule.column, key, refusals=(refusal,))
