"""The rows of a job, checked and typed, in temporary Parquet parts: what fitting and encoding read.

Sources are read and joined once; what follows takes several passes. A part holds the raw columns in the
encoders' normal form and, under names of their own, label, weight, group, time and what the split rule
needs. This is where a wrong value is found, so that its file and row can still be named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import polars as pl
import polars_hash
import pyarrow.parquet as pq

from headwater.feature_store import schema as fs
from headwater.feature_store.encoders import Column, Declared
from headwater.feature_store.errors import DataError, JobError
from headwater.feature_store.fit import check, raw_columns
from headwater.feature_store.normalise import infer_dtype, normalise
from headwater.pipelines.console import Progress
from headwater.pipelines.data import splits
from headwater.pipelines.data.formats import CHUNK_ROWS
from headwater.pipelines.data.prepared import SPLITS, SplitName
from headwater.pipelines.data.rows import ROW, Rows
from headwater.pipelines.data.sources import Chunk, SourceFile, Table, find_files
from headwater.pipelines.job import ColumnSplit, Job, LeaveOneOutSplit, TimeSplit

LABEL, WEIGHT, GROUP, TIME = "__label", "__weight", "__group", "__time"
SPLIT = "__split"
PART_ROWS = 4 * CHUNK_ROWS


class Source:
    """The rows of a job before they are staged: which files, which columns, which types.

    Making one reads the text files once to settle their types. Raises JobError, DataError or FeatureError
    where job and data do not fit; single values are looked at by `stage`.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._first_file: dict[SplitName, int] = {}
        files: list[SourceFile] = []
        if job.data.source is not None:
            files = find_files(job.data.source)
        else:
            given = {"train": job.data.train, "valid": job.data.valid, "test": job.data.test}
            for split in SPLITS:
                if (patterns := given[split]) is not None:
                    self._first_file[split] = len(files)
                    files += find_files(patterns)
        self.table = Table(files)
        encoders = job.features.columns
        as_text = [name for each in encoders if _is_text(each) for name in each.inputs]
        self.rows = Rows(self.table, job.data, self._wanted(), as_text=as_text)
        self.raw = readable(encoders, raw_columns(encoders, self.rows.schema))
        """The raw columns that the encoders read, by name: the inputs of a release."""
        check(encoders, self.raw)

    @property
    def time(self) -> str | None:
        """The column that is staged as TIME; None where the job names no event time."""
        rule = self.job.data.split
        return self.job.features.time or (rule.column if isinstance(rule, TimeSplit) else None)

    @property
    def is_time_in_ms(self) -> bool:
        """True where the event time comes as dates or datetimes, False for numbers of any unit."""
        return self.time is not None and self.rows.schema[self.time].is_temporal()

    def _wanted(self) -> dict[str, str]:
        """Return the columns that the job reads, each with what needs it."""
        features = self.job.features
        wanted: dict[str, str] = {}
        for encoder in features.columns:
            if isinstance(encoder, Column):
                (name,) = encoder.inputs
                if name == features.label:
                    raise JobError(
                        f"features.columns: {encoder.name!r} reads the label {name!r}, which is not known "
                        f"when a request is scored; remove it."
                    )
                wanted.setdefault(name, f"(Feature {encoder.name!r} reads it.)")
        for key in ("label", "user", "item", "time", "group", "weight"):
            name = getattr(features, key)
            if name is not None:
                wanted.setdefault(name, f"(features.{key} names it.)")
        for name in splits.columns(self.job.data.split).values():
            wanted.setdefault(name, "(data.split names it.)")
        return wanted

    def split_of(self, file: int) -> int | None:
        """Return the number of the split that a file belongs to; None where a rule decides."""
        before = [split for split, first in self._first_file.items() if first <= file]
        return SPLITS.index(before[-1]) if before else None


def stage(source: Source, folder: Path) -> list[Path]:
    """Write all rows to Parquet parts in a folder and return their paths, in order.

    Raises DataError naming file, row, column and value for a label that is not 0 or 1, a negative weight, a
    value that is not of its column's type, and a row that the split rule cannot place.
    """
    folder.mkdir()
    writer = _PartWriter(folder)
    with Progress("read", unit="rows") as bar:
        for chunk, frame in source.rows.chunks():
            writer.add(_typed(source, chunk, frame))
            bar.advance(chunk.frame.height)
    writer.close()
    if not writer.paths:
        kept = " that the filter keeps" if source.job.data.filter else ""
        raise DataError(f"{source.table.path}: no rows{kept}; expected at least one.")
    return writer.paths


def conditions(source: Source, parts: Sequence[Path]) -> splits.Conditions:
    """Return the condition of each split over staged rows."""
    rule = source.job.data.split
    if rule is None:
        return {
            split: pl.col(SPLIT) == SPLITS.index(split)
            for split in SPLITS
            if split != "test" or source.job.data.test is not None
        }
    return splits.assign(rule, [pl.scan_parquet(part) for part in parts])


_NUMBERS: tuple[fs.Dtype, ...] = ("double", "int64")


def _is_text(encoder: Declared) -> bool:
    return isinstance(encoder, Column) and encoder.dtype == "string"


def readable(
    encoders: Sequence[Declared], raw: Mapping[str, fs.RawColumn]
) -> dict[str, fs.RawColumn]:
    """Return `raw` with text as numbers where only encoders of numbers read it.

    A value that is no number is then refused by its row, not the column by its type.
    """
    result = dict(raw)
    for name, column in raw.items():
        readers = [each for each in encoders if isinstance(each, Column) and name in each.inputs]
        common: list[fs.Dtype] = [
            each for each in _NUMBERS if all(each in reader.accepts for reader in readers)
        ]
        takes_text = any("string" in reader.accepts for reader in readers)
        if column.dtype == "string" and common and not takes_text:
            result[name] = fs.RawColumn(name=name, dtype=common[0], is_list=column.is_list)
    return result


def _typed(source: Source, chunk: Chunk, frame: pl.DataFrame) -> pl.DataFrame:
    """Return a chunk as it is staged."""
    fail = failing(source, chunk, frame)
    features, rule = source.job.features, source.job.data.split
    values = normal(frame, source.raw, fail)
    staged = [frame.get_column(ROW), *(values.get_column(name) for name in source.raw)]
    staged.append(label(frame.get_column(features.label), fail).alias(LABEL))
    if features.weight is not None:
        staged.append(_weight(frame.get_column(features.weight), fail).alias(WEIGHT))
    if (group := features.group or features.user) is not None:
        staged.append(_key(frame, group, fail).alias(GROUP))
    if source.time is not None:
        staged.append(_ordered(frame, source.time, fail).alias(TIME))
    if rule is None:
        split = source.split_of(chunk.file)
        staged.append(pl.repeat(split, frame.height, dtype=pl.Int8, eager=True).alias(SPLIT))
    if isinstance(rule, TimeSplit | LeaveOneOutSplit):
        column = rule.column if isinstance(rule, TimeSplit) else rule.time
        key = _ordered(frame, column, fail)
        _refuse(key.is_null(), column, "found no value; a split in order of time needs one.", fail)
        staged.append(key.alias(splits.SPLIT_KEY))
    if isinstance(rule, LeaveOneOutSplit):
        staged.append(_key(frame, rule.user, fail).alias(splits.SPLIT_USER))
    if isinstance(rule, ColumnSplit):
        key = frame.get_column(rule.column).cast(pl.String)
        known = [getattr(rule, split) for split in SPLITS]
        for row in (~key.is_in(known)).fill_null(value=True).arg_true().head(1):
            fail(row, rule.column, f"found {key[row]!r}, data.split knows {', '.join(known)}.")
        staged.append(key.alias(splits.SPLIT_KEY))
    return pl.DataFrame(staged)


Fail = Callable[[int, str, str], None]
"""Raises DataError for a row of the chunk, a column and a message."""


def failing(source: Source, chunk: Chunk, frame: pl.DataFrame) -> Fail:
    """Return what raises DataError with the file and the raw row of a row of `frame`, made of `chunk`."""

    def fail(row: int, column: str, message: str) -> None:
        where = source.rows.where(chunk, int(frame.get_column(ROW)[row]))
        raise DataError(f"{where}, column {column!r}: {message}")

    return fail


def _refuse(wrong: pl.Series, column: str, message: str, fail: Fail) -> None:
    """Fail at the first true value."""
    for row in wrong.arg_true().head(1):
        fail(row, column, message)


def label(values: pl.Series, fail: Fail) -> pl.Series:
    """Return labels as Float32; fails at the first that is not 0 or 1."""
    if values.dtype.is_nested() or values.dtype.is_temporal():
        raise DataError(f"column {values.name!r}: {values.dtype} is no label, expected 0 or 1.")
    numbers = values.cast(pl.Float64, strict=False)
    for row in (~numbers.is_in([0.0, 1.0])).fill_null(value=True).arg_true().head(1):
        found = "no value" if values[row] is None else repr(values[row])
        example = f'derive = {{ clicked = "{values.name} >= 4" }}'
        fail(
            row,
            values.name,
            f"found {found}, a label is 0 or 1. Derive one in [data], as {example}, or filter the row.",
        )
    return numbers.cast(pl.Float32)


def _weight(values: pl.Series, fail: Fail) -> pl.Series:
    numbers = values.cast(pl.Float64, strict=False)
    for row in (numbers.is_finite() & (numbers >= 0)).fill_null(value=False).not_().arg_true()[:1]:
        fail(row, values.name, f"found {values[row]!r}, a weight is a number and not negative.")
    return numbers.cast(pl.Float32)


def _key(frame: pl.DataFrame, name: str, fail: Fail) -> pl.Series:
    """Return ids as int64: integers as they are, text hashed to 64 bits, INT64_MIN where missing."""
    raw = infer_dtype(name, frame.schema[name])
    if raw.is_list or raw.dtype == "double":
        found = "a list" if raw.is_list else "a number with a fraction"
        raise DataError(
            f"column {name!r}: found {found}, expected one integer or text a row, a key."
        )
    values = normal(frame, {name: raw}, fail).get_column(name)
    if raw.dtype == "string":
        text = polars_hash.NonCryptographicHashingNameSpace(pl.col(name))
        hashed = text.xxh3_64(seed=0).reinterpret(signed=True)
        values = (
            values.to_frame().select(pl.when(pl.col(name).is_not_null()).then(hashed)).to_series()
        )
    return values.fill_null(fs.INT64_MIN)


def _ordered(frame: pl.DataFrame, name: str, fail: Fail) -> pl.Series:
    """Return a time as a number: dates and datetimes in ms, numbers as they are; fails at infinity."""
    raw = infer_dtype(name, frame.schema[name])
    if raw.is_list or raw.dtype == "string":
        raise DataError(
            f"column {name!r}: found {frame.schema[name]}, expected a time: a number, a date, a datetime or "
            f"ISO 8601 text in a CSV. Derive one in [data]."
        )
    times = normal(frame, {name: raw}, fail).get_column(name)
    remedy = "Correct the value or filter the row."
    _refuse(times.is_infinite(), name, f"found infinity, expected a time. {remedy}", fail)
    return times


def normal(frame: pl.DataFrame, raw: Mapping[str, fs.RawColumn], fail: Fail) -> pl.DataFrame:
    """Return `frame` in the encoders' normal form; fails at the first value that has none."""
    try:
        return normalise(frame.lazy(), list(raw.values())).collect()
    except pl.exceptions.InvalidOperationError:
        for name, column in raw.items():
            row = _first_wrong(frame.select(name), column)
            if row is not None:
                found = frame.get_column(name)[row]
                remedy = "Correct the value, or leave it empty: a missing value is allowed."
                fail(row, name, f"found {found!r}, expected {column.dtype}. {remedy}")
        raise


def _first_wrong(frame: pl.DataFrame, column: fs.RawColumn) -> int | None:
    """Return the first row whose value cannot be read as `column`, by halving; None where all can."""

    def fails(end: int) -> bool:
        try:
            normalise(frame.head(end).lazy(), [column]).collect()
        except pl.exceptions.InvalidOperationError:
            return True
        return False

    if not fails(frame.height):
        return None
    low, high = 0, frame.height - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fails(middle + 1) else (middle + 1, high)
    return low


class _PartWriter:
    """Collects chunks to row groups of CHUNK_ROWS and parts of PART_ROWS."""

    def __init__(self, folder: Path) -> None:
        self.paths: list[Path] = []
        self._folder = folder
        self._waiting: list[pl.DataFrame] = []
        self._waiting_rows = 0
        self._part_rows = 0
        self._writer: pq.ParquetWriter | None = None

    def add(self, frame: pl.DataFrame) -> None:
        if frame.height == 0:
            return
        self._waiting.append(frame)
        self._waiting_rows += frame.height
        if self._waiting_rows >= CHUNK_ROWS:
            self._write()
        if self._part_rows >= PART_ROWS:
            self._end_part()

    def close(self) -> None:
        if self._waiting:
            self._write()
        self._end_part()

    def _write(self) -> None:
        rows = pl.concat(self._waiting).to_arrow(compat_level=pl.CompatLevel.oldest())
        self._waiting.clear()
        if self._writer is None:
            self.paths.append(self._folder / f"part-{len(self.paths):05d}.parquet")
            self._writer = pq.ParquetWriter(self.paths[-1], rows.schema, compression="lz4")
        self._writer.write_table(rows, row_group_size=CHUNK_ROWS)
        self._part_rows += self._waiting_rows
        self._waiting_rows = 0

    def _end_part(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._part_rows = 0
