"""Parquet that is read where it lies, by every pass: no copy of it is made.

That holds for local files whose rows are taken as they are, whose every value has a normal form, and whose
row groups are small enough to be read a few columns at a time. Whatever else there is to say about a row or a
file is said by `stage`, which reads with care and names it: None is returned here. So files with checksums on
their pages are left to it as well, since Polars would not look at them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from headwater.feature_store.normalise import named
from headwater.pipelines.data import parquet
from headwater.pipelines.data.columns import StagedColumn
from headwater.pipelines.data.formats import read_types
from headwater.pipelines.data.names import ROW, SPLIT, free_name
from headwater.pipelines.data.source_file import SourceFile
from headwater.pipelines.data.table import Table
from headwater.pipelines.preparing import staging
from headwater.pipelines.preparing.staging import Part, Source, Staged, StagedFile

GROUP_ROWS = 1 << 20
"""Rows of a row group at most: what is read of one column at once."""
COLUMN_BYTES = 256 << 20
"""Bytes of one column in a row group at most."""
FEW_FILES = 16
FILE_ROWS = 1 << 16
"""Rows in a file on average at least, of more than a few files: each is opened again for every column."""


def in_place(source: Source) -> Staged | None:
    """Return the rows of a job as they lie in its files, None where they have to be staged."""
    try:
        return _in_place(source)
    except pl.exceptions.PolarsError:
        return None


def _in_place(source: Source) -> Staged | None:
    if not source.rows.are_raw:
        return None
    types = source.rows.schema
    columns = source.columns()
    if any(each.parses_text for each in columns):
        return None
    files: list[StagedFile] = []
    first_row = 0
    for index, file in enumerate(source.table.files):
        groups = _row_groups(file, types)
        if groups is None:
            return None
        number = free_name("row", read_types(file))
        typed = _typed(source.table, file, types, number, first_row)
        if typed is None or _are_refused(typed, columns):
            return None
        if sum(groups):
            rows = _staged(typed, columns, number, source.split_of(index))
            files.append(StagedFile(rows, list(_parts(rows, groups))))
            first_row += sum(groups)
    if not files or (len(files) > FEW_FILES and first_row < FILE_ROWS * len(files)):
        return None
    return Staged(files)


def _row_groups(file: SourceFile, names: Iterable[str]) -> list[int] | None:
    """Return the rows of each row group; None where the file or a column cannot be read in place."""
    if file.format != "parquet" or not isinstance(file.fs, LocalFileSystem):
        return None
    metadata = pq.read_metadata(file.location)
    # Polars panics at types that it lacks, also in columns that nobody wants.
    if not parquet.is_plain(pq.read_schema(file.location)):
        return None
    if any(parquet.is_int96(metadata, name) for name in names):
        return None
    sizes: list[int] = []
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        chunks = [group.column(number) for number in range(group.num_columns)]
        largest = max((chunk.total_uncompressed_size for chunk in chunks), default=0)
        if group.num_rows > GROUP_ROWS or largest > COLUMN_BYTES:
            return None
        if index == 0 and chunks and _has_checksum(file.location, chunks[0]):
            return None
        sizes.append(group.num_rows)
    return sizes


def _has_checksum(path: str, chunk: Any) -> bool:
    """Return whether the first page of a column has a checksum, as pages of one writer all have or not.

    A page begins with its header in Thrift's compact protocol: three int32 (kind, two sizes), then, as
    another int32, the checksum.
    """
    start = chunk.data_page_offset
    if chunk.has_dictionary_page and chunk.dictionary_page_offset is not None:
        start = min(start, chunk.dictionary_page_offset)
    with Path(path).open("rb") as content:
        content.seek(start)
        header = content.read(64)
    next_int32 = 0x15
    position = 0
    for _ in range(3):
        if header[position] != next_int32:
            return True
        position += 1
        while header[position] & 0x80:
            position += 1
        position += 1
    return header[position] == next_int32


def _typed(
    table: Table, file: SourceFile, names: Iterable[str], number: str, first_row: int
) -> pl.LazyFrame | None:
    """Return the rows of one file in the types of the table; None where a value may have none."""
    rows = pl.scan_parquet(file.location, glob=False, hive_partitioning=False)
    found, known = rows.collect_schema(), read_types(file)
    typed: list[pl.Expr] = []
    for name in names:
        # As the reader of the staged way has it.
        if found.get(name) != known[name]:
            return None
        form = table.conversion(name, named(name), known[name])
        if form is None or form.wrong is not None:
            return None
        typed.append(form.value.alias(name))
    # Not by the offset of the scan, which is a number of 32 bits.
    row = pl.col(number).cast(pl.Int64) + first_row
    return rows.with_row_index(number).select(row, *typed)


def _are_refused(rows: pl.LazyFrame, columns: Sequence[StagedColumn]) -> bool:
    """Return whether any row is."""
    refused = [refusal.rows for each in columns for refusal in each.refusals]
    return rows.select(pl.any_horizontal(refused).any()).collect(engine="streaming").item()


def _staged(
    rows: pl.LazyFrame, columns: Sequence[StagedColumn], number: str, split: int | None
) -> pl.LazyFrame:
    """Return typed rows as `stage` would write them."""
    values = [each.value.alias(each.name) for each in columns]
    if split is not None:
        values.append(pl.lit(split, pl.Int8).alias(SPLIT))
    return rows.select(pl.col(number).alias(ROW), *values)


def _parts(rows: pl.LazyFrame, groups: Sequence[int]) -> Iterator[Part]:
    """Yield neighbouring row groups together, as many as PART_ROWS allow."""
    start = size = 0
    for count in groups:
        if size and size + count > staging.PART_ROWS:
            yield Part(rows.slice(start, size), size)
            start, size = start + size, 0
        size += count
    if size:
        yield Part(rows.slice(start, size), size)
