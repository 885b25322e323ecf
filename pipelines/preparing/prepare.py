"""From raw data to encoded shards: read, split, fit on the training rows, encode.

Memory does not grow with rows: what is held is a few columns of a part of them, the codes of that part, and a
shard of each split; besides, side tables, the values of the vocabularies and, for leave-one-out, two row
numbers a user.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from headwater.feature_store import fit
from headwater.feature_store.errors import DataError
from headwater.feature_store.schema import Schema
from headwater.feature_store.schema_file import write_schema
from headwater.feature_store.shards import ShardSet
from headwater.pipelines.arguments import path_of
from headwater.pipelines.console import note
from headwater.pipelines.data.files import find_files, fingerprint
from headwater.pipelines.data.names import LABEL, ROW, TIME, raw_rows, staged_name
from headwater.pipelines.job import Job, require_job
from headwater.pipelines.job_model import with_columns
from headwater.pipelines.output import publish
from headwater.pipelines.prepared import (
    FORMAT_VERSION,
    ITEMS,
    SAMPLE,
    SCHEMA,
    SPLITS,
    STATISTICS,
    Prepared,
    SplitName,
    Statistics,
    load_prepared,
    write_about,
)
from headwater.pipelines.preparing.core import k_core
from headwater.pipelines.preparing.encoding import encode_splits
from headwater.pipelines.preparing.in_place import in_place
from headwater.pipelines.preparing.items import write_items
from headwater.pipelines.preparing.leaks import leaks
from headwater.pipelines.preparing.splits import Conditions, is_one_of, share
from headwater.pipelines.preparing.staging import Part, Source, Staged, conditions, stage
from headwater.pipelines.rules.data import class_problems

__all__ = ["Prepared", "load_prepared", "prepare"]

SAMPLE_ROWS = 4096


def prepare(job: Job, root: Path | str = Path("prepared")) -> Prepared:
    """Return the prepared data of a job, made now or, where data, features and inputs are equal, before.

    Features are the declared ones, and the columns that the model adds.

    It lies in `root/<key>`, for all jobs that agree in these, whatever their names. Input files count as
    equal by path, size and SHA-256, of files over 16 MiB by path, size and time of change. The folder
    appears when it is complete. Raises JobError, DataError or FeatureError for what is wrong with job or
    data, OutputError where the disk is full.
    """
    job = with_columns(require_job(job, "prepare: job"))
    root = path_of(root, "prepare: root")
    created = _created(job)
    key = hashlib.sha256(json.dumps(created, sort_keys=True).encode()).hexdigest()[:16]
    path = root / key
    if path.exists():
        prepared = load_prepared(path)
        note(f"prepared data is there: {path}")
        return prepared
    source = Source(job)
    with publish(path) as folder:
        _write(source, folder, created)
        if _created(job) != created:
            raise DataError(
                f"{source.table.path}: changed while it was read. Prepare again when nothing writes to it."
            )
    return load_prepared(path)


def _created(job: Job) -> dict[str, Any]:
    """Return what decides the content of prepared data, as JSON."""
    data = job.data
    given = [data.source, data.train, data.valid, data.test, *(join.path for join in data.join)]
    given += [] if data.items is None else [data.items.path]
    files = [file for patterns in given if patterns is not None for file in find_files(patterns)]
    log = job.interactions
    return {
        "format_version": FORMAT_VERSION,
        # The sampling rate changes the release's probabilities and no row.
        "data": data.model_dump(mode="json", exclude={"negative_rate"}),
        "features": job.features.model_dump(mode="json"),
        # Evaluation has the rest.
        **({} if log is None else {"counts": [log.min_user_count, log.min_item_count]}),
        "inputs": [fingerprint(file) for file in files],
    }


def _write(source: Source, folder: Path, created: Mapping[str, Any]) -> None:
    """Write everything into an empty folder."""
    staged = in_place(source)
    if staged is not None:
        try:
            _write_staged(source, staged, folder, created)
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
            # Staging reads with care: it takes what Polars cannot read, or names what is wrong.
            note(f"{source.table.path}: not readable in place; a copy is made first")
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        else:
            return
    copy = folder / "staged"
    staged = stage(source, copy)
    _write_staged(source, staged, folder, created)
    shutil.rmtree(copy)


def _write_staged(source: Source, staged: Staged, folder: Path, created: Mapping[str, Any]) -> None:
    log = source.job.interactions
    if log is not None:
        staged = k_core(staged, log)
    rule = conditions(source, staged)
    counts = [_count(part, rule) for part in staged.parts]
    totals: dict[SplitName, tuple[int, int]] = {
        split: (sum(part[split][0] for part in counts), sum(part[split][1] for part in counts))
        for split in rule
    }
    if problems := class_problems(totals, source.table.path, source.job):
        raise DataError("\n".join(problems))
    present: tuple[SplitName, ...] = tuple(
        split for split in SPLITS if split in totals and totals[split][0]
    )
    for split in rule.keys() - present:
        note(f"{source.table.path}: no rows for {split}; there will be no {split} metrics.")
    note(f"fit {len(source.job.features.columns)} features on {totals['train'][0]:,} rows")
    train, together = _chosen(staged, rule, "train", [part["train"][0] for part in counts])
    raw = [raw_rows(rows, source.raw) for rows in (*train, together)]
    schema = fit.fit(
        source.job.features.columns, raw[:-1], source.raw, together=raw[-1], workspace=folder
    )
    write_schema(schema, folder / SCHEMA)
    chosen: Conditions = {split: rule[split] for split in present}
    statistics = encode_splits(staged, chosen, schema, folder, created, time=log is not None)
    if log is not None:
        shards: dict[SplitName, ShardSet] = {
            split: ShardSet.open(folder / split, schema, verify=False) for split in present
        }
        if problems := leaks(shards, schema):
            raise DataError("\n".join(f"{source.table.path}: {each}" for each in problems))
        write_items(folder / ITEMS, schema, shards["train"], source.job.data)
    times = time_range_ms(train, in_ms=source.is_time_in_ms)
    (folder / STATISTICS).write_bytes(msgspec.json.encode(Statistics(statistics, times)))
    valid, _ = _chosen(staged, rule, "valid", [part["valid"][0] for part in counts])
    _sample(valid, schema, source.job.features.label).write_parquet(folder / SAMPLE)
    write_about(folder, present, created)


def _count(part: Part, rule: Conditions) -> dict[SplitName, tuple[int, int]]:
    """Return the rows and the positive rows of each split in a part."""
    positive = pl.col(LABEL) == 1
    rows = [chosen.sum().alias(f"rows.{split}") for split, chosen in rule.items()]
    positives = [(chosen & positive).sum().alias(f"ones.{split}") for split, chosen in rule.items()]
    found = part.rows.select(*rows, *positives).collect(engine="streaming").row(0, named=True)
    return {split: (found[f"rows.{split}"], found[f"ones.{split}"]) for split in rule}


def _chosen(
    staged: Staged, rule: Conditions, split: SplitName, counts: Sequence[int]
) -> tuple[list[pl.LazyFrame], pl.LazyFrame]:
    """Return the rows of one split as fragments, and all in one frame; `counts` has those of each part.

    Where all rows are of the split, nothing is tested, and where none is, nothing is read.
    """
    fragments: list[pl.LazyFrame] = []
    frames: list[pl.LazyFrame] = []
    remaining = iter(counts)
    for file in staged.files:
        own = [next(remaining) for _ in file.parts]
        for part, count in zip(file.parts, own, strict=True):
            if count:
                every = count == part.num_rows
                fragments.append(part.rows if every else part.rows.filter(rule[split]))
        if sum(own):
            every = sum(own) == sum(part.num_rows for part in file.parts)
            frames.append(file.rows if every else file.rows.filter(rule[split]))
    return fragments, pl.concat(frames)


def _sample(fragments: Sequence[pl.LazyFrame], schema: Schema, label: str) -> pl.DataFrame:
    """Return raw rows and label of the smallest hashes: the same for the same data, and from all of it."""
    smallest = pl.DataFrame()
    for rows in fragments:
        found = rows.select(ROW, share(0).alias("share")).collect(engine="streaming")
        smallest = pl.concat([smallest, found]) if smallest.height else found
        smallest = smallest.bottom_k(SAMPLE_ROWS, by=["share", ROW])
    chosen = is_one_of(smallest.get_column(ROW).sort().to_numpy())
    names = {column.name: staged_name(column.name) for column in schema.raw}
    names |= {label: LABEL} if label else {}
    # A column at a time: of all columns at once a large row group is more than is held elsewhere.
    return pl.DataFrame(
        [
            pl.concat(
                rows.filter(chosen).select(staged).collect(engine="streaming") for rows in fragments
            )
            .to_series()
            .alias(name)
            for name, staged in names.items()
        ]
    )


def time_range_ms(parts: Sequence[pl.LazyFrame], *, in_ms: bool) -> tuple[int, int] | None:
    """Return first and last event time of staged rows in ms, None where the job names none.

    The unit of times not known to be `in_ms` follows from their size.
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
