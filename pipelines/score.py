"""`headwater score`: the rows of a file, with the scores that the service would give them.

The rows go through the same scorer as requests do, so that offline and online numbers are equal. It
reads and writes batch by batch: memory does not grow with the file. No torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray

from headwater.feature_store.errors import DataError, ReleaseError
from headwater.feature_store.normalise import POLARS_TYPES, normalise
from headwater.feature_store.schema import Dtype, RawColumn
from headwater.pipelines.arguments import checked, path_of, refused
from headwater.pipelines.console import Progress
from headwater.pipelines.data.columns import normal
from headwater.pipelines.data.sources import Chunk, Table, find_files
from headwater.pipelines.data.text_types import number
from headwater.pipelines.output import whole_file
from headwater.serving.manifest import MANIFEST_NAME, Input
from headwater.serving.release import load_release
from headwater.serving.scorer import require_finite
from headwater.serving.signature import LENGTH, Arrays
from headwater.serving.tensors import MISSING, NUMPY

BATCH_ROWS = 65_536


def score(
    release: Path | str, source: str | Path, out: Path | str, *, batch_rows: int = BATCH_ROWS
) -> dict[str, Any]:
    """Write the rows of `source` to `out` with their scores; return their number, and the speed.

    Parameters
    ----------
    release
        Release folder, or the folder of a model: then its newest version.
    source
        Parquet, CSV or NDJSON: a path, glob or fsspec URL, with the release's raw columns.
    out
        Parquet or CSV file, by its suffix: all columns of `source`, and the score under its name in
        the release (`prob`). From CSV to CSV every field keeps its text. It appears when it is complete.
    batch_rows
        Rows in memory at a time.
    """
    release = path_of(release, "score: release", "a release's folder, as text or Path")
    path_of(source, "score: source", "a path, glob or URL, as text or Path")
    out = path_of(out, "score: out")
    if checked(batch_rows, int, "score: batch_rows", "a number of rows") < 1:
        raise refused(batch_rows, "score: batch_rows", "at least 1")
    start_s = time.perf_counter()
    scorer = load_release(release_folder(release))
    inputs = scorer.manifest.inputs
    raw = [RawColumn(name=i.name, dtype=i.dtype, is_list=i.is_list) for i in inputs]
    output = scorer.manifest.outputs[0].name
    table = Table(find_files(str(source)))
    table.require({column.name: "The release takes it in." for column in raw})
    names = table.names()
    if output in names:
        raise DataError(
            f"{table.path}: column {output!r} has the name of the score; rename the column."
        )
    # What is written has the types of the file, so a CSV's fields, which have none, stay text in a CSV.
    # Only the copy that is scored takes the types of the release.
    text_to_text = out.suffix == ".csv" and all(file.is_text for file in table.files)
    texts = [column.name for column in raw if column.dtype == "string"]
    types = table.infer(names, as_text=names if text_to_text else texts, exact=True)
    normalise(pl.LazyFrame(schema=types), raw)
    rows = 0
    with (
        Progress("score", unit="rows") as bar,
        _writing(out, types | {output: pl.Float32()}) as write,
    ):
        for chunk in table.chunks(names):
            path = table.files[chunk.file].path
            readable = _readable(chunk, raw, path)
            for start in range(0, len(readable), batch_rows):
                batch = slice(start, start + batch_rows)
                arrays = frame_to_arrays(readable[batch], inputs)
                scores = scorer.score(arrays)
                first_row = chunk.first_row + start
                require_finite(scores, arrays, where=f"{path}, ", first_row=first_row)
                write(chunk.frame[batch].with_columns(pl.Series(output, scores, pl.Float32)))
                rows += len(scores)
                bar.advance(len(scores))
    return {
        "out": str(out),
        "rows": rows,
        "rows_per_second": rows / (time.perf_counter() - start_s),
        "release": f"{scorer.manifest.name}/{scorer.manifest.version}",
    }


def _readable(chunk: Chunk, raw: Sequence[RawColumn], path: str) -> pl.DataFrame:
    """Return the inputs of a chunk in normal form; DataError with the row of a value that has none."""

    def fail(row: int, column: str, message: str) -> None:
        raise DataError(f"{path}, row {chunk.first_row + row}, column {column!r}: {message}")

    frame = chunk.frame.select(column.name for column in raw)
    for column in raw:
        dtype, text = POLARS_TYPES[column.dtype], pl.col(column.name)
        if frame.schema[column.name] != pl.String or isinstance(dtype, pl.String):
            continue
        assert isinstance(dtype, pl.Int64 | pl.Float64)
        values = number(text, dtype)
        is_nan = text.cast(pl.Float64, strict=False).is_nan().fill_null(value=False)
        wrong = frame.select(values.is_null() & (text != "") & ~is_nan).to_series()
        for row in wrong.arg_true().head(1):
            time = " (a datetime: ISO 8601 or milliseconds, UTC)" if column.dtype == "int64" else ""
            fail(
                row,
                column.name,
                f"found {frame[column.name][row]!r}, expected {column.dtype}{time}. Correct the value, or "
                f"leave it empty: a missing value is allowed.",
            )
        frame = frame.with_columns(values)
    return normal(frame, {column.name: column for column in raw}, fail)


def frame_to_arrays(frame: pl.DataFrame, inputs: Iterable[Input]) -> Arrays:
    """Return the tensors of normalised raw columns: what `columns_to_arrays` gives, without its steps.

    Null becomes the missing value of the dtype; a list is padded to the longest of the frame.
    """
    arrays: Arrays = {}
    for column in inputs:
        values = frame[column.name]
        if not column.is_list:
            arrays[column.name] = _to_numpy(values, column.dtype).reshape(-1, 1)
            continue
        lengths = values.list.len().fill_null(0).cast(pl.Int64).to_numpy().reshape(-1, 1)
        width = max(1, int(lengths.max(initial=0)))
        padded = np.full((len(values), width), MISSING[column.dtype], NUMPY[column.dtype])
        entries = values.explode(empty_as_null=False, keep_nulls=False)
        padded[np.arange(width) < lengths] = _to_numpy(entries, column.dtype)
        arrays[column.name] = padded
        arrays[column.name + LENGTH] = lengths
    return arrays


def _to_numpy(values: pl.Series, dtype: Dtype) -> NDArray[Any]:
    filled = values.fill_null(MISSING[dtype])
    return np.array(filled.to_list(), object) if dtype == "string" else filled.to_numpy()


def release_folder(path: Path) -> Path:
    """Return the release at `path`: itself, or the highest version where it is a model's folder."""
    if (path / MANIFEST_NAME).is_file():
        return path
    found = [
        version for version in versions(path) if (path / str(version) / MANIFEST_NAME).is_file()
    ]
    if not found:
        raise ReleaseError(
            f"{path}: expected a release with {MANIFEST_NAME}, or a model's folder of numbered "
            f"releases; found {'neither' if path.is_dir() else 'no such folder'}."
        )
    return path / str(max(found))


def versions(folder: Path) -> list[int]:
    """Return the version numbers that a model's folder holds, in any order."""
    if not folder.is_dir():
        return []
    names = (each.name for each in folder.iterdir())
    return [int(name) for name in names if name.isascii() and name.isdigit()]


@contextmanager
def _writing(
    out: Path, types: Mapping[str, pl.DataType]
) -> Generator[Callable[[pl.DataFrame], None]]:
    """Yield a function that appends rows to the file `out`, which appears whole at the end."""
    if out.suffix not in (".parquet", ".csv"):
        raise DataError(f"{out}: expected a name that ends in .parquet or .csv.")
    nested = [name for name, dtype in types.items() if dtype.is_nested()]
    if out.suffix == ".csv" and nested:
        raise DataError(f"{out}: CSV cannot hold the lists of {nested[0]!r}; write to .parquet.")
    empty = pl.DataFrame(schema=types)
    with whole_file(out) as file:
        if out.suffix == ".csv":
            file.write(empty.write_csv().encode())
            yield lambda rows: _append_csv(file, rows)
        else:
            schema = empty.to_arrow().schema
            with pq.ParquetWriter(file, schema, compression="zstd") as writer:
                yield lambda rows: writer.write_table(rows.to_arrow().cast(schema))


def _append_csv(file: BinaryIO, rows: pl.DataFrame) -> None:
    file.write(rows.write_csv(include_header=False).encode())
