"""From declared encoders and training rows to a fitted schema.

Rows come as fragments, row ranges in a fixed order. `partial` reads one fragment, in streaming
queries, and can run on any machine; `merge` adds what the fragments gave; `finish` makes programs
of the sum. What is added are integers, by key, so that neither the number of workers nor their
speed can change a byte of the schema. On one machine `fit` adds inside the query, over all
fragments at once, where that gives the same: adding keys again costs more than counting them.
Memory is bounded by the distinct values of one feature, not by rows.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
from msgspec.structs import replace
from numpy.typing import NDArray

from headwater.feature_store import schema as fs
from headwater.feature_store.convert import element_type
from headwater.feature_store.crosses import CodesOnDisk, count
from headwater.feature_store.encoders import Calendar, Codes, Column, Crossed, Declared
from headwater.feature_store.errors import DataError, FeatureError, largest
from headwater.feature_store.normalise import (
    infer_dtype,
    missing_column,
    named,
    normal_form,
)
from headwater.feature_store.polars_compiler import encode, split

MAX_STRING_KEYS = 1_000_000
"""String keys of all vocabularies together: a million take a serving process 0.44 GB."""

_TENSORS = {
    "prob": "its output",
    "logit": "the output before the sigmoid",
    "log_rate": "the correction for sampled negatives",
}
"""Names that a release uses itself beside those of raw columns, which are its inputs."""

Partial = Mapping[str, pl.DataFrame]
"""Counts or sums of some rows, by feature: a column `key`, and integer columns that add up."""

COLUMNS_AT_ONCE = 8
"""Columns that are encoded together for crosses: rows are read again for others."""

_NOTHING = fs.Schema(raw=(), columns=())


def fit(
    encoders: Sequence[Declared],
    fragments: Sequence[pl.LazyFrame],
    dtypes: Mapping[str, fs.RawColumn],
    *,
    together: pl.LazyFrame | None = None,
    workspace: Path | None = None,
) -> fs.Schema:
    """Return the schema that training rows teach the encoders.

    `dtypes` has each raw column by name, as `raw_columns` gives them; `together` is all fragments
    as one frame, where the caller has a better one than their concatenation. Features are fitted
    one after the other, each from the columns that it reads; crossed ones from codes that lie in
    `workspace` meanwhile (else in the system's temporary folder), 4 bytes a row and combined
    column. Raises FeatureError where an encoder cannot take its column, DataError where rows are
    not in normal form.
    """
    if not fragments:
        raise DataError("no rows to fit the features on: the training data is empty.")
    check(encoders, dtypes)
    whole = [pl.concat(fragments) if together is None else together]
    schema = _NOTHING
    while len(schema.columns) < len(encoders):
        crossed: list[Crossed] = []
        for encoder in next_pass(encoders, schema):
            if isinstance(encoder, Crossed):
                crossed.append(encoder)
                continue
            if encoder.by_fragment:
                parts = [partial([encoder], each, dtypes, schema) for each in fragments]
            else:
                parts = [partial([encoder], each, dtypes, schema, complete=True) for each in whole]
            schema = finish(encoders, [encoder], merge(parts), dtypes, schema)
        if crossed:
            schema = _fit_crossed(encoders, crossed, fragments, dtypes, schema, workspace)
    return schema


def _fit_crossed(
    encoders: Sequence[Declared],
    crossed: Sequence[Crossed],
    fragments: Sequence[pl.LazyFrame],
    dtypes: Mapping[str, fs.RawColumn],
    schema: fs.Schema,
    workspace: Path | None,
) -> fs.Schema:
    """Return `schema` and crossed columns, fitted in one pass over the rows."""
    fitted = {column.name: column for column in schema.columns}
    queries = _code_queries(crossed, schema)
    with TemporaryDirectory(dir=workspace) as folder:
        disk = CodesOnDisk(Path(folder))
        for fragment in fragments:
            for codes in _codes(queries, fragment, schema):
                disk.add(codes)
        for encoder in crossed:
            step = _cross(encoder, fitted)
            chunks = functools.partial(disk.chunks, encoder.columns)
            counts = count(chunks, step, encoder.min_count)
            learned = merge({encoder.name: each} for each in counts)
            schema = finish(encoders, [encoder], learned, dtypes, schema)
    return schema


def next_pass(encoders: Sequence[Declared], schema: fs.Schema) -> list[Declared]:
    """Return the encoders that can be fitted now: crossed ones after what they combine."""
    fitted = {column.name for column in schema.columns}
    waiting = [encoder for encoder in encoders if encoder.name not in fitted]
    return [
        encoder
        for encoder in waiting
        if not isinstance(encoder, Crossed) or fitted.issuperset(encoder.columns)
    ]


def partial(
    encoders: Sequence[Declared],
    fragment: pl.LazyFrame,
    dtypes: Mapping[str, fs.RawColumn],
    schema: fs.Schema = _NOTHING,
    *,
    complete: bool = False,
) -> Partial:
    """Return what the rows of one fragment teach.

    `schema` has the columns that crossed ones among `encoders` combine. A `complete` fragment is all
    there is: what can no longer count is left out.
    """
    rows = _in_normal_form(fragment, _raw_of(encoders, dtypes).values())
    queries: dict[str, pl.LazyFrame] = {}
    crossed: list[Crossed] = []
    for encoder in encoders:
        if isinstance(encoder, Column):
            query = encoder.partial(_values(encoder, rows, dtypes))
            if query is not None:
                queries[encoder.name] = encoder.relevant(query) if complete else query
        elif isinstance(encoder, Crossed):
            crossed.append(encoder)
    frames = pl.collect_all(list(queries.values()), engine="streaming")
    learned = dict(zip(queries, frames, strict=True))
    if crossed:
        fitted = {column.name: column for column in schema.columns}
        codes: dict[str, NDArray[np.int32]] = {}
        for some in _codes(_code_queries(crossed, schema), fragment, schema):
            codes |= some
        for encoder in crossed:
            chunks = [[codes[name] for name in encoder.columns]]
            (learned[encoder.name],) = count(lambda chunks=chunks: chunks, _cross(encoder, fitted))
    return learned


def _code_queries(crossed: Sequence[Crossed], schema: fs.Schema) -> list[list[pl.Expr]]:
    """Return expressions of the codes that crossed columns combine, a few columns together."""
    combined = {name for encoder in crossed for name in encoder.columns}
    needed = set(combined)
    for column in reversed(schema.columns):
        if column.is_crossed and column.name in needed:
            needed.update(column.inputs)
    columns = tuple(column for column in schema.columns if column.name in needed)
    expressions = [
        expression
        for column, expression in zip(
            columns, encode(replace(schema, columns=columns)), strict=True
        )
        if column.name in combined
    ]
    return [
        expressions[start : start + COLUMNS_AT_ONCE]
        for start in range(0, len(expressions), COLUMNS_AT_ONCE)
    ]


def _codes(
    queries: Iterable[Sequence[pl.Expr]], fragment: pl.LazyFrame, schema: fs.Schema
) -> Iterator[dict[str, NDArray[np.int32]]]:
    """Yield the codes that each query gives of the rows of a fragment, by column."""
    rows = _in_normal_form(fragment, schema.raw)
    for expressions in queries:
        frame = rows.select(expressions).collect(engine="streaming")
        yield {column.name: column.to_numpy() for column in frame}


def merge(partials: Iterable[Partial]) -> Partial:
    """Return the sum of partial results; the cost is near linear in their size."""
    sums: dict[str, pl.DataFrame] = {}
    waiting: dict[str, list[pl.DataFrame]] = {}
    for part in partials:
        for name, frame in part.items():
            queue = waiting.setdefault(name, [])
            queue.append(frame)
            # Small results wait until they weigh as much as the sum, so that it is not rebuilt for
            # each.
            if sum(each.height for each in queue) >= (sums[name].height if name in sums else 0):
                sums[name] = _add(name, sums, queue)
                queue.clear()
    return {
        name: _add(name, sums, queue) if queue else sums[name] for name, queue in waiting.items()
    }


def finish(
    encoders: Sequence[Declared],
    fitted_now: Sequence[Declared],
    learned: Partial,
    dtypes: Mapping[str, fs.RawColumn],
    schema: fs.Schema = _NOTHING,
) -> fs.Schema:
    """Return `schema` and the columns of `fitted_now`, in the order of `encoders`."""
    columns = {column.name: column for column in schema.columns}
    for encoder in fitted_now:
        columns[encoder.name] = _column(encoder, learned.get(encoder.name), columns, dtypes)
    ordered = tuple(columns[each.name] for each in encoders if each.name in columns)
    raw = _raw_of([each for each in encoders if each.name in columns], dtypes)
    result = fs.Schema(raw=tuple(raw.values()), columns=ordered)
    _check_string_keys(result)
    return result


def raw_columns(
    encoders: Sequence[Declared], data: Mapping[str, pl.DataType]
) -> dict[str, fs.RawColumn]:
    """Return the raw columns that encoders read, typed by their `dtype` or else by the data.

    Raises DataError for a column that the data lacks, FeatureError where two features read one
    column as two types and where a calendar has another unit than dates and datetimes, ms.
    """
    raw: dict[str, fs.RawColumn] = {}
    declared: dict[str, tuple[str, fs.Dtype]] = {}
    for encoder in encoders:
        if not isinstance(encoder, Column):
            continue
        (name,) = encoder.inputs
        if name not in data:
            raise DataError(f"feature {encoder.name!r}: {missing_column(name, list(data))}")
        found = infer_dtype(name, data[name])
        if (
            isinstance(encoder, Calendar)
            and encoder.unit != "ms"
            and _has_times(encoder, data[name])
        ):
            raise FeatureError(
                f"column {name!r}, feature {encoder.name!r}: unit {encoder.unit!r} is for plain "
                f"numbers, and the column is {data[name]}, which is read in ms. Remove `unit`, or set "
                f'dtype = "int64" where its text is numbers.'
            )
        if encoder.dtype is not None:
            first, dtype = declared.setdefault(name, (encoder.name, encoder.dtype))
            if dtype != encoder.dtype:
                raise FeatureError(
                    f"column {name!r}: feature {first!r} reads it as {dtype}, feature "
                    f"{encoder.name!r} as {encoder.dtype}; give both the same `dtype`."
                )
            found = fs.RawColumn(name=name, dtype=encoder.dtype, is_list=found.is_list)
        if name not in raw or encoder.dtype is not None:
            raw[name] = found
    return raw


def _has_times(encoder: Calendar, dtype: pl.DataType) -> bool:
    """Return whether a calendar gets times with a unit of their own: dates, datetimes or their text."""
    inner = element_type(dtype) if isinstance(dtype, pl.List | pl.Array) else dtype
    return inner.is_temporal() or (isinstance(inner, pl.String) and encoder.dtype is None)


def check(encoders: Sequence[Declared], dtypes: Mapping[str, fs.RawColumn]) -> None:
    """Raise FeatureError or DataError where an encoder cannot take its columns; reads no data."""
    earlier: dict[str, Declared] = {}
    for encoder in encoders:
        if encoder.name in earlier:
            raise FeatureError(
                f"feature {encoder.name!r} is declared twice; `name` must be unique."
            )
        if isinstance(encoder, Column):
            (name,) = encoder.inputs
            if name not in dtypes:
                raise DataError(f"feature {encoder.name!r}: {missing_column(name, list(dtypes))}")
            _check_column(encoder, dtypes[name])
        else:
            _check_crossed(encoder, earlier, dtypes)
        earlier[encoder.name] = encoder
    raw = _raw_of(encoders, dtypes)
    tensors = _TENSORS | {
        f"{'dense' if each.is_dense else 'code'}.{each.name}": f"the output of {each.name!r}"
        for each in encoders
    }
    for name in raw:
        owner = name.removesuffix(".length")
        if owner != name and owner in raw and raw[owner].is_list:
            raise FeatureError(
                f"column {name!r}: a release names the lengths of the list {owner!r} so; rename the "
                f"column, as by `derive` in [data]."
            )
        if name in tensors:
            raise FeatureError(
                f"column {name!r}: a release names {tensors[name]} so; rename the column, as by "
                f"`derive` in [data]."
            )


def _check_column(encoder: Column, raw: fs.RawColumn) -> None:
    where = f"column {raw.name!r}, feature {encoder.name!r}: encoder {encoder.kind!r}"
    if raw.dtype not in encoder.accepts:
        raise FeatureError(
            f"{where} takes {' or '.join(encoder.accepts)}, found {raw.dtype}. Set `dtype` where the "
            f"values can be read so, or choose another encoder."
        )
    length = encoder.length if isinstance(encoder, Codes) else None
    separator = encoder.separator if isinstance(encoder, Codes) else None
    if separator is not None and (raw.is_list or raw.dtype != "string"):
        found = "a list" if raw.is_list else raw.dtype
        raise FeatureError(
            f"{where} has `separator`, which divides text, found {found}; remove it."
        )
    if raw.is_list and not isinstance(encoder, Codes):
        raise FeatureError(
            f"{where} gives one number an example, found a list. Derive its mean, last entry or "
            f"its length in [data], or use an encoder that gives codes."
        )
    is_list = _is_list(encoder, raw)
    if is_list and length is None:
        raise FeatureError(f"{where} reads a list: set `length`, the entries an example keeps.")
    if not is_list and length is not None:
        raise FeatureError(
            f"{where} has `length`, but its column is no list; remove `length`, or set the `separator` that "
            f"divides its text."
        )


def _check_crossed(
    encoder: Declared, earlier: Mapping[str, Declared], dtypes: Mapping[str, fs.RawColumn]
) -> None:
    for name in encoder.inputs:
        where = f"feature {encoder.name!r}: encoder {encoder.kind!r} cannot combine {name!r}"
        if name not in earlier:
            known = ", ".join(earlier) or "none"
            raise FeatureError(
                f"{where}: no feature of this name is declared before it (there: {known})."
            )
        other = earlier[name]
        if other.is_dense:
            raise FeatureError(
                f"{where}: {other.kind!r} gives a number and no codes. Declare a feature with "
                f"quantiles or log_buckets over its column, and combine that."
            )
        if isinstance(other, Column) and _is_list(other, dtypes[other.inputs[0]]):
            raise FeatureError(
                f"{where}: it is a list; only features with one code an example combine."
            )


def _check_string_keys(schema: fs.Schema) -> None:
    counts = {
        column.name: len(step.keys)
        for column in schema.columns
        for step in column.steps
        if isinstance(step, fs.Lookup) and step.keys and isinstance(step.keys[0], str)
    }
    if sum(counts.values()) > MAX_STRING_KEYS:
        raise FeatureError(
            f"vocabularies hold {sum(counts.values()):,} text values, a release at most "
            f'{MAX_STRING_KEYS:,}; the largest: {largest(counts)}. Use encoder = "hashed", a higher '
            f"`min_count` or a `max_size` there, or integer ids, which have no such limit."
        )


def _raw_of(
    encoders: Iterable[Declared], dtypes: Mapping[str, fs.RawColumn]
) -> dict[str, fs.RawColumn]:
    """Return the raw columns of encoders, in the order of their first use."""
    names = [name for each in encoders if isinstance(each, Column) for name in each.inputs]
    return {name: dtypes[name] for name in names}


def _in_normal_form(rows: pl.LazyFrame, raw: Iterable[fs.RawColumn]) -> pl.LazyFrame:
    """Return rows in normal form; DataError where a column may hold what has none."""
    found = rows.collect_schema()
    forms: list[pl.Expr] = []
    for each in raw:
        if each.name not in found:
            raise DataError(missing_column(each.name, found.names()))
        form = normal_form(each, found[each.name])
        if form.refusals:
            raise DataError(
                f"column {each.name!r}: found {found[each.name]}, expected {each.dtype} in normal form: "
                f"some values may have none. Bring the rows to it by `normalise` first."
            )
        forms.append(form.value.alias(each.name))
    return rows.with_columns(forms)


def _values(
    encoder: Column, rows: pl.LazyFrame, dtypes: Mapping[str, fs.RawColumn]
) -> pl.LazyFrame:
    """Return the column `value` of all values that are not missing."""
    raw = dtypes[encoder.inputs[0]]
    value = named(raw.name)
    if isinstance(encoder, Codes) and encoder.separator is not None:
        value = split(value, encoder.separator)
    is_list = _is_list(encoder, raw)
    return rows.select((value.explode() if is_list else value).alias("value")).drop_nulls()


def reading_steps(encoder: Column, raw: fs.RawColumn) -> tuple[fs.Step, ...]:
    """Return the steps from the text of a raw column to what the encoder reads; none for other types."""
    steps: list[fs.Step] = []
    if isinstance(encoder, Codes) and encoder.separator is not None:
        steps.append(fs.Split(separator=encoder.separator))
    if isinstance(encoder, Calendar) and raw.dtype == "string":
        steps.append(fs.Time())
    return tuple(steps)


def _is_list(encoder: Column, raw: fs.RawColumn) -> bool:
    """Return whether an encoder gives a list of codes an example."""
    return raw.is_list or (isinstance(encoder, Codes) and encoder.separator is not None)


def _cross(encoder: Declared, columns: Mapping[str, fs.EncodedColumn]) -> fs.Cross:
    cardinalities = tuple(columns[name].cardinality for name in encoder.inputs)
    if math.prod(cardinalities) >= 2**63:
        raise FeatureError(
            f"feature {encoder.name!r}: {' x '.join(f'{each:,}' for each in cardinalities)} "
            f"combinations are more than int64 can number; combine fewer features, or smaller ones."
        )
    return fs.Cross(cardinalities=cardinalities)


def _add(
    name: str, sums: Mapping[str, pl.DataFrame], queue: Sequence[pl.DataFrame]
) -> pl.DataFrame:
    frames = [*([sums[name]] if name in sums else []), *queue]
    if len(frames) == 1:
        return frames[0]
    return pl.concat(frames).group_by("key").agg(pl.exclude("key").sum())


def _column(
    encoder: Declared,
    learned: pl.DataFrame | None,
    columns: Mapping[str, fs.EncodedColumn],
    dtypes: Mapping[str, fs.RawColumn],
) -> fs.EncodedColumn:
    steps, cardinality = encoder.program(learned)
    if isinstance(encoder, Column):
        steps = (*reading_steps(encoder, dtypes[encoder.inputs[0]]), *steps)
    else:
        steps = (_cross(encoder, columns), *steps)
    if isinstance(encoder, Codes) and encoder.length is not None:
        steps = (*steps, fs.Pad(length=encoder.length, keep=encoder.keep))
    return fs.EncodedColumn(
        name=encoder.name,
        encoder=encoder.kind,
        inputs=encoder.inputs,
        steps=steps,
        cardinality=cardinality,
        length=(encoder.length or 1) if isinstance(encoder, Codes) else 1,
        pooling=encoder.pooling if isinstance(encoder, Codes) else "sum",
    )
