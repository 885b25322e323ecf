"""`headwater score`: the rows of a file, with the scores that the service would give them.

The rows go through the same scorer as requests do, so that offline and online numbers are equal. It
reads and writes batch by batch: memory does not grow with the file. No torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray

from headwater.feature_store.errors import DataError, ReleaseError
from headwater.feature_store.normalise import normal_form, values_of
from headwater.feature_store.schema import Dtype, RawColumn
from headwater.pipelines.arguments import checked, path_of, refused
from headwater.pipelines.console import Progress
from headwater.pipelines.data import expressions
from headwater.pipelines.data.columns import normal
from headwater.pipelines.data.files import find_files
from headwater.pipelines.data.table import Chunk, Table
from headwater.pipelines.job import read_csv_format
from headwater.pipelines.output import whole_file
from headwater.serving.kinds.scorer import Scorer, require_finite
from headwater.serving.manifest import MANIFEST_NAME, Input
from headwater.serving.release import load_release, versions
from headwater.serving.signature import LENGTH
from headwater.serving.tensors import MISSING, NUMPY, Arrays

BATCH_ROWS = 65_536


def score(
    release: Path | str,
    source: str | Path,
    out: Path | str,
    *,
    csv: Mapping[str, Any] | None = None,
    batch_rows: int = BATCH_ROWS,
) -> dict[str, Any]:
    """Write the rows of `source` to `out` with their scores; return their number, and the speed.

    Parameters
    ----------
    release
        Release folder, or the folder of a model: then its newest version.
    source
        Parquet, CSV or NDJSON: a path, glob or fsspec URL, with the release's raw columns. Those that the job
        derived are derived here too, where they are absent.
    out
        Parquet or CSV file, by its suffix: all columns of `source`, and the score under its name in
        the release (`prob`). From CSV to CSV every field keeps its text. It appears when it is complete.
    csv
        How CSV files are written, as `data.csv` of a job, which is what counts when absent.
    batch_rows
        Rows in memory at a time.
    """
    release = path_of(release, "score: release", "a release's folder, as text or Path")
    path_of(source, "score: source", "a path, glob or URL, as text or Path")
    out = path_of(out, "score: out")
    if checked(batch_rows, int, "score: batch_rows", "a number of rows") < 1:
        raise refused(batch_rows, "score: batch_rows", "at least 1")
    start_s = time.perf_counter()
    scorer = load_release(release_folder(release), Scorer)
    manifest = scorer.manifest
    table = Table(find_files(str(source), read_csv_format(manifest.csv if csv is None else csv)))
    inputs = _Inputs(scorer, table)
    output = scorer.output.name
    names = table.names()
    if output in names:
        raise DataError(
            f"{table.path}: column {output!r} has the name of the score; rename the column."
        )
    # What is written has the types of the file, so a CSV's fields, which have none, stay text in a CSV.
    # Only the copy that is scored takes the types of the release.
    text_to_text = out.suffix == ".csv" and all(file.is_text for file in table.files)
    kept = table.readable(names)
    dtypes = dict(inputs.dtypes)
    if text_to_text:
        dtypes |= dict[str, Dtype].fromkeys(kept, "string")
    types = table.infer(kept, dtypes=dtypes, exact=True)
    inputs.check(types)
    rows = 0
    with (
        Progress("score", unit="rows") as bar,
        _writing(out, types | {output: pl.Float32()}) as write,
    ):
        for chunk in table.chunks(kept):
            path = table.files[chunk.file].path
            frame = inputs.of(chunk)
            for start in range(0, len(frame), batch_rows):
                batch = slice(start, start + batch_rows)
                arrays = frame_to_arrays(frame[batch], scorer.graph.inputs)
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
        "release": f"{manifest.name}/{manifest.version}",
    }


class _Inputs:
    """The inputs of a release from the rows of a table.

    Raises DataError for a column that is absent.
    """

    def __init__(self, scorer: Scorer, table: Table) -> None:
        self._raw = {
            each.name: RawColumn(name=each.name, dtype=each.dtype, is_list=each.is_list)
            for each in scorer.graph.inputs
        }
        self.dtypes: dict[str, Dtype] = {name: raw.dtype for name, raw in self._raw.items()}
        self._table = table
        names = self._names = table.names()
        needed = dict.fromkeys(self._raw, "The release takes it in.")
        derive: dict[str, str] = {}
        for name, text in reversed(list(scorer.manifest.derived.items())):
            # Derived from itself, a column of the file is what it was before.
            is_given = name in names and name not in expressions.reads(text, [name], "")
            if name in needed and not is_given:
                derive[name] = text
                del needed[name]
                reason = f"The release takes in {name!r}, which the job derives by {text!r}."
                readable = {*names, *scorer.manifest.derived}
                needed |= dict.fromkeys(expressions.reads(text, readable, ""), reason)
        self._derive = dict(reversed(list(derive.items())))
        table.require(needed)
        self._needed = list(needed)
        self._chunks = self._typed() if self._derive else None

    def check(self, types: Mapping[str, pl.DataType]) -> None:
        """Raise DataError for an input that has none of the types from which it can be read."""
        for raw in self._raw.values():
            if raw.name not in self._derive:
                if raw.name not in types:
                    raise DataError(f"{self._table.path}: column {raw.name!r} cannot be read.")
                normal_form(raw, types[raw.name])

    def of(self, chunk: Chunk) -> pl.DataFrame:
        """Return the inputs of the next chunk in normal form; DataError with the row of a wrong value."""
        # Expressions have the types that training gave them, not those that are written.
        frame = chunk.frame if self._chunks is None else next(self._chunks).frame
        for name, text in self._derive.items():
            where = f"{self._table.path}, derived {name!r}"
            value = expressions.evaluate(frame, text, where, self._names)
            frame = frame.with_columns(value.alias(name))

        def fail(row: int, column: str, message: str) -> None:
            where = f"{self._table.files[chunk.file].path}, row {chunk.first_row + row}"
            raise DataError(f"{where}, column {column!r}: {message}")

        return normal(frame, self._raw, fail)

    def _typed(self) -> Iterator[Chunk]:
        table = Table(self._table.files)
        table.infer(self._needed, dtypes=self.dtypes)
        return table.chunks(self._needed)


def frame_to_arrays(frame: pl.DataFrame, inputs: Iterable[Input]) -> Arrays:
    """Return the tensors of normalised raw columns: what `columns_to_arrays` gives, without its steps.

    Null becomes the missing value of the dtype; a list is padded to the longest of the frame.
    """
    arrays: Arrays = {}
    for column in inputs:
        values = values_of(frame, column.name)
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
