"""Load frozen vectors from a Parquet file into an online store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headwater.feature_store.errors import DataError, InputError
from headwater.feature_store.online.definition import Definition, Table, encode_key
from headwater.feature_store.online.kinds import Vector
from headwater.feature_store.online.store import OnlineStore, Write
from headwater.pipelines.streams.arrow import Array

ROWS_AT_ONCE = 10_000


def load_vectors(store: OnlineStore, definition: Definition, feature: str, path: Path) -> int:
    """Write the vectors of a file to a feature, as `items.taste`, over what it had; returns how many.

    The file has the table's key as a column, and a list of numbers in a column of the feature's name.
    """
    table, vector = _vector(definition, feature)
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {error}.") from error
    for column in (table.key, vector.name):
        if column not in file.schema_arrow.names:
            names = ", ".join(file.schema_arrow.names)
            raise DataError(f"{path}: no column {column!r}; there are {names}.")
    count = 0
    for batch in file.iter_batches(ROWS_AT_ONCE, columns=[table.key, vector.name]):
        keys = batch.column(table.key).to_pylist()
        matrix = _matrix(batch.column(vector.name), vector, f"{path}: rows from {count:,} on")
        store.commit(
            {},
            [
                Write(table.vector_table(vector), encode_key(key), numbers.tobytes())
                for key, numbers in zip(keys, matrix, strict=True)
                if key is not None
            ],
            [],
        )
        count += batch.num_rows
    return count


def _vector(definition: Definition, feature: str) -> tuple[Table, Vector]:
    known = {
        table.vector_table(vector): (table, vector)
        for table in definition.tables
        for vector in table.vectors
    }
    if feature not in known:
        names = ", ".join(known) or "none"
        raise InputError(f"no vector {feature!r}; the job declares {names}.")
    return known[feature]


def _matrix(
    column: Array, vector: Vector, where: str
) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Return the vectors of a column, shape (rows, dim)."""
    kind = column.type
    if not (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    ):
        raise DataError(f"{where}: column {vector.name!r} is {kind}, expected lists of numbers.")
    numbers = np.asarray(column.flatten().cast(pa.float64()), dtype="<f4")
    lengths = (
        set(column.value_lengths().to_pylist())
        if not pa.types.is_fixed_size_list(kind)
        else {kind.list_size}
    )
    if column.null_count or lengths - {vector.dim}:
        raise DataError(
            f"{where}: column {vector.name!r} has vectors of {sorted(map(str, lengths))} numbers or none, "
            f"expected {vector.dim} in each."
        )
    return numbers.reshape(-1, vector.dim)
