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

from headwater.feature_store.convert import Conversion, convert, element_type
from headwater.feature_store.errors import DataError
from headwater.feature_store.normalise import missing_column, named, shown_at, wrong_value
from headwater.feature_store.schema import Dtype
from headwater.pipelines.data import parquet
from headwater.pipelines.data.arrow_types import MAX_DIGITS
from headwater.pipelines.data.formats import read_chunks, read_names, read_types
from headwater.pipelines.data.source_file import SUFFIXES, SourceFile, format_of
from headwater.pipelines.data.text_types import TextProfile, parse
from headwater.pipelines.job import CsvFormat

HASHED_BYTES = 16 << 20
"""Files up to this size are known by their content, larger ones by size and time of change."""

DEFAULT_CSV = CsvFormat()

_NO_DTYPES: Mapping[str, Dtype | None] = {}


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows of one file: `first_row` counts from 1 in the file, `offset` from 0 in the table."""

    frame: pl.DataFrame
    file: int
    first_row: int
    offset: int


def find_files(patterns: str | Sequence[str], csv: CsvFormat = DEFAULT_CSV) -> list[SourceFile]:
    """Return the files that paths, globs, folders or fsspec URLs name; DataError where one names none.

    A folder stands for all data files in it, at any depth, without hidden ones and those that begin with an
    underscore. Links are followed; a file that a folder or glob reaches twice is taken once. `csv` says how
    those of CSV and TSV are written.
    """
    found: list[SourceFile] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        fs, location = _file_system(pattern)
        for path in _expand(fs, location, pattern):
            shown = _shown(fs, path, pattern)
            if printable(shown) != shown:
                raise DataError(f"{printable(shown)}: the name is not UTF-8; rename the file.")
            form = format_of(path)
            if form is None:
                raise DataError(f"{shown}: expected a name that ends in {', '.join(SUFFIXES)}.")
            found.append(SourceFile(shown, fs, path, form, csv))
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
        self._dtypes: dict[str, Dtype | None] = {}

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
                _unify(types, native, file, origin)
                continue
            for frame in read_chunks(file, columns):
                num_rows = None if num_rows is None else num_rows + frame.height
                if file.is_text:
                    profile.add(frame)
                else:
                    _unify(types, dict(frame.schema), file, origin)
        if num_rows == 0:
            raise DataError(f"{self.path}: no rows; expected at least one.")
        text = next((file for file in self.files if file.is_text), None)
        if text is not None:
            found = profile.types()
            found |= {name: pl.String() for name in columns if name not in found}
            _unify(types, found, text, origin)
            self._text_types.update(found)
        types = {name: _as_declared(each, dtypes.get(name)) for name, each in types.items()}
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
        forms = [self._conversion(frame, name, file) for name in columns]
        for name, form in zip(columns, forms, strict=True):
            if form.wrong is None:
                continue
            for row in frame.select(form.wrong).to_series().arg_true().head(1):
                found = shown_at(frame.get_column(name), row)
                where = f"{file.path}, row {first_row + row}, column {name!r}"
                dtype = self._dtypes.get(name)
                if dtype is not None:
                    raise DataError(f"{where}: {wrong_value(found, dtype)}")
                raise DataError(
                    f"{where}: found {found}, which {self._types[name]} cannot hold, the type of this column "
                    f"over all files. Set the `dtype` of the feature to the type that is meant, or write all "
                    f"values in one type."
                )
        return frame.select(
            form.value.alias(name) for name, form in zip(columns, forms, strict=True)
        )

    def _conversion(self, frame: pl.DataFrame, name: str, file: SourceFile) -> Conversion:
        wanted = self._types[name]
        own = self._text_types[name] if file.is_text else None
        if name not in frame.columns or own == pl.Null:
            return Conversion(pl.repeat(None, pl.len(), dtype=wanted))
        value, found = named(name), frame.schema[name]
        if own is not None and wanted != pl.String and (own != pl.Float64 or wanted == own):
            # By its own type first: that costs less than asking each text what it may be.
            value, found = parse(value, own), own
        converted = convert(value, found, wanted, rounds=self._dtypes.get(name) == "double")
        return _as_text(value, found) if converted is None else converted

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
        found = _walk(location) if isinstance(fs, LocalFileSystem) else fs.find(location)
        inside = [path for path in found if format_of(path)]
        inside = [path for path in inside if not _is_hidden(path.removeprefix(location))]
        if not inside:
            raise DataError(f"{pattern}: the folder holds no file of {', '.join(SUFFIXES)}.")
        return _once(fs, inside)
    if not glob.has_magic(location):
        target = Path(location)
        if isinstance(fs, LocalFileSystem) and target.is_symlink():
            raise DataError(f"{pattern}: a link to {target.readlink()}, which is not there.")
        raise DataError(f"{pattern}: no such file.")
    matches = [str(path) for path in fs.glob(location) if not fs.isdir(path)]
    if not matches:
        raise DataError(f"{pattern}: no file matches this pattern.")
    return _once(fs, matches)


def _walk(folder: str) -> Iterator[str]:
    """Yield all files below a local folder, also through links, but not round in circles."""
    folder = folder.rstrip("/")
    above: dict[str, tuple[str, ...]] = {folder: (os.path.realpath(folder),)}
    for path, folders, files in os.walk(folder, followlinks=True):
        for name in [*folders]:
            inside = f"{path}/{name}"
            real = os.path.realpath(inside)
            if real in above[path]:
                folders.remove(name)
            above[inside] = (*above[path], real)
        yield from (f"{path}/{name}" for name in files)


def _once(fs: AbstractFileSystem, paths: Sequence[str]) -> list[str]:
    """Return paths in order of their names, of several to one file the first that is no link.

    DataError for a link to nothing.
    """
    if not isinstance(fs, LocalFileSystem):
        return sorted(paths)
    known: dict[str, str] = {}
    for path in sorted(paths, key=lambda path: (os.path.realpath(path) != path, path)):
        real = os.path.realpath(path)
        if not Path(real).is_file():
            raise DataError(f"{printable(path)}: a link to {printable(real)}, which is not there.")
        known.setdefault(real, path)
    return sorted(known.values())


def _shown(fs: AbstractFileSystem, path: str, pattern: str) -> str:
    """Return a path as its pattern was written: relative, absolute or as a URL."""
    if "://" in pattern:
        return fs.unstrip_protocol(path)
    return path if Path(pattern).is_absolute() else os.path.relpath(path)


def printable(path: str) -> str:
    """Return a path whose bytes that are no UTF-8 are written as escapes."""
    return path.encode(errors="backslashreplace").decode()


def _is_hidden(path: str) -> bool:
    return any(part.startswith((".", "_")) for part in path.split("/"))


def _widen(dtype: pl.DataType) -> pl.DataType:
    """Return the one type that stands for all of its kind, so that files written by several hands agree."""
    if isinstance(dtype, pl.List | pl.Array):
        return pl.List(_widen(element_type(dtype)))
    if isinstance(dtype, pl.Int128 | pl.UInt128):
        return _WIDE_INTEGER
    if dtype.is_integer() and not isinstance(dtype, pl.UInt64):
        return pl.Int64()
    if dtype.is_float():
        return pl.Float64()
    if isinstance(dtype, pl.Decimal):
        return pl.Decimal(MAX_DIGITS, dtype.scale)
    if isinstance(dtype, pl.Categorical | pl.Enum):
        return pl.String()
    return pl.Datetime("us", dtype.time_zone) if isinstance(dtype, pl.Datetime) else dtype


def _as_declared(dtype: pl.DataType, declared: Dtype | None) -> pl.DataType:
    """Return the type to read numbers in where a feature declares one: each becomes it exactly."""
    if isinstance(dtype, pl.List):
        return pl.List(_as_declared(element_type(dtype), declared))
    is_mixed = isinstance(dtype, pl.Float64 | pl.Decimal | pl.UInt64)
    if declared == "int64" and is_mixed:
        return pl.Int64()
    return pl.Float64() if declared == "double" and is_mixed else dtype


def _as_text(value: pl.Expr, found: pl.DataType) -> Conversion:
    """Return numbers and bools as text, as Polars writes them beside text within one chunk of NDJSON."""
    whole = convert(value, found, pl.Int64())
    text = value.cast(pl.String)
    return Conversion(text if whole is None else pl.coalesce(whole.value.cast(pl.String), text))


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
    if isinstance(a, pl.Datetime) and isinstance(b, pl.Datetime):
        # A time without a zone is UTC.
        return pl.Datetime("us", "UTC")
    numbers = [each for each in (a, b) if not isinstance(each, pl.Boolean)]
    if not all(isinstance(each, _NUMBERS) for each in numbers):
        return None
    if any(isinstance(each, pl.Float64) for each in numbers):
        return pl.Float64()
    if all(isinstance(each, pl.Int64) for each in numbers):
        return pl.Int64()
    if len(numbers) == 1:
        return numbers[0]
    scales = (each.scale for each in numbers if isinstance(each, pl.Decimal))
    return pl.Decimal(MAX_DIGITS, max(scales, default=0))


_NUMBERS = (pl.Int64, pl.UInt64, pl.Float64, pl.Decimal)
_WIDE_INTEGER = pl.Decimal(MAX_DIGITS, 0)
"""The type of integers that 64 bits may not hold."""
