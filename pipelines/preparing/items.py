"""The items of a log as one table: what is known of each, for filters, rankers and names.

N items that training knows, in the order of their rows.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from headwater.feature_store.errors import DataError
from headwater.feature_store.normalise import named
from headwater.feature_store.schema import FIRST_CODE, Schema
from headwater.feature_store.shards import ShardSet
from headwater.pipelines.data.files import find_files
from headwater.pipelines.data.rows import attach
from headwater.pipelines.data.table import Table
from headwater.pipelines.events import read_events, row_keys
from headwater.pipelines.job import Data

EVENTS = "events"
"""Column with the training events of each item."""


def write_items(path: Path, schema: Schema, training: ShardSet, data: Data) -> None:
    """Write the table of items, Arrow IPC: the item, its columns of `data.items`, and its training events.

    An item that `data.items` does not have gets nulls. DataError for a column that no release can hold, or
    of a name that is taken.
    """
    column = schema.columns[-1]
    count_N = np.bincount(read_events(training).item_E, minlength=column.cardinality)
    dtype = pl.String() if schema.raw[-1].dtype == "string" else pl.Int64()
    items = pl.DataFrame({column.name: pl.Series(row_keys(column), dtype=dtype)})
    if data.items is not None:
        items = _with_columns(items, column.name, data)
    items = items.with_columns(pl.Series(EVENTS, count_N[FIRST_CODE:], pl.Int64()))
    # Uncompressed, so that a service maps it into memory.
    items.write_ipc(path, compression="uncompressed")


def _with_columns(items: pl.DataFrame, item: str, data: Data) -> pl.DataFrame:
    assert data.items is not None
    side = Table(find_files(data.items.path, data.items.csv))
    wanted = side.names() if data.items.columns is None else data.items.columns
    columns = [name for name in wanted if name != item]
    if EVENTS in columns:
        raise DataError(
            f"{side.path}: column {EVENTS!r} has the name of the number of training events of an item. "
            "Rename it, or leave it out of data.items.columns."
        )
    reason = "(data.items needs it.)"
    side.require(dict.fromkeys([item, *columns], reason))
    side.infer([item, *columns])
    joined = attach(items, side, [item], columns)
    return joined.with_columns(_storable(name, joined.schema[name], side.path) for name in columns)


def _storable(name: str, found: pl.DataType, path: str) -> pl.Expr:
    """Return a column in a type that filters and the inputs of a graph have; DataError for others."""
    inner = found.inner if isinstance(found, pl.List) else found
    if isinstance(inner, pl.Int64 | pl.Float64 | pl.String | pl.Boolean):
        return named(name)
    if isinstance(found, pl.Datetime | pl.Date):
        return named(name).dt.epoch("ms").alias(name)
    if isinstance(found, pl.Decimal):
        return named(name).cast(pl.Float64())
    raise DataError(
        f"{path}: column {name!r} is {found}; items have numbers, texts, booleans, times and lists of them. "
        "Leave it out of data.items.columns."
    )
