"""Raw files read as one table, in bounded memory.

A table is read in chunks, in the order of its files. It can be read any number of times; every pass gives the
same rows with the same types.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import polars as pl

from headwater.feature_store.convert import Conversion, convert
from headwater.feature_store.errors import DataError
from headwater.feature_store.normalise import missing_column, named, wrong_value
from headwater.feature_store.readings import Reading, Refusal, read
from headwater.feature_store.schema import Dtype
from headwater.pipelines.console import note
from headwater.pipelines.data import parquet
from headwater.pipelines.data.column_types import as_declared, unify
from headwater.pipelines.data.formats import read_chunks, read_names, read_types
from headwater.pipelines.data.source_file import SourceFile
from headwater.pipelines.data.text_types import TextProfile, parse

_NO_DTYPES: Mapping[str, Dtype | None] = {}


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows of one file: `first_row` counts from 1 in the file, `offset` from 0 in the table."""

    frame: pl.DataFrame
    file: int
    first_row: int
    offset: int


class Table:
    """Files read as one table."""

    def __init__(self, files: Sequence[SourceFile]) -> None:
        self.files = tuple(files)
        self._names: dict[int, list[str]] = {}
        self._types: dict[str, pl.DataType] = {}
        self._text_types: dict[str, pl.DataType] = {}
        self._dtypes: dict[str, Dtype | None] = {}

    @property
    def path(self) -> str:
        """The table's name in errors: its file, or its first file and how many there are."""
        more = len(self.files) - 1
        return self.files[0].path + (f" (and {more} more files)" if more else "")

    def names(self) -> list[str]:
        """Return the columns of the table, in the order of their first appearance."""
        order: dict[str, None] = {}
        for index in range(len(self.files)):
            order.update(dict.fromkeys(self._file_names(index)))
        return list(order)

    def require(self, columns: Mapping[str, str]) -> None:
        """Raise DataError for the first column that a file lacks; the mapping tells what needs it."""
        for index, file in enumerate(self.files):
            names = self._file_names(index)
            for name, reason in columns.items():
                # A key may be absent from some JSON objects, and so from all objects of one file.
                known = self.names() if file.format == "ndjson" else names
                if name not in known:
                    raise DataError(f"{file.path}: {missing_column(name, known)} {reason}")

    def readable(self, columns: Sequence[str]) -> list[str]:
        """Return those of `columns` that can be read from every file, and tell which cannot."""
        refused: dict[str, str] = {}
        for file in self.files:
            if file.format == "parquet":
                types = read_types(file)
                for name in columns:
                    if isinstance(types.get(name), pl.Unknown):
                        refused[name] = (
                            f"{file.path}: column {name!r}: {parquet.refusal(file, name)}"
                        )
        for reason in refused.values():
            note(f"left out: {reason}")
        return [name for name in columns if name not in refused]

    def infer(
        self,
        columns: Sequence[str],
        *,
        dtypes: Mapping[str, Dtype | None] = _NO_DTYPES,
        exact: bool = False,
    ) -> dict[str, pl.DataType]:
        """Settle and return the types of `columns`: one pass over CSV and NDJSON, metadata of Parquet.

        Integers become Int64, floats Float64, categories String. `dtypes` are those that features declare:
        numbers of several types are then read as that one, each exactly, and text of a CSV stays text for
        "string". `exact` leaves a column of Parquet in the type that all files have it in, where they agree.
        Raises DataError where two files disagree, for a type that cannot be read, and where there is no row.
        """
        types: dict[str, pl.DataType] = {name: pl.Null() for name in columns}
        origin: dict[str, str] = {}
        profile = TextProfile(name for name in columns if dtypes.get(name) != "string")
        own: dict[str, list[pl.DataType]] = {name: [] for name in columns}
        num_rows: int | None = 0
        for file in self.files:
            if file.format == "parquet":
                num_rows = None
                native = self._parquet_types(file, columns)
                for name in columns:
                    own[name].append(native[name])
                unify(types, native, file, origin)
                continue
            for frame in read_chunks(file, columns):
                num_rows = None if num_rows is None else num_rows + frame.height
                if file.is_text:
                    profile.add(frame)
                else:
                    unify(types, dict(frame.schema), file, origin)
        if num_rows == 0:
            raise DataError(f"{self.path}: no rows; expected at least one.")
        text = next((file for file in self.files if file.is_text), None)
        if text is not None:
            found = profile.types()
            found |= {name: pl.String() for name in columns if name not in found}
            unify(types, found, text, origin)
            self._text_types.update(found)
        types = {name: as_declared(each, dtypes.get(name)) for name, each in types.items()}
        if exact and all(file.format == "parquet" for file in self.files):
            types |= {name: found[0] for name, found in own.items() if len(set(found)) == 1}
        self._dtypes |= {name: dtype for name, dtype in dtypes.items() if name in types}
        self._types.update(types)
        return types

    def chunks(self, columns: Sequence[str]) -> Iterator[Chunk]:
        """Yield all rows with exactly `columns`, which `infer` has settled, in those types.

        Raises DataError by row for a number that its column's type cannot hold.
        """
        offset = 0
        for index, file in enumerate(self.files):
            first_row = 1
            for frame in read_chunks(file, columns):
                if frame.height == 0:
                    continue
                typed = self._typed(frame, columns, file, first_row)
                yield Chunk(typed, index, first_row, offset)
                first_row += frame.height
                offset += frame.height

    def read(self, columns: Sequence[str]) -> pl.DataFrame:
        """Return all rows in memory: for side tables."""
        frames = [chunk.frame for chunk in self.chunks(columns)]
        empty = pl.DataFrame(schema={name: self._types[name] for name in columns})
        return pl.concat([empty, *frames])

    def _typed(
        self, frame: pl.DataFrame, columns: Sequence[str], file: SourceFile, first_row: int
    ) -> pl.DataFrame:
        def fail(row: int, column: str, message: str) -> NoReturn:
            raise DataError(f"{file.path}, row {first_row + row}, column {column!r}: {message}")

        return read(frame, [self._reading(frame, name, file) for name in columns], fail)

    def _reading(self, frame: pl.DataFrame, name: str, file: SourceFile) -> Reading:
        form = self._conversion(frame, name, file)
        if form.wrong is None:
            return Reading(name, name, form.value)

        def message(found: str) -> str:
            if (dtype := self._dtypes.get(name)) is not None:
                return wrong_value(found, dtype)
            return (
                f"found {found}, which {self._types[name]} cannot hold, the type of this column over all "
                f"files. Set the `dtype` of the feature to the type that is meant, or write all values in "
                f"one type."
            )

        return Reading(name, name, form.value, (Refusal(form.wrong, message),))

    def _conversion(self, frame: pl.DataFrame, name: str, file: SourceFile) -> Conversion:
        wanted = self._types[name]
        own = self._text_types[name] if file.is_text else None
        if name not in frame.columns or own == pl.Null:
            return Conversion(pl.repeat(None, pl.len(), dtype=wanted))
        value, found = named(name), frame.schema[name]
        if own is not None and wanted != pl.String and (own != pl.Float64 or wanted == own):
            # By its own type first: that costs less than asking each text what it may be.
            value, found = parse(value, own), own
        converted = self.conversion(name, value, found)
        return _as_text(value, found) if converted is None else converted

    def conversion(self, name: str, value: pl.Expr, found: pl.DataType) -> Conversion | None:
        """Return a column of a file, which has it as type `found`, in the type of the table."""
        return convert(value, found, self._types[name], rounds=self._dtypes.get(name) == "double")

    def _parquet_types(self, file: SourceFile, columns: Sequence[str]) -> dict[str, pl.DataType]:
        native = read_types(file)
        for name in columns:
            if isinstance(native[name], pl.Unknown):
                raise DataError(f"{file.path}: column {name!r}: {parquet.refusal(file, name)}.")
        return {name: native[name] for name in columns}

    def _file_names(self, index: int) -> list[str]:
        if index not in self._names:
            self._names[index] = read_names(self.files[index])
        return self._names[index]


def _as_text(value: pl.Expr, found: pl.DataType) -> Conversion:
    """Return numbers and bools as text, as Polars writes them beside text within one chunk of NDJSON."""
    whole = convert(value, found, pl.Int64())
    text = value.cast(pl.String)
    return Conversion(text if whole is None else pl.coalesce(whole.value.cast(pl.String), text))
