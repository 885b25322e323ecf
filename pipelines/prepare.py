"""From raw data to encoded shards: read, split, fit on the training rows, encode.

Memory does not grow with rows: sources are read in chunks, staged, and encoded in batches. What it holds
besides are side tables, the values of the vocabularies and, for leave-one-out, two row numbers a user.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from headwater.feature_store import fit
from headwater.feature_store.errors import DataError
from headwater.feature_store.polars_compiler import encode, missing_and_unknown
from headwater.feature_store.schema import Schema, write_schema
from headwater.feature_store.shards import Arrays, ShardWriter
from headwater.pipelines.console import Progress, note
from headwater.pipelines.data.prepared import (
    FORMAT_VERSION,
    SAMPLE,
    SCHEMA,
    SPLITS,
    STATISTICS,
    ColumnCounts,
    Prepared,
    SplitName,
    SplitStatistics,
    Statistics,
    load_prepared,
    write_about,
)
from headwater.pipelines.data.rows import ROW
from headwater.pipelines.data.sources import find_files, fingerprint
from headwater.pipelines.data.splits import uniform
from headwater.pipelines.data.staging import (
    GROUP,
    LABEL,
    TIME,
    WEIGHT,
    Source,
    conditions,
    stage,
)
from headwater.pipelines.job import Job
from headwater.pipelines.output import publish

__all__ = ["Prepared", "load_prepared", "prepare"]

SAMPLE_ROWS = 4096
BATCH_ROWS = 65_536

MISSING = "__missing."
"""Before the name of a dense feature: where it has no value (Boolean)."""


def prepare(job: Job, root: Path = Path("prepared")) -> Prepared:
    """Return the prepared data of a job, made now or, where data, features and inputs are equal, before.

    It lies in `root/<name>/<key>`. Input files count as equal by path, size and SHA-256, of files over 16 MiB
    by path, size and time of change. The folder appears when it is complete. Raises JobError, DataError or
    FeatureError for what is wrong with job or data, OutputError where the disk is full.
    """
    created = _created(job)
    key = hashlib.sha256(json.dumps(created, sort_keys=True).encode()).hexdigest()[:16]
    path = root / job.name / key
    if path.exists():
        prepared = load_prepared(path)
        note(f"prepared data is there: {path}")
        return prepared
    source = Source(job)
    with publish(path) as folder:
        _write(source, folder, created)
    return load_prepared(path)


def _created(job: Job) -> dict[str, Any]:
    """Return what decides the content of prepared data, as JSON."""
    data = job.data
    given = [data.source, data.train, data.valid, data.test, *(join.path for join in data.join)]
    files = [file for patterns in given if patterns is not None for file in find_files(patterns)]
    return {
        "format_version": FORMAT_VERSION,
        # The sampling rate changes the release's probabilities and no row.
        "data": data.model_dump(mode="json", exclude={"negative_rate"}),
        "features": job.features.model_dump(mode="json"),
        "inputs": [fingerprint(file) for file in files],
    }


def _write(source: Source, folder: Path, created: Mapping[str, Any]) -> None:
    """Write everything into an empty folder."""
    staged = folder / "staged"
    parts = stage(source, staged)
    chosen = conditions(source, parts)
    counts: dict[SplitName, tuple[int, int]] = {
        split: _count(parts, condition) for split, condition in chosen.items()
    }
    _check_counts(counts, source.table.path)
    present: tuple[SplitName, ...] = tuple(
        split for split in SPLITS if split in counts and counts[split][0]
    )
    for split in chosen.keys() - present:
        note(f"{source.table.path}: no rows for {split}; there will be no {split} metrics.")
    note(f"fit {len(source.job.features.columns)} features on {counts['train'][0]:,} rows")
    train = [pl.scan_parquet(part).filter(chosen["train"]) for part in parts]
    schema = fit.fit(source.job.features.columns, train, source.raw)
    write_schema(schema, folder / SCHEMA)
    statistics: dict[SplitName, SplitStatistics] = {}
    with Progress("encode", total=sum(count for count, _ in counts.values()), unit="rows") as bar:
        for split in present:
            rows = [pl.scan_parquet(part).filter(chosen[split]) for part in parts]
            statistics[split] = _encode(rows, schema, folder / split, created, bar)
    times = time_range_ms(train, in_ms=source.is_time_in_ms)
    (folder / STATISTICS).write_bytes(msgspec.json.encode(Statistics(statistics, times)))
    sample = _sample(parts, chosen["valid"], schema)
    sample.rename({LABEL: source.job.features.label}).write_parquet(folder / SAMPLE)
    for part in parts:
        part.unlink()
    staged.rmdir()
    write_about(folder, present, created)


def _count(parts: Sequence[Path], condition: pl.Expr) -> tuple[int, int]:
    """Return the rows and the positive rows of a split."""
    rows = positives = 0
    for part in parts:
        counted = pl.scan_parquet(part).filter(condition)
        found = counted.select(pl.len(), pl.col(LABEL).cast(pl.Int64).sum()).collect().row(0)
        rows, positives = rows + found[0], positives + found[1]
    return rows, positives


def _check_counts(counts: Mapping[SplitName, tuple[int, int]], path: str) -> None:
    for split in SPLITS[:2]:
        rows, positives = counts[split]
        if rows == 0:
            raise DataError(
                f"{path}: no rows for {split}; expected some. Check `split` and `filter` of [data]."
            )
        if positives in (0, rows):
            only = 1 if positives else 0
            raise DataError(
                f"{path}: all {rows:,} rows of {split} have the label {only}; expected both 0 and 1, without "
                f"which no model can be trained or judged. Check the label and `split`."
            )


def _encode(
    rows: Sequence[pl.LazyFrame],
    schema: Schema,
    folder: Path,
    created: Mapping[str, Any],
    bar: Progress,
) -> SplitStatistics:
    """Write the shards of one split, a part at a time; the expressions and their lookups are built once."""
    staged = rows[0].collect_schema()
    extra = [name for name in (LABEL, WEIGHT, GROUP) if name in staged]
    dense = [
        pl.col(column.inputs[0]).is_null().alias(f"{MISSING}{column.name}")
        for column in schema.dense
    ]
    encoded = [*encode(schema), *extra, *dense]
    counting = [
        *missing_and_unknown(schema),
        *(
            pl.col(f"{MISSING}{column.name}").sum().alias(f"{column.name}.missing")
            for column in schema.dense
        ),
    ]
    counting += [pl.len().alias("rows"), pl.col(LABEL).sum().cast(pl.Int64).alias("positives")]
    total: dict[str, int] = {}
    weight, group = WEIGHT in extra, GROUP in extra
    with ShardWriter(folder, schema, weight=weight, group=group, created=created) as writer:

        def take(batch: pl.DataFrame) -> None:
            writer.write(_arrays(batch, schema))
            for name, count in batch.select(counting).row(0, named=True).items():
                total[name] = total.get(name, 0) + count
            bar.advance(batch.height)

        for part in rows:
            # Not `collect_batches`: what it has ready waits without a limit.
            part.select(encoded).sink_batches(take, chunk_size=BATCH_ROWS, engine="streaming")
    columns = {
        column.name: ColumnCounts(
            total[f"{column.name}.missing"], total.get(f"{column.name}.unknown", 0)
        )
        for column in schema.columns
    }
    rate = total["positives"] / total["rows"]
    return SplitStatistics(total["rows"], total["positives"], rate, columns)


def _arrays(batch: pl.DataFrame, schema: Schema) -> Arrays:
    """Return encoded columns as the matrices of a shard."""
    codes = np.empty((batch.height, schema.width), np.int32)
    for column, slots in schema.slots():
        codes[:, slots] = batch.get_column(column.name).to_numpy().reshape(batch.height, -1)
    dense = np.empty((batch.height, len(schema.dense)), np.float32)
    for index, column in enumerate(schema.dense):
        dense[:, index] = batch.get_column(column.name).to_numpy()
    label, weight, group = (
        batch.get_column(name).to_numpy() if name in batch.columns else None
        for name in (LABEL, WEIGHT, GROUP)
    )
    assert label is not None
    return Arrays(codes, dense, label, weight, group)


def _sample(parts: list[Path], condition: pl.Expr, schema: Schema) -> pl.DataFrame:
    """Return the rows whose hash is smallest: the same for the same data, and from all of it."""
    numbers: NDArray[np.int64] = np.empty(0, np.int64)
    for part in parts:
        found = pl.scan_parquet(part).filter(condition).select(ROW).collect().to_series().to_numpy()
        numbers = np.concatenate([numbers, found])
        numbers = numbers[np.argsort(uniform(numbers, 0), kind="stable")[:SAMPLE_ROWS]]
    chosen = pl.Series(np.sort(numbers)).implode()
    names = [*(column.name for column in schema.raw), LABEL]
    rows = [pl.scan_parquet(part).filter(pl.col(ROW).is_in(chosen)).select(names) for part in parts]
    return pl.concat([part.collect(engine="streaming") for part in rows])


def time_range_ms(parts: Sequence[pl.LazyFrame], *, in_ms: bool) -> tuple[int, int] | None:
    """Return first and last event time of staged rows in ms, None where the job names none.

    The unit of times not known to be `in_ms` is told from their size.
    """
    if TIME not in parts[0].collect_schema():
        return None
    ends = [part.select(pl.col(TIME).min(), pl.col(TIME).max().alias("last")) for part in parts]
    first, last = (
        pl.concat([end.collect(engine="streaming") for end in ends])
        .select(pl.col(TIME).min(), pl.col("last").max())
        .row(0)
    )
    if first is None:
        return None
    if in_ms:
        return first, last
    largest = max(abs(first), abs(last))
    # Seconds stay below 1e11 until the year 5138, milliseconds below 1e14, microseconds below 1e17.
    for limit, to_ms in ((1e11, 1000), (1e14, 1), (1e17, 1 / 1000)):
        if largest < limit:
            return int(first * to_ms), int(last * to_ms)
    return int(first) // 10**6, int(last) // 10**6
