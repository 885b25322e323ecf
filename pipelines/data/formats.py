"""One raw file, read in chunks: Parquet, CSV, TSV (also gzipped) and NDJSON, from any file system.

Every reader streams: its memory is a chunk, whatever the size of the file. CSV is strict: a line with too few
or too many fields is refused by its row, never filled up or cut. Rows are counted from 1, without the header.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from headwater.feature_store.errors import DataError

CHUNK_ROWS = 131_072
"""Rows in a chunk at most: what the memory of a reader depends on."""
CSV_BLOCK_BYTES = 4 << 20
NDJSON_BLOCK_BYTES = 8 << 20

Format = Literal["parquet", "csv", "tsv", "ndjson"]
SUFFIXES: dict[str, Format] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".csv.gz": "csv",
    ".tsv": "tsv",
    ".tsv.gz": "tsv",
    ".ndjson": "ndjson",
    ".ndjson.gz": "ndjson",
    ".jsonl": "ndjson",
    ".jsonl.gz": "ndjson",
}
SEPARATORS = {"csv": ",", "tsv": "\t"}


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A raw file: `path` as errors name it, and where its bytes are."""

    path: str
    fs: AbstractFileSystem
    location: str
    format: Format

    @property
    def is_text(self) -> bool:
        """True where the file holds text without types, as CSV does."""
        return self.format in SEPARATORS

    def open(self) -> Any:
        """Return the bytes as an Arrow input stream, decompressed where the name ends in .gz."""
        compression = "gzip" if self.path.endswith(".gz") else None
        if isinstance(self.fs, LocalFileSystem):
            return pa.input_stream(self.location, compression=compression)
        return pa.input_stream(self.fs.open(self.location, "rb"), compression=compression)


def format_of(path: str) -> Format | None:
    """Return the format that the end of a name tells, None for an unknown one."""
    name = path.lower()
    return next((form for suffix, form in SUFFIXES.items() if name.endswith(suffix)), None)


def read_names(file: SourceFile) -> list[str]:
    """Return the column names that a Parquet, CSV or TSV file states."""
    with _reading(file):
        if file.format == "parquet":
            with _parquet(file) as parquet:
                return list(parquet.schema_arrow.names)
        names = _open_csv(file, None).schema.names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{file.path}: the header names {', '.join(map(repr, twice))} twice.")
    return names


def read_types(file: SourceFile) -> dict[str, pl.DataType]:
    """Return the column types that a Parquet file states."""
    with _reading(file), _parquet(file) as parquet:
        # Column by column: a type that Polars does not know must not hide the others.
        types: dict[str, pl.DataType] = {}
        for field in parquet.schema_arrow:
            types[field.name] = pl.Series(pa.array([], type=field.type)).dtype
        return types


def read_chunks(file: SourceFile, columns: Sequence[str] | None = None) -> Iterator[pl.DataFrame]:
    """Yield the rows in order, at most CHUNK_ROWS a frame.

    Of Parquet with the file's types, of CSV and TSV as String, of NDJSON with the types of that chunk and
    without the columns that it lacks. An empty field of a CSV is null. `columns` chooses, None takes all.
    """
    with _reading(file):
        if file.format == "parquet":
            yield from _parquet_chunks(file, columns)
        elif file.format == "ndjson":
            yield from _ndjson_chunks(file, columns)
        else:
            for batch in _open_csv(file, columns):
                frame = pl.DataFrame(pl.from_arrow(batch))
                yield from frame.iter_slices(CHUNK_ROWS)


@contextmanager
def _reading(file: SourceFile) -> Generator[None]:
    """Raise DataError, naming the file and where known the row, for what the readers find wrong."""
    try:
        yield
    except (pa.ArrowException, OSError, EOFError, zlib.error) as error:
        text = str(error).strip()
        if file.format == "parquet":
            raise DataError(f"{file.path}: not a readable Parquet file: {text}") from error
        if "Empty CSV file" in text:
            raise DataError(
                f"{file.path}: the file is empty; expected a header and rows."
            ) from error
        ragged = re.search(r"Row #(\d+): Expected (\d+) columns, got (\d+)", text)
        if ragged is not None:
            row, expected, found = map(int, ragged.groups())
            raise DataError(
                f"{file.path}, row {row - 1}: found {found} fields, the header names {expected}. "
                f"Quote fields that contain the separator."
            ) from error
        row = re.search(r"Row #(\d+)", text)
        where = f", row {int(row.group(1)) - 1}" if row is not None else ""
        raise DataError(f"{file.path}{where}: cannot be read: {text}") from error


@contextmanager
def _parquet(file: SourceFile) -> Generator[pq.ParquetFile]:
    local = isinstance(file.fs, LocalFileSystem)
    source = file.location if local else file.fs.open(file.location, "rb")
    # A buffer, else each column chunk of a row group is read whole.
    with pq.ParquetFile(
        source, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True
    ) as parquet:
        yield parquet


def _parquet_chunks(file: SourceFile, columns: Sequence[str] | None) -> Iterator[pl.DataFrame]:
    chosen = None if columns is None else list(columns)
    with _parquet(file) as parquet:
        for batch in parquet.iter_batches(CHUNK_ROWS, columns=chosen, use_threads=False):
            yield pl.DataFrame(pl.from_arrow(batch))


def _open_csv(file: SourceFile, columns: Sequence[str] | None) -> Any:
    separator = SEPARATORS[file.format]
    read = pa_csv.ReadOptions(block_size=CSV_BLOCK_BYTES, use_threads=False)
    parse = pa_csv.ParseOptions(delimiter=separator, newlines_in_values=True)
    if columns is None:
        # All columns must be declared as text, and so named, before the reader guesses types.
        columns = pa_csv.open_csv(file.open(), read_options=read, parse_options=parse).schema.names
    names = list(columns or ())
    convert = pa_csv.ConvertOptions(
        include_columns=names,
        column_types=dict.fromkeys(names, pa.string()),
        null_values=[""],
        strings_can_be_null=True,
    )
    return pa_csv.open_csv(
        file.open(), read_options=read, parse_options=parse, convert_options=convert
    )


def _ndjson_chunks(file: SourceFile, columns: Sequence[str] | None) -> Iterator[pl.DataFrame]:
    row = 1
    rest = b""
    with file.open() as stream:
        while block := stream.read(NDJSON_BLOCK_BYTES):
            whole, newline, rest = (rest + block).rpartition(b"\n")
            if newline:
                frame = _parse_ndjson(file, whole, row)
                row += frame.height
                yield from _chosen(frame, columns)
        if rest.strip():
            yield from _chosen(_parse_ndjson(file, rest, row), columns)


def _chosen(frame: pl.DataFrame, columns: Sequence[str] | None) -> Iterator[pl.DataFrame]:
    if columns:
        known = [name for name in columns if name in frame.columns]
        # A chunk without any wanted column still has rows.
        empty = pl.repeat(None, pl.len()).alias(columns[0])
        frame = frame.select(known) if known else frame.select(empty)
    yield from frame.iter_slices(CHUNK_ROWS)


def _parse_ndjson(file: SourceFile, lines: bytes, first_row: int) -> pl.DataFrame:
    if not lines.strip():
        return pl.DataFrame()
    try:
        # As long as the chunk, so that a rare key or a late float is seen.
        return pl.read_ndjson(io.BytesIO(lines), infer_schema_length=None)
    except pl.exceptions.PolarsError as error:
        raise DataError(_explain_ndjson(file, lines, first_row, str(error))) from error


def _explain_ndjson(file: SourceFile, lines: bytes, first_row: int, error: str) -> str:
    """Return what is wrong and in which row; line by line, for the message only."""
    kinds: dict[str, type] = {}
    row = first_row - 1
    for line in lines.split(b"\n"):
        if not line.strip():
            continue
        row += 1
        where = f"{file.path}, row {row}"
        try:
            record = msgspec.json.decode(line)
        except msgspec.DecodeError as wrong:
            return f"{where}: not JSON: {wrong}. Expected one object a line."
        if not isinstance(record, dict):
            return f"{where}: expected a JSON object, found {line[:80].decode(errors='replace')}."
        for name, value in record.items():
            kind = float if type(value) is int else type(value)
            if value is not None and kinds.setdefault(name, kind) is not kind:
                return (
                    f"{where}: column {name!r}: found {value!r} ({type(value).__name__}), rows before it "
                    f"hold {kinds[name].__name__}. One column has one type."
                )
    return f"{file.path}, rows {first_row} to {row}: cannot be read: {error}"
