"""Raw files as the job names them: paths, globs, folders and URLs, found and put in order."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.fs
from fsspec import AbstractFileSystem
from fsspec.implementations.arrow import ArrowFSWrapper
from fsspec.implementations.local import LocalFileSystem

from headwater.feature_store.errors import DataError
from headwater.pipelines.data.source_file import SUFFIXES, SourceFile, format_of
from headwater.pipelines.job_csv import CsvFormat

HASHED_BYTES = 16 << 20
"""Files up to this size are known by their content, larger ones by size and time of change."""

DEFAULT_CSV = CsvFormat()


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
