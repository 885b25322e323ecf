"""One NDJSON file: an object a line, read in chunks with the types of each chunk.

Polars reads a chunk at once, but makes one number of integers and fractions in a column, which merges
integers beyond 2^53. A chunk where that may be is read by its text, number for number.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

import msgspec
import polars as pl

from headwater.feature_store.convert import EXACT_FLOAT, element_type
from headwater.feature_store.errors import DataError
from headwater.feature_store.normalise import named
from headwater.pipelines.data.source_file import SourceFile

BLOCK_BYTES = 8 << 20

_BOM = b"\xef\xbb\xbf"
_LONG_DIGITS = 16
_LONG_FRACTION = re.compile(rb"[:\[,]\s*-?[0-9]{16,}[.eE]")
"""A number that Polars writes as another text where a column holds text too."""
_MOST_DIGITS = 38
"""Digits of a decimal in Polars."""
_by_text = msgspec.json.Decoder(float_hook=Decimal)


def chunks(file: SourceFile, columns: Sequence[str] | None, rows: int) -> Iterator[pl.DataFrame]:
    """Yield the rows in order, at most `rows` a frame, without the columns that a chunk lacks."""
    for frame in _blocks(file):
        yield from _chosen(frame, columns).iter_slices(rows)


def _blocks(file: SourceFile) -> Iterator[pl.DataFrame]:
    row = 1
    rest = b""
    is_first = True
    with file.open() as stream:
        while block := stream.read(BLOCK_BYTES):
            if is_first:
                block = block.removeprefix(_BOM)
                is_first = False
            whole, newline, rest = (rest + block).rpartition(b"\n")
            if newline:
                frame = _parse(file, whole, row)
                row += frame.height
                yield frame
        if rest.strip():
            yield _parse(file, rest, row)


def _chosen(frame: pl.DataFrame, columns: Sequence[str] | None) -> pl.DataFrame:
    if not columns:
        return frame
    known = [named(name) for name in columns if name in frame.columns]
    # A chunk without any wanted column still has rows.
    return (
        frame.select(known) if known else frame.select(pl.repeat(None, pl.len()).alias(columns[0]))
    )


def _parse(file: SourceFile, lines: bytes, first_row: int) -> pl.DataFrame:
    if not lines.strip():
        return pl.DataFrame()
    try:
        # As long as the chunk, so that a rare key or a late float is seen.
        frame = pl.read_ndjson(io.BytesIO(lines), infer_schema_length=None)
    except pl.exceptions.PolarsError as error:
        raise DataError(_explain(file, lines, first_row, str(error))) from error
    merged = [column.name for column in frame if _may_be_merged(column.alias("values"), lines)]
    return _exact(file, frame, merged, lines, first_row) if merged else frame


def _may_be_merged(column: pl.Series, lines: bytes) -> bool:
    """Return whether two numbers of the file may have become one in a column."""
    if isinstance(column.dtype, pl.List):
        column = column.explode(keep_nulls=False, empty_as_null=False)
    if column.dtype == pl.Float64:
        return bool((column.abs() >= EXACT_FLOAT).any())
    return (
        column.dtype == pl.String
        and bool((column.str.len_bytes() >= _LONG_DIGITS).any())
        and bool(column.str.contains(rf"^-?[0-9]{{{_LONG_DIGITS},}}$").any())
        and _LONG_FRACTION.search(lines) is not None
    )


def _exact(
    file: SourceFile, frame: pl.DataFrame, names: Sequence[str], lines: bytes, first_row: int
) -> pl.DataFrame:
    """Return the chunk with these columns read by the text of their numbers."""
    records = [_by_text.decode(line) for line in lines.split(b"\n") if line.strip()]
    exact: list[pl.Series] = []
    for name in names:
        values = [record.get(name) for record in records]
        series = _series(name, values, frame.schema[name])
        if series is None:
            row = next(row for row, value in enumerate(values) if not _is_float(value))
            raise DataError(
                f"{file.path}, row {first_row + row}, column {name!r}: found {values[row]}, an integer that "
                f"no float64 equals, among numbers too large for decimals. Write the column as text."
            )
        exact.append(series)
    return frame.with_columns(exact)


def _series(name: str, values: Sequence[Any], dtype: pl.DataType) -> pl.Series | None:
    """Return JSON values with their numbers exact; None where no type of Polars can hold them all."""
    inner = element_type(dtype) if isinstance(dtype, pl.List) else dtype
    if isinstance(inner, pl.String):
        return pl.Series(name, [_each(value, _text) for value in values], dtype)
    decimals = _decimal_type([each for value in values for each in _entries(value)])
    if decimals is not None:
        wide = pl.List(decimals) if isinstance(dtype, pl.List) else decimals
        return pl.Series(name, [_each(value, Decimal) for value in values], wide)
    if all(_is_float(value) for value in values):
        return pl.Series(name, [_each(value, float) for value in values], dtype)
    return None


def _decimal_type(numbers: Sequence[int | Decimal]) -> pl.Decimal | None:
    """Return a type that holds all numbers exactly, None where none does."""
    scale = whole = 0
    for number in numbers:
        _, digits, exponent = Decimal(number).normalize().as_tuple()
        assert isinstance(exponent, int), "JSON has no infinity"
        scale = max(scale, -exponent)
        whole = max(whole, len(digits) + exponent)
    return pl.Decimal(_MOST_DIGITS, scale) if scale + whole <= _MOST_DIGITS else None


def _entries(value: Any) -> list[int | Decimal]:
    entries = value if isinstance(value, list) else [value]
    return [entry for entry in entries if entry is not None]


def _is_float(value: Any) -> bool:
    """Return whether all numbers in a value are fractions, or integers that a float64 equals."""
    return all(
        isinstance(number, Decimal) or abs(number) < EXACT_FLOAT or int(float(number)) == number
        for number in _entries(value)
    )


def _each(value: Any, work: Any) -> Any:
    """Return what `work` makes of a value, or of each entry of a list; null stays."""
    if isinstance(value, list):
        return [None if entry is None else work(entry) for entry in value]
    return None if value is None else work(value)


def _text(value: Any) -> str:
    """Return a value as text, as Polars writes it: a whole number without a fraction."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Decimal):
        return str(int(value)) if value == value.to_integral_value() else repr(float(value))
    return value if isinstance(value, str) else str(value)


def _explain(file: SourceFile, lines: bytes, first_row: int, error: str) -> str:
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
            hint = " It looks like UTF-16: write it in UTF-8." if b"\0" in line else ""
            return f"{where}: not JSON: {wrong}. Expected one object a line.{hint}"
        if not isinstance(record, dict):
            return f"{where}: expected a JSON object, found {line[:80].decode(errors='replace')}."
        for name, value in record.items():
            if isinstance(value, int) and len(str(abs(value))) > _MOST_DIGITS:
                return (
                    f"{where}: column {name!r}: found {value}, an integer of more than {_MOST_DIGITS} "
                    f"digits. Write the column as text."
                )
            kind = float if type(value) is int else type(value)
            if value is not None and kinds.setdefault(name, kind) is not kind:
                return (
                    f"{where}: column {name!r}: found {value!r} ({type(value).__name__}), rows before it "
                    f"hold {kinds[name].__name__}. One column has one type."
                )
    return f"{file.path}, rows {first_row} to {row}: cannot be read: {error}"
