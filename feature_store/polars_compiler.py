"""Programs as Polars expressions over raw columns in normal form (`normalise`).

The other compiler of the same programs is `onnx_compiler`; a test holds that both give equal codes
for any input. Every primitive is total: a missing value enters as the wire writes it (NaN, '',
INT64_MIN), and `missing` alone decides what becomes of it. All expressions run in the in-memory
and the streaming engine.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence

import polars as pl
import polars_hash

from headwater.feature_store import schema as fs
from headwater.feature_store import times
from headwater.feature_store.dtypes import DTYPES
from headwater.feature_store.lookups import DenseTable, HashTable, integer_table
from headwater.feature_store.normalise import named


def encode(schema: fs.Schema) -> list[pl.Expr]:
    """Return an expression for each encoded column, named as the column, over a normalised frame.

    Codes are Int32, of a list Array(Int32, length); dense columns are Float32. Nothing is null.
    """
    columns = {column.name: column for column in schema.columns}
    raw = {column.name: column for column in schema.raw}

    def expression(column: fs.EncodedColumn) -> pl.Expr:
        if isinstance(column.steps[0], fs.Cross):
            codes = [expression(columns[name]) for name in column.inputs]
            crossed = combine(codes, column.steps[0])
            return _elementwise(crossed, "int64", column.steps[1:])
        source = raw[column.inputs[0]]
        value = named(source.name)
        if column.separator is not None:
            value = split(value, column.separator)
        elif not source.is_list:
            return _elementwise(value, source.dtype, column.steps)
        *steps, pad = column.steps[column.separator is not None :]
        assert isinstance(pad, fs.Pad), "the program of a list ends with Pad"
        entries = _elementwise(pl.element(), source.dtype, steps)
        return _pad(value.list.eval(entries), pad)

    return [expression(column).alias(column.name) for column in schema.columns]


def encode_frame(
    lf: pl.LazyFrame, schema: fs.Schema, keep: Sequence[str | pl.Expr] = ()
) -> pl.LazyFrame:
    """Return the encoded columns of a normalised frame, in schema order, then the columns `keep`.

    A kept column whose name is that of an encoded one needs an alias:
    `pl.col("user").alias("user_key")`.
    """
    return lf.select(*encode(schema), *keep)


def split(text: pl.Expr, separator: str) -> pl.Expr:
    """Return the texts between separators, List(String) in normal form; of no text none."""
    parts = pl.when(text.is_not_null()).then(text.str.split(separator))
    return parts.list.eval(pl.when(pl.element() != "").then(pl.element()))


def combine(codes: Iterable[pl.Expr], step: fs.Cross) -> pl.Expr:
    """Return the mixed-radix number (Int64) of codes, INT64_MIN where any of them is missing."""
    number = pl.lit(0, pl.Int64)
    missing = pl.lit(value=False)
    for code, cardinality in zip(codes, step.cardinalities, strict=True):
        number = number * cardinality + code.cast(pl.Int64)
        missing = missing | (code == fs.MISSING_CODE)
    return pl.when(missing).then(fs.INT64_MIN).otherwise(number)


def missing_and_unknown(columns: Iterable[fs.EncodedColumn]) -> list[pl.Expr]:
    """Return two counts of examples per code column of an encoded frame, X.missing, X.unknown.

    Missing: every code is 0, of a list an empty one. Unknown: a code is 1, of a list any of them.
    """
    counts: list[pl.Expr] = []
    for column in columns:
        code = named(column.name)
        if isinstance(column.steps[-1], fs.Pad):
            missing = code.arr.max() == fs.MISSING_CODE
            unknown = code.arr.contains(fs.UNKNOWN_CODE)
        else:
            missing, unknown = code == fs.MISSING_CODE, code == fs.UNKNOWN_CODE
        counts.append(missing.sum().alias(f"{column.name}.missing"))
        counts.append(unknown.sum().alias(f"{column.name}.unknown"))
    return counts


def _elementwise(raw: pl.Expr, dtype: fs.Dtype, steps: Sequence[fs.Step]) -> pl.Expr:
    """Return the value of elementwise steps over one raw value, Int32 codes or a Float32 number."""
    first, *rest = steps
    if isinstance(first, fs.Time):
        raw, dtype, steps = times.milliseconds(raw), "int64", rest
    wire = raw.fill_null(pl.lit(DTYPES[dtype].missing))
    value = wire
    dense = False
    for step in steps:
        if isinstance(step, fs.Missing):
            fill = step.fill if dense else int(step.fill)
            value = pl.when(_is_missing(wire, dtype)).then(fill).otherwise(value)
        else:
            value = _PRIMITIVES[type(step)](value, step)
            dense = isinstance(step, fs.Affine)
    return value.cast(pl.Float32 if dense else pl.Int32)


def _is_missing(wire: pl.Expr, dtype: fs.Dtype) -> pl.Expr:
    return wire.is_nan() if dtype == "double" else wire == DTYPES[dtype].missing


def _lookup(value: pl.Expr, step: fs.Lookup) -> pl.Expr:
    if isinstance(step.keys, array):
        return _lookup_integers(value, integer_table(step))
    # An Enum is one hash table for all morsels; replace_strict holds whole columns when it streams.
    keys = pl.Enum([str(key) for key in step.keys])
    # The physical type is as narrow as the keys allow (UInt8 and up): widen before adding.
    position = value.cast(pl.String).cast(keys, strict=False).to_physical().cast(pl.Int32)
    if step.codes is None:
        code = position + fs.FIRST_CODE
    else:
        code = pl.lit(pl.Series(step.codes, dtype=pl.Int32)).gather(position)
    return code.fill_null(fs.UNKNOWN_CODE)


def _lookup_integers(value: pl.Expr, table: DenseTable | HashTable) -> pl.Expr:
    if isinstance(table, DenseTable):
        position = value.clip(table.below, table.last) - table.below
        return pl.lit(pl.Series(table.codes)).gather(position.cast(pl.UInt32))

    def codes(values: pl.Series) -> pl.Series:
        # Polars puts a null where a condition around the lookup does without its code.
        return pl.Series(values.name, table(values.fill_null(fs.INT64_MIN).to_numpy()))

    return value.map_batches(codes, return_dtype=pl.Int32(), is_elementwise=True)


def _edges(value: pl.Expr, step: fs.Edges) -> pl.Expr:
    number = value.cast(pl.Float64)
    passed = number.bin_intervals(list(step.values), labels=False).cast(pl.Int32)
    # Polars orders NaN above all numbers; a comparison in the graph is false.
    return pl.when(number.is_nan()).then(0).otherwise(passed) + fs.FIRST_CODE


def _affine(value: pl.Expr, step: fs.Affine) -> pl.Expr:
    number = value.cast(pl.Float64)
    scaled = number if step.scale == 1 else number * step.scale
    return (scaled if step.offset == 0 else scaled + step.offset).cast(pl.Float32)


def _hash(value: pl.Expr, step: fs.Hash) -> pl.Expr:
    text = polars_hash.NonCryptographicHashingNameSpace(value.cast(pl.String))
    return text.murmur32(seed=step.seed).cast(pl.Int64) % step.num_buckets + fs.FIRST_CODE


def _calendar(value: pl.Expr, step: fs.Calendar) -> pl.Expr:
    hour = step.hour
    week = 168 * hour
    # Reduced to one week before anything is added, so that no time overflows.
    local = (value % week + step.shift) % week
    return {
        "hour": local // hour % 24,
        "weekday": local // (24 * hour),
        "weekend": (local >= 5 * 24 * hour).cast(pl.Int64),
        "hour_of_week": local // hour,
    }[step.part] + fs.FIRST_CODE


def _pad(codes: pl.Expr, step: fs.Pad) -> pl.Expr:
    filled = codes.fill_null(pl.lit([], dtype=pl.List(pl.Int32)))
    kept = filled.list.tail(step.length) if step.keep == "tail" else filled.list.head(step.length)
    zeros = pl.lit([fs.MISSING_CODE] * step.length, dtype=pl.List(pl.Int32))
    return pl.concat_list([kept, zeros]).list.head(step.length).list.to_array(step.length)


_PRIMITIVES: dict[type, Callable[..., pl.Expr]] = {
    fs.Lookup: _lookup,
    fs.Edges: _edges,
    fs.Affine: _affine,
    fs.Hash: _hash,
    fs.Calendar: _calendar,
}
