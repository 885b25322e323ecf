"""One Parquet file: its columns, their types, and its rows in chunks."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from headwater.feature_store.errors import DataError
from headwater.pipelines.data.arrow_types import (
    MAX_DIGITS,
    ArrowType,
    as_polars_takes,
    polars_type,
)
from headwater.pipelines.data.source_file import SourceFile


def names(file: SourceFile) -> list[str]:
    """Return the names of the columns, one that is there twice once."""
    with _open(file) as parquet:
        return list(dict.fromkeys(parquet.schema_arrow.names))


def types(file: SourceFile) -> dict[str, pl.DataType]:
    """Return the types of the columns as they are read, `Unknown` for one that cannot be."""
    with _open(file) as parquet:
        schema = parquet.schema_arrow
        found: dict[str, pl.DataType] = {}
        for field in schema:
            wanted = polars_type(field.type)
            is_single = len(schema.get_all_field_indices(field.name)) == 1
            known = wanted is not None and is_single
            empty = pl.Series(pa.array([], wanted)).dtype if known else pl.Unknown()
            found[field.name] = empty
        return found


def refusal(file: SourceFile, column: str) -> str:
    """Return why a column, whose type `types` does not know, cannot be read."""
    with _open(file) as parquet:
        schema = parquet.schema_arrow
        indices = schema.get_all_field_indices(column)
        if len(indices) > 1:
            return f"the file has {len(indices)} columns of this name; rename them"
        found = schema.field(indices[0]).type
        return (
            f"{found} is no type that can be read; write the column as a number, a text or a time"
        )


def chunks(file: SourceFile, columns: Sequence[str] | None, rows: int) -> Iterator[pl.DataFrame]:
    """Yield the rows in order, at most `rows` a frame; `columns` chooses, None takes all that can be read.

    Raises DataError for text that is not UTF-8 and a decimal that has too many digits, by row.
    """
    with _open(file) as parquet:
        schema = parquet.schema_arrow
        known = {name: polars_type(schema.field(name).type) for name in _single(schema)}
        wanted = [name for name, each in known.items() if each is not None]
        if columns is not None:
            wanted = [name for name in columns if name in wanted]
        first_row = 1
        for batch in parquet.iter_batches(rows, columns=wanted, use_threads=False):
            arrays = {
                name: _readable(batch.column(name), known[name], file, name, first_row)
                for name in wanted
            }
            first_row += batch.num_rows
            yield _frame(arrays, batch.num_rows)


def is_plain(schema: Any) -> bool:
    """Return whether Polars takes all columns of a file as they are."""
    names = schema.names
    return len(set(names)) == len(names) and all(
        polars_type(each.type) == each.type for each in schema
    )


def is_int96(metadata: Any, column: str) -> bool:
    """Return whether a column, or an entry of its lists, is a time of 96 bits."""
    schema = metadata.schema
    leaves = (schema.column(index) for index in range(metadata.num_columns))
    return any(
        leaf.physical_type == "INT96" and leaf.path.partition(".")[0] == column for leaf in leaves
    )


@contextmanager
def _open(file: SourceFile) -> Generator[pq.ParquetFile]:
    local = isinstance(file.fs, LocalFileSystem)
    source = file.location if local else file.fs.open(file.location, "rb")
    # A buffer, else each column chunk of a row group is read whole. INT96 reaches further than 64 bits
    # of nanoseconds; what is read of a time are milliseconds.
    with pq.ParquetFile(
        source,
        buffer_size=1 << 20,
        pre_buffer=False,
        page_checksum_verification=True,
        coerce_int96_timestamp_unit="ms",
    ) as parquet:
        yield parquet


def _single(schema: Any) -> list[str]:
    return [name for name in schema.names if len(schema.get_all_field_indices(name)) == 1]


def _frame(arrays: Mapping[str, Any], num_rows: int) -> pl.DataFrame:
    if not arrays:
        return pl.DataFrame(height=num_rows)
    return pl.DataFrame([pl.Series(name, array) for name, array in arrays.items()])


def _readable(values: Any, wanted: ArrowType, file: SourceFile, column: str, first_row: int) -> Any:
    """Return values as Polars takes them; DataError for the first that it cannot."""
    try:
        # Polars takes the bytes of a text as they are.
        values.validate(full=True)
        return as_polars_takes(values, wanted)
    except pa.ArrowInvalid as error:
        for row in range(len(values)):
            # Taken out, so that no neighbour is looked at.
            reason = _fault(values.take([row]), wanted)
            if reason is not None:
                where = f"{file.path}, row {first_row + row}, column {column!r}"
                raise DataError(f"{where}: {reason}") from None
        raise DataError(f"{file.path}: column {column!r}: {error}") from error


def _fault(value: Any, wanted: ArrowType) -> str | None:
    """Return what is wrong with one value; None where nothing is."""
    if isinstance(value, pa.DictionaryArray):
        value = value.dictionary_decode()
    try:
        value.validate(full=True)
    except pa.ArrowInvalid:
        return "found text that is not UTF-8; write it in that encoding, or leave it empty."
    try:
        as_polars_takes(value, wanted)
    except pa.ArrowInvalid:
        found = value[0].as_py()
        return f"found {found}, expected at most {MAX_DIGITS} digits; write it as text or double."
    return None
