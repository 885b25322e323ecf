"""One raw file, read in chunks: Parquet, CSV, TSV and NDJSON, from any file system, text also gzipped.

Every reader streams: its memory is a chunk, whatever the size of the file. Rows are counted from 1.
"""

from __future__ import annotations

import zlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager

import polars as pl
import pyarrow as pa

from headwater.feature_store.errors import DataError
from headwater.pipelines.data import delimited, ndjson, parquet
from headwater.pipelines.data.source_file import SourceFile

CHUNK_ROWS = 131_072
"""Rows in a chunk at most: what the memory of a reader depends on."""


def read_names(file: SourceFile) -> list[str]:
    """Return the column names, each once, in the order in which the file has them."""
    with _reading(file):
        if file.format == "parquet":
            return parquet.names(file)
        if file.format == "ndjson":
            frames = ndjson.chunks(file, None, CHUNK_ROWS)
            return list(dict.fromkeys(name for frame in frames for name in frame.columns))
        return delimited.names(file)


def read_types(file: SourceFile) -> dict[str, pl.DataType]:
    """Return the column types of a Parquet file, `Unknown` for what cannot be read."""
    with _reading(file):
        return parquet.types(file)


def read_chunks(file: SourceFile, columns: Sequence[str] | None = None) -> Iterator[pl.DataFrame]:
    """Yield the rows in order, at most CHUNK_ROWS a frame.

    Of Parquet with the file's types, of CSV and TSV as String, of NDJSON with the types of that chunk and
    without the columns that it lacks. An empty field of a CSV is null. `columns` chooses, None takes all.
    """
    with _reading(file):
        if file.format == "parquet":
            yield from parquet.chunks(file, columns, CHUNK_ROWS)
        elif file.format == "ndjson":
            yield from ndjson.chunks(file, columns, CHUNK_ROWS)
        else:
            yield from delimited.chunks(file, columns, CHUNK_ROWS)


@contextmanager
def _reading(file: SourceFile) -> Generator[None]:
    """Raise DataError, naming the file and where known the row, for what the readers find wrong."""
    try:
        yield
    except (pa.ArrowException, OSError, EOFError, zlib.error) as error:
        if file.format == "parquet":
            raise DataError(f"{file.path}: not a readable Parquet file: {error}".strip()) from error
        if file.is_text:
            raise delimited.explain(file, error) from error
        raise DataError(f"{file.path}: cannot be read: {error}".strip()) from error
