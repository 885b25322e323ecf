"""Raw data as the job names it: files found, put in order, and read as one table in bounded memory.

A table is read in chunks, in the order in which the job lists its files and, in a glob or folder, in the
order of their names. It can be read any number of times; every pass gives the same rows with the same types.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import polars as pl
import pyarrow.fs
from fsspec import AbstractFileSystem
from fsspec.implementations.arrow import ArrowFSWrapper
from fsspec.implementations.local import LocalFileSystem

from headwater.feature_store.errors import DataError
from headwater.feature_store.normalise import data_errors, element_type, missing_column
from headwater.pipelines.data.formats import (
    SUFFIXES,
    SourceFile,
    format_of,
    read_chunks,
    read_names,
    read_types,
)
from headwater.pipelines.data.text_types import TextProfile, parse

HASHED_BYTES = 16 << 20
"""Files up to this size are known by their content, larger ones by size and time of change."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows of one file: `first_row` counts from 1 in the file, `offset` from 0 in the table."""

    frame: pl.DataFrame
    file: int
    first_row: int
    offset: int


def find_files(patterns: str | Sequence[str]) -> list[SourceFile]:
    """Return the files that paths, globs, folders or fsspec URLs name; DataError where one names none.

    A folder stands for all data files in it, at any depth, without hidden ones and those that begin with an
    underscore.
    """
    found: list[SourceFile] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        fs, location = _file_system(pattern)
        for path in _expand(fs, location, pattern):
            shown = _shown(fs, path, pattern)
            form = format_of(path)
            if form is None:
                raise DataError(f"{shown}: expected a name that ends in {', '.join(SUFFIXES)}.")
            found.append(SourceFile(shown, fs, path, form))
    if not found:
        raise DataError("no data files are named: expected at least one path.")
    return found


def fingerprint(file: SourceFile) -> dict[str, Any]:
    """Return what tells this content from another: path, size, SHA-256 or (large files) time of change."""
    info: dict[str, Any] = file.fs.info(file.location)
    known: dict[str, Any] = {"path": file.path, "size": info["size"]}
    if info["size"] is not None and info["size"] <= HASHED_BYTES:
        content: Any = file.fs.cat_file(file.location)
        known["sha256"] = hashlib.sha256(content).hexdigest()
    elif isinstance(file.fs, LocalFileSystem):
        known["mtime_ns"] = Path(file.location).stat().st_mtime_ns
    else:
        known["changed"] = file.fs.ukey(file.location)
    return known


class Table:
    """Files read as one table."""

    def __init__(self, files: Sequence[SourceFile]) -> None:
        self.files = tuple(files)
        self._names: dict[int, list[str]] = {}
        self._types: dict[str, pl.DataType] = {}
        self._text_types: dict[str, pl.DataType] = {}

    @property
    def path(self) -> str:
        """What errors call the table: its file, or its first file and how many there are."""
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

    def infer(
        self, columns: Sequence[str], *, as_text: Sequence[str] = (), exact: bool = False
    ) -> dict[str, pl.DataType]:
        """Settle and return the types of `columns`: one pass over CSV and NDJSON, metadata of Parquet.

        Integers become Int64, floats Float64, categories String. `as_text` names CSV columns to be left as
        they are; `exact` leaves a column of Parquet in the type that all files have it in, where they agree.
        Raises DataError where two files disagree, and where there is no row at all.
        """
        types: dict[str, pl.DataType] = {name: pl.Null() for name in columns}
        origin: dict[str, str] = {}
        profile = TextProfile(name for name in columns if name not in as_text)
        untyped = [file for file in self.files if file.format != "parquet"]
        num_rows = 0
        own: dict[str, list[pl.DataType]] = {name: [] for name in columns}
        for file in self.files:
            if file.format == "parquet":
                native = read_types(file)
                for name in columns:
                    own[name].append(native[name])
                _unify(types, {name: native[name] for name in columns}, file, origin)
                continue
            for frame in read_chunks(file, columns):
                num_rows += frame.height
                if file.is_text:
                    profile.add(frame)
                else:
                    _unify(types, dict(frame.schema), file, origin)
        if untyped and len(untyped) == len(self.files) and num_rows == 0:
            raise DataError(f"{self.path}: no rows; expected at least one.")
        text = next((file for file in untyped if file.is_text), None)
        if text is not None:
            found = profile.types() | {name: pl.String() for name in columns if name in as_text}
            _unify(types, found, text, origin)
            self._text_types.update(found)
        if exact and not untyped:
            types |= {name: found[0] for name, found in own.items() if len(set(found)) == 1}
        self._types.update(types)
        return types

    def chunks(self, columns: Sequence[str]) -> Iterator[Chunk]:
        """Yield all rows with exactly `columns`, which `infer` has settled, in those types."""
        offset = 0
        for index, file in enumerate(self.files):
            first_row = 1
            for frame in read_chunks(file, columns):
                if frame.height == 0:
                    continue
                with data_errors(file.path):
                    typed = frame.select(self._typed(frame, name, file) for name in columns)
                yield Chunk(typed, index, first_row, offset)
                first_row += frame.height
                offset += frame.height

    def read(self, columns: Sequence[str]) -> pl.DataFrame:
        """Return all rows in memory: for side tables."""
        frames = [chunk.frame for chunk in self.chunks(columns)]
        empty = pl.DataFrame(schema={name: self._types[name] for name in columns})
        return pl.concat([empty, *frames])

    def _typed(self, frame: pl.DataFrame, name: str, file: SourceFile) -> pl.Expr:
        wanted = self._types[name]
        if name not in frame.columns:
            return pl.lit(None, dtype=wanted).alias(name)
        if file.is_text and wanted != pl.String:
            own = self._text_types[name]
            # As its own type first: 'true' is no integer, but true is 1.
            return parse(pl.col(name), wanted if own == pl.Null else own).cast(wanted)
        return pl.col(name).cast(wanted)

    def _file_names(self, index: int) -> list[str]:
        if index not in self._names:
            file = self.files[index]
            if file.format == "ndjson":
                order: dict[str, None] = {}
                for frame in read_chunks(file):
                    order.update(dict.fromkeys(frame.columns))
                self._names[index] = list(order)
            else:
                self._names[index] = read_names(file)
        return self._names[index]


def _file_system(pattern: str) -> tuple[AbstractFileSystem, str]:
    try:
        return fsspec.core.url_to_fs(pattern)
    except ImportError as missing:
        # Arrow brings its own clients of S3, GCS, Azure and HDFS.
        try:
            fs, location = pyarrow.fs.FileSystem.from_uri(pattern)
        except (OSError, ValueError):
            raise DataError(f"{pattern}: {missing}") from None
        return ArrowFSWrapper(fs), location
    except ValueError as error:
        raise DataError(f"{pattern}: {error}. Expected a path or an fsspec URL.") from None


def _expand(fs: AbstractFileSystem, location: str, pattern: str) -> list[str]:
    """Return the files at a location, sorted; DataError where there is none."""
    if fs.isfile(location):
        return [location]
    if fs.isdir(location):
        inside = sorted(
            path
            for path in fs.find(location)
            if format_of(path) and not _is_hidden(path.removeprefix(location))
        )
        if not inside:
            raise DataError(f"{pattern}: the folder holds no file of {', '.join(SUFFIXES)}.")
        return inside
    if not glob.has_magic(location):
        raise DataError(f"{pattern}: no such file.")
    matches = sorted(str(path) for path in fs.glob(location) if fs.isfile(path))
    if not matches:
        raise DataError(f"{pattern}: no file matches this pattern.")
    return matches


def _shown(fs: AbstractFileSystem, path: str, pattern: str) -> str:
    """Return a path as its pattern was written: relative, absolute or as a URL."""
    if "://" in pattern:
        return fs.unstrip_protocol(path)
    return path if Path(pattern).is_absolute() else os.path.relpath(path)


def _is_hidden(path: str) -> bool:
    return any(part.startswith((".", "_")) for part in path.split("/"))


def _widen(dtype: pl.DataType) -> pl.DataType:
    """Return the one type that stands for all of its kind, so that files written by several hands agree."""
    if isinstance(dtype, pl.List | pl.Array):
        return pl.List(_widen(element_type(dtype)))
    if dtype.is_integer() and not isinstance(dtype, pl.UInt64):
        return pl.Int64()
    if dtype.is_float() or dtype.is_decimal():
        return pl.Float64()
    if isinstance(dtype, pl.Categorical | pl.Enum):
        return pl.String()
    return pl.Datetime("us", dtype.time_zone) if isinstance(dtype, pl.Datetime) else dtype


def _unify(
    types: dict[str, pl.DataType],
    found: Mapping[str, pl.DataType],
    file: SourceFile,
    origin: dict[str, str],
) -> None:
    """Widen `types` to hold `found`, the types of (a part of) `file`; `origin` tells which file set them."""
    for name in types.keys() & found.keys():
        wide = _widen(found[name])
        both = _common(types[name], wide)
        if (
            both is None
            and file.format == "ndjson"
            and not (types[name].is_nested() or wide.is_nested())
        ):
            # What Polars makes of mixed values inside one chunk.
            both = pl.String()
        if both is None:
            raise DataError(
                f"{file.path}: column {name!r} is {wide}, but {types[name]} in {origin[name]}; "
                f"expected one type in all files."
            )
        if both != types[name] or name not in origin:
            origin[name] = file.path
        types[name] = both


def _common(a: pl.DataType, b: pl.DataType) -> pl.DataType | None:
    """Return the type that holds the values of both, None where there is none."""
    if a == b or isinstance(b, pl.Null):
        return a
    if isinstance(a, pl.Null):
        return b
    if isinstance(a, pl.List) and isinstance(b, pl.List):
        inner = _common(element_type(a), element_type(b))
        return None if inner is None else pl.List(inner)
    kinds = {type(a), type(b)}
    if kinds <= {pl.Int64, pl.UInt64, pl.Boolean}:
        return pl.Int64()
    if kinds <= {pl.Int64, pl.UInt64, pl.Float64, pl.Boolean}:
        return pl.Float64()
    return None
