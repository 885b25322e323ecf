"""One CSV or TSV file: its header, and its rows in chunks of text. Strict: nothing is filled up or cut.

A line with too few or too many fields, text after a closing quote, and a quote that never closes are refused
by their row, counted from 1 without the header.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv

from headwater.feature_store.errors import DataError
from headwater.pipelines.data.quotes import QuoteCheck
from headwater.pipelines.data.source_file import SourceFile

BLOCK_BYTES = 4 << 20

_OTHER_DELIMITERS = ";\t|,"
_RETURN = b"\r"


def names(file: SourceFile) -> list[str]:
    """Return the names of the columns; DataError where one is there twice, or the delimiter is another."""
    found = _header(file)
    twice = sorted({name for name in found if found.count(name) > 1})
    if twice:
        raise DataError(f"{file.path}: the header names {', '.join(map(repr, twice))} twice.")
    if len(found) == 1 and (hint := _other_delimiter(file, found[0])):
        raise DataError(hint)
    return found


def chunks(file: SourceFile, columns: Sequence[str] | None, rows: int) -> Iterator[pl.DataFrame]:
    """Yield the rows in order as String, at most `rows` a frame; an empty field is null."""
    for batch in _open(file, _header(file) if columns is None else columns):
        yield from pl.DataFrame(pl.from_arrow(batch)).iter_slices(rows)


def explain(file: SourceFile, error: Exception) -> DataError:
    """Return what Arrow found wrong, with the file and where known the row."""
    text = str(error).strip()
    if "Empty CSV file" in text:
        return DataError(f"{file.path}: the file is empty; expected a header and rows.")
    found = re.search(r"Row #(\d+)", text)
    # Arrow counts the header as a row.
    row = None if found is None else int(found.group(1)) - (file.csv.columns is None)
    where = file.path if row is None else f"{file.path}, row {row}"
    ragged = re.search(r"Expected (\d+) columns, got (\d+)", text)
    if ragged is not None:
        expected, seen = map(int, ragged.groups())
        if expected == 1 and (hint := _other_delimiter(file, _first_line(file))):
            return DataError(hint)
        named = "header names" if file.csv.columns is None else "data.csv.columns has"
        return DataError(
            f"{where}: found {seen} field{'s' if seen != 1 else ''} between {file.delimiter!r}, the {named} "
            f"{expected}. Quote fields that contain it, or set another `delimiter` or `quote` in csv."
        )
    if "invalid UTF8" in text:
        return DataError(
            f"{where}: found text that is not {file.csv.encoding}. Set `encoding` in csv to what the file is "
            f'written in, as csv = {{ encoding = "latin-1" }}.'
        )
    return DataError(f"{where}: cannot be read: {text}")


def _other_delimiter(file: SourceFile, header: str) -> str | None:
    """Return what to say of a header of one name, in which another delimiter stands; None for a good one."""
    other = next((each for each in _OTHER_DELIMITERS if each in header), None)
    if other is None or file.csv.delimiter is not None or file.csv.columns is not None:
        return None
    return (
        f"{file.path}: the header is one name, {header[:80]!r}, as no {file.delimiter!r} is in it. Where "
        f"{other!r} divides the fields, set csv = {{ delimiter = {_toml(other)} }} in [data] of the job, or "
        f"give --csv 'delimiter={_toml(other)}' to init or score."
    )


def _first_line(file: SourceFile) -> str:
    lines = _Blocks(file).read(BLOCK_BYTES).splitlines()
    return lines[0].decode(errors="replace") if lines else ""


def _header(file: SourceFile) -> list[str]:
    if file.csv.columns is not None:
        return list(file.csv.columns)
    try:
        return list(_open(file, None).schema.names)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file.path}: the header is not UTF-8: {error.reason}. Set `encoding` in csv to what the file "
            f'is written in, as csv = {{ encoding = "latin-1" }}.'
        ) from None


def _open(file: SourceFile, columns: Sequence[str] | None) -> Any:
    csv = file.csv
    read = pa_csv.ReadOptions(
        block_size=BLOCK_BYTES, use_threads=False, column_names=csv.columns or None
    )
    parse = pa_csv.ParseOptions(
        delimiter=file.delimiter,
        quote_char=csv.quote or False,
        newlines_in_values=bool(csv.quote),
    )
    convert = pa_csv.ConvertOptions(
        include_columns=columns,
        # Declared as text before the reader guesses types.
        column_types=dict.fromkeys(columns or (), pa.string()),
        null_values=["", *csv.nulls],
        strings_can_be_null=True,
    )
    source = pa.PythonFile(_Blocks(file), "r")
    return pa_csv.open_csv(source, read_options=read, parse_options=parse, convert_options=convert)


class _Blocks:
    """The bytes of a file as UTF-8, checked, in blocks that do not end within a line end or at a quote.

    Arrow takes a line end that two blocks share for one of its own, also inside quotes.
    """

    closed = False

    def __init__(self, file: SourceFile) -> None:
        self._file = file
        self._stream = file.open()
        self._decoder = file.csv.decoder()
        self._held = b""
        self._is_first = True
        quote = file.csv.quote
        self._check = QuoteCheck(file) if quote else None
        self._ends = _RETURN + quote.encode()

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes, and none only at the end."""
        block, self._held = self._held, b""
        is_last = False
        while len(block) < size and not is_last:
            more = self._stream.read(size - len(block))
            is_last = not more
            block += self._decoded(more)
        whole = block if is_last and len(block) <= size else block[:size].rstrip(self._ends)
        if block and not whole:
            raise DataError(f"{self._file.path}: {len(block)} bytes of nothing but quotes.")
        self._held = block[len(whole) :]
        if self._check is not None:
            self._check.add(whole, is_last=is_last and not self._held)
        return whole

    def _decoded(self, data: bytes) -> bytes:
        if self._is_first and data:
            self._is_first = False
            data = self._begin(data)
        if self._decoder is None:
            return data
        try:
            return self._decoder.decode(data, final=not data).encode()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self._file.path}: not {self._file.csv.encoding}, as csv.encoding says: {error.reason} at "
                f"byte {self._stream.tell() - len(data) + error.start}."
            ) from None

    def _begin(self, data: bytes) -> bytes:
        """Return the first bytes without a byte-order mark; DataError for one of another encoding."""
        if self._decoder is None:
            if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data[:200]:
                raise DataError(
                    f"{self._file.path}: not UTF-8, but as it seems UTF-16: set "
                    f'csv = {{ encoding = "utf-16" }}.'
                )
            return data.removeprefix(b"\xef\xbb\xbf")
        return data

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def _toml(delimiter: str) -> str:
    return '"\\t"' if delimiter == "\t" else f'"{delimiter}"'
