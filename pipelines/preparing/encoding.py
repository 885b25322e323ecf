"""Encoded shards of all splits, in one pass over the staged rows: of a part at a time a few columns at once.

Not all columns in one streaming query: their vocabularies would push each other out of the cache, and memory
would be that of several row groups of all columns. Crossed columns follow from the codes of the others, for a
block of rows all at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from msgspec.structs import replace
from numpy.typing import NDArray

from headwater.feature_store.crosses import CrossEncoder
from headwater.feature_store.normalise import named
from headwater.feature_store.polars_compiler import encode, missing_and_unknown
from headwater.feature_store.schema import MISSING_CODE, UNKNOWN_CODE, EncodedColumn, Schema
from headwater.feature_store.shards import Arrays, ShardWriter
from headwater.pipelines.console import Progress
from headwater.pipelines.data.names import GROUP, LABEL, TIME, WEIGHT, free_name, raw_rows
from headwater.pipelines.prepared import ColumnCounts, SplitName, SplitStatistics
from headwater.pipelines.preparing.splits import SIGN, Conditions, ordered
from headwater.pipelines.preparing.staging import Part, Staged

VALUES = 1 << 21
"""Values that are encoded at once, at least a column of one part."""
CROSSED_VALUES = 1 << 25
"""Codes of all columns that are held at once where some are crossed."""


def encode_splits(
    staged: Staged,
    conditions: Conditions,
    schema: Schema,
    folder: Path,
    created: Mapping[str, Any],
    *,
    time: bool = False,
) -> dict[SplitName, SplitStatistics]:
    """Write the shards of each split of `conditions` to `folder/<split>` and return what they hold.

    Each has rows, with their `time` where it is asked for and staged. Memory: the codes of one part, and one
    shard a split.
    """
    names = staged.parts[0].rows.collect_schema().names()
    weight, group, time = WEIGHT in names, GROUP in names, time and TIME in names
    there = {LABEL: True, WEIGHT: weight, GROUP: group, TIME: time}
    extra = [name for name, is_there in there.items() if is_there]
    totals: dict[SplitName, dict[str, int]] = {split: {} for split in conditions}
    plain = replace(schema, columns=tuple(each for each in schema.columns if not each.is_crossed))
    expressions = dict(zip((each.name for each in plain.columns), encode(plain), strict=True))
    crosses = CrossEncoder(schema) if len(plain.columns) < len(schema.columns) else None
    num_rows = sum(part.num_rows for part in staged.parts)
    with ExitStack() as stack:
        writers: dict[SplitName, ShardWriter] = {}
        for split in conditions:
            writer = ShardWriter(
                folder / split, schema, weight=weight, group=group, time=time, created=created
            )
            writers[split] = stack.enter_context(writer)
        bar = stack.enter_context(Progress("encode", total=num_rows, unit="rows"))
        for part in staged.parts:
            for split, rows in _encode(part, conditions, plain, expressions, extra, totals).items():
                if crosses is None:
                    writers[split].write(rows)
                else:
                    for block in _widened(rows, crosses, schema, totals[split]):
                        writers[split].write(block)
            bar.advance(part.num_rows)
    return {split: _statistics(total, schema) for split, total in totals.items()}


def _widened(
    rows: Arrays, crosses: CrossEncoder, schema: Schema, total: dict[str, int]
) -> Iterator[Arrays]:
    """Yield rows with the codes of crossed columns, in blocks, and add what these hold to `total`."""
    size = max(CROSSED_VALUES // schema.width, 1)
    crossed = [(column, place) for column, place in schema.code_places() if column.is_crossed]
    for start in range(0, len(rows), size):
        block = {name: array[start : start + size] for name, array in rows.present()}
        codes = block["codes"] = crosses.widen(block["codes"])
        for column, place in crossed:
            for kind, code in (("missing", MISSING_CODE), ("unknown", UNKNOWN_CODE)):
                name = f"{column.name}.{kind}"
                total[name] = total.get(name, 0) + int(np.count_nonzero(codes[:, place] == code))
        yield Arrays(**block)


def _encode(
    part: Part,
    conditions: Conditions,
    schema: Schema,
    expressions: Mapping[str, pl.Expr],
    extra: Sequence[str],
    totals: Mapping[SplitName, dict[str, int]],
) -> dict[SplitName, Arrays]:
    """Return the encoded rows of one part by split, and add what they hold to `totals`.

    `extra` are the staged columns beside the features.
    """
    tests = [test.alias(split) for split, test in conditions.items()]
    chosen = part.rows.select(*extra, *tests).collect(engine="streaming")
    places: dict[str, slice | int] = {column.name: place for column, place in schema.code_places()}
    places |= {column.name: index for index, column in enumerate(schema.dense)}
    result: dict[SplitName, Arrays] = {}
    for split in conditions:
        rows = chosen.filter(pl.col(split))
        if rows.height:
            result[split] = _arrays(rows, schema)
            positives = (pl.col(LABEL) == 1).sum()
            _add(totals[split], rows.select(pl.len().alias("rows"), positives.alias("positives")))
    raw = raw_rows(part.rows, (column.name for column in schema.raw))
    flags = _missing_flags(schema)
    for columns in _together(schema.columns, part.num_rows):
        frame = raw.select(
            *(expressions[column.name] for column in columns),
            *(
                named(column.inputs[0]).is_null().alias(flags[column.name])
                for column in columns
                if column.is_dense
            ),
        ).collect(engine="streaming")
        for split, arrays in result.items():
            rows = frame if len(arrays) == frame.height else frame.filter(chosen[split])
            for column in columns:
                values = rows.get_column(column.name).to_numpy()
                place = places[column.name]
                if column.is_dense:
                    arrays.dense[:, place] = values
                else:
                    arrays.codes[:, place] = values.reshape(rows.height, -1)
            _add(totals[split], rows.select(_counts(columns, flags)))
    return result


def _arrays(rows: pl.DataFrame, schema: Schema) -> Arrays:
    """Return arrays for rows, with what is already known of them: label, weight and group."""
    weight, group = (
        rows.get_column(name).to_numpy() if name in rows.columns else None
        for name in (WEIGHT, GROUP)
    )
    # The codes of a column lie together, as they are found; the writer turns them into rows.
    codes = np.empty((schema.width, rows.height), np.int32).T
    dense = np.empty((len(schema.dense), rows.height), np.float32).T
    label = rows.get_column(LABEL).to_numpy()
    return Arrays(codes, dense, label, weight, group, _times(rows))


def _times(rows: pl.DataFrame) -> NDArray[np.int64] | None:
    """Return the times of rows as whole numbers in the same order; None where none are staged."""
    if TIME not in rows.columns:
        return None
    values = rows.get_column(TIME).fill_null(0).to_numpy()
    return values if values.dtype == np.int64 else (ordered(values) ^ SIGN).view(np.int64)


def _together(columns: Sequence[EncodedColumn], num_rows: int) -> Iterator[Sequence[EncodedColumn]]:
    """Yield the columns in runs of about VALUES values."""
    run: list[EncodedColumn] = []
    for column in columns:
        if run and num_rows * sum(each.length for each in [*run, column]) > VALUES:
            yield run
            run = []
        run.append(column)
    if run:
        yield run


def _missing_flags(schema: Schema) -> dict[str, str]:
    """Return names, beside those of the features, for where a dense feature has no value."""
    taken = {column.name for column in schema.columns}
    flags: dict[str, str] = {}
    for column in schema.dense:
        flags[column.name] = free_name(f"{column.name} missing", {*taken, *flags.values()})
    return flags


def _counts(columns: Sequence[EncodedColumn], flags: Mapping[str, str]) -> list[pl.Expr]:
    return [
        *missing_and_unknown(column for column in columns if not column.is_dense),
        *(
            named(flags[column.name]).sum().alias(f"{column.name}.missing")
            for column in columns
            if column.is_dense
        ),
    ]


def _add(total: dict[str, int], counted: pl.DataFrame) -> None:
    for name, count in counted.row(0, named=True).items():
        total[name] = total.get(name, 0) + count


def _statistics(total: Mapping[str, int], schema: Schema) -> SplitStatistics:
    columns = {
        column.name: ColumnCounts(
            total[f"{column.name}.missing"], total.get(f"{column.name}.unknown", 0)
        )
        for column in schema.columns
    }
    rate = total["positives"] / total["rows"]
    return SplitStatistics(total["rows"], total["positives"], rate, columns)
