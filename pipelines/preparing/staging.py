"""The rows of a job, checked and typed: what fitting and encoding read, in several passes.

They are staged in temporary Parquet parts: sources are read and joined once, and a wrong value is found
where its file and row can still be named. Where the sources are Parquet that need none of it, they are read
in place instead (`in_place`). Either way a part has the columns of `staged_columns`, ROW, and SPLIT where no
rule decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from headwater.feature_store import schema as fs
from headwater.feature_store.encoders import Column, Declared
from headwater.feature_store.errors import DataError, JobError
from headwater.feature_store.readings import Fail, read
from headwater.pipelines.console import Progress
from headwater.pipelines.data.columns import StagedColumn, staged_columns, time_column
from headwater.pipelines.data.files import find_files
from headwater.pipelines.data.formats import CHUNK_ROWS
from headwater.pipelines.data.names import GROUP, ROW, SPLIT
from headwater.pipelines.data.rows import Rows, side_tables
from headwater.pipelines.data.source_file import SourceFile
from headwater.pipelines.data.table import Chunk, Table
from headwater.pipelines.job import Job
from headwater.pipelines.prepared import SPLITS, SplitName
from headwater.pipelines.preparing import splits
from headwater.pipelines.rules.data import (
    absent_columns,
    column_needs,
    column_types,
    known_columns,
    label_problems,
)

PART_ROWS = 4 * CHUNK_ROWS
"""Rows of a part at most, but for a row group of a source that is larger."""


@dataclass(frozen=True, slots=True)
class Part:
    """Neighbouring rows, few enough to hold a few columns of them in memory."""

    rows: pl.LazyFrame
    num_rows: int


@dataclass(frozen=True, slots=True)
class StagedFile:
    """The rows of one file, as one frame and as parts."""

    rows: pl.LazyFrame
    parts: Sequence[Part]


@dataclass(frozen=True, slots=True)
class Staged:
    """All rows of a job, in order."""

    files: Sequence[StagedFile]

    @property
    def parts(self) -> list[Part]:
        """The parts of all files."""
        return [part for file in self.files for part in file.parts]


class Source:
    """The rows of a job before they are staged: which files, which columns, which types.

    Making one reads the text files once to settle their types. Raises JobError or DataError, with a
    line for each problem, where job and data do not fit; single values are looked at by `stage`.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._first_file: dict[SplitName, int] = {}
        files: list[SourceFile] = []
        csv = job.data.csv
        if job.data.source is not None:
            files = find_files(job.data.source, csv)
        else:
            given = {"train": job.data.train, "valid": job.data.valid, "test": job.data.test}
            for split in SPLITS:
                if (patterns := given[split]) is not None:
                    self._first_file[split] = len(files)
                    files += find_files(patterns, csv)
        self.table = Table(files)
        encoders = job.features.columns
        sides = side_tables(job.data)
        known = known_columns([self.table, *sides], job.data)
        if problems := absent_columns(job, known, self.table.path):
            raise DataError("\n".join(problems))
        self.rows = Rows(
            self.table, sides, job.data, column_needs(job), dtypes=declared_dtypes(encoders)
        )
        if problems := label_problems(job, known):
            raise JobError("\n".join(problems))
        self.raw, problems = column_types(encoders, self.rows.schema)
        """The raw columns that the encoders read, by name: the inputs of a release."""
        if problems:
            raise DataError("\n".join(problems))

    @property
    def time(self) -> str | None:
        """The column that is staged as TIME; None where the job names no event time."""
        return time_column(self.job.features, self.job.data.split)

    @property
    def is_time_in_ms(self) -> bool:
        """True where the event time comes as dates or datetimes, False for numbers of any unit."""
        return self.time is not None and self.rows.schema[self.time].is_temporal()

    def columns(self) -> list[StagedColumn]:
        """Return the columns to stage, over rows of the types of `rows.schema`."""
        return staged_columns(self.raw, self.job.features, self.job.data.split, self.rows.schema)

    def split_of(self, file: int) -> int | None:
        """Return the number of the split that a file belongs to; None where a rule decides."""
        before = [split for split, first in self._first_file.items() if first <= file]
        return SPLITS.index(before[-1]) if before else None


def stage(source: Source, folder: Path) -> Staged:
    """Write all rows to Parquet parts in a folder.

    Raises DataError naming file, row, column and value for a label that is not 0 or 1, a negative weight, a
    value that is not of its column's type, and a row that the split rule cannot place.
    """
    folder.mkdir()
    columns = source.columns()
    writer = _PartWriter(folder)
    with Progress("read", unit="rows") as bar:
        for chunk, frame in source.rows.chunks():
            staged = read(frame, columns, failing(source, chunk, frame))
            staged.insert_column(0, frame.get_column(source.rows.number).alias(ROW))
            split = source.split_of(chunk.file)
            if split is not None:
                staged = staged.with_columns(pl.lit(split, pl.Int8).alias(SPLIT))
            writer.add(staged)
            bar.advance(chunk.frame.height)
    writer.close()
    if not writer.parts:
        kept = " that the filter keeps" if source.job.data.filter else ""
        raise DataError(f"{source.table.path}: no rows{kept}; expected at least one.")
    return Staged([StagedFile(part.rows, [part]) for part in writer.parts])


def conditions(source: Source, staged: Staged) -> splits.Conditions:
    """Return the condition of each split over staged rows."""
    rule = source.job.data.split
    if rule is None:
        return {
            split: pl.col(SPLIT) == SPLITS.index(split)
            for split in SPLITS
            if split != "test" or source.job.data.test is not None
        }
    log = source.job.interactions
    # A basket is of one split as a whole.
    unit = ROW if log is None or log.basket is None else GROUP
    return splits.assign(rule, [part.rows for part in staged.parts], unit)


def declared_dtypes(encoders: Sequence[Declared]) -> dict[str, fs.Dtype]:
    """Return the types that encoders declare for raw columns, by column."""
    columns = (each for each in encoders if isinstance(each, Column))
    return {each.inputs[0]: each.dtype for each in columns if each.dtype is not None}


def failing(source: Source, chunk: Chunk, frame: pl.DataFrame) -> Fail:
    """Return what raises DataError with the file and the raw row of a row of `frame`, made of `chunk`."""

    def fail(row: int, column: str, message: str) -> None:
        where = source.rows.where(chunk, int(frame.get_column(source.rows.number)[row]))
        raise DataError(f"{where}, column {column!r}: {message}")

    return fail


class _PartWriter:
    """Collects chunks to row groups of CHUNK_ROWS and parts of PART_ROWS."""

    def __init__(self, folder: Path) -> None:
        self.parts: list[Part] = []
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
            self._writer = pq.ParquetWriter(self._path(), rows.schema, compression="lz4")
        self._writer.write_table(rows, row_group_size=CHUNK_ROWS)
        self._part_rows += self._waiting_rows
        self._waiting_rows = 0

    def _end_part(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self.parts.append(Part(pl.scan_parquet(self._path()), self._part_rows))
            self._writer = None
            self._part_rows = 0

    def _path(self) -> Path:
        return self._folder / f"part-{len(self.parts):05d}.parquet"
