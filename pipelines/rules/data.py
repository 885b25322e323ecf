"""Rules of `[data]` and `[features]`: columns, their types, the label, and the rows of each split."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import polars as pl

from headwater.feature_store.encoders import Column, Declared
from headwater.feature_store.errors import InputError, did_you_mean
from headwater.feature_store.fit import check, raw_columns
from headwater.feature_store.schema import Dtype, RawColumn
from headwater.pipelines.data import expressions
from headwater.pipelines.data.table import Table
from headwater.pipelines.job import Data, Job
from headwater.pipelines.job_splits import split_columns
from headwater.pipelines.prepared import SplitName

_NUMBERS: tuple[Dtype, ...] = ("double", "int64")


def known_columns(tables: Iterable[Table], data: Data) -> list[str]:
    """Return the columns that a job may read: those of its table and side tables, and those it derives."""
    return list(dict.fromkeys([*(n for each in tables for n in each.names()), *data.derive]))


def wanted_columns(job: Job) -> dict[str, list[str]]:
    """Return the columns that a job reads, each with the keys that name it."""
    wanted: dict[str, list[str]] = {}
    for encoder in job.features.columns:
        if isinstance(encoder, Column):
            wanted.setdefault(encoder.inputs[0], []).append(f"feature {encoder.name!r}")
    log = job.interactions
    section, keys = job.features, ("label", "user", "item", "time", "group", "weight")
    if log is not None:
        section, keys = log, ("hidden", log.asker_key, "item", "time", "weight")
    for key in keys:
        name = getattr(section, key)
        if name is not None:
            of = "features" if log is None else "interactions"
            wanted.setdefault(name, []).append(f"{of}.{key}")
    for name in split_columns(job.data.split):
        wanted.setdefault(name, []).append("data.split")
    return wanted


def column_needs(job: Job) -> dict[str, str]:
    """Return the columns that a job reads, each with the sentence that says what reads it."""
    return {name: f"({keys[0]} reads it.)" for name, keys in wanted_columns(job).items()}


def absent_columns(job: Job, known: Sequence[str], path: str) -> list[str]:
    """Return a line for each key that names a column that is not among the `known`; `path` is the data's."""
    problems: list[str] = []
    for name, keys in wanted_columns(job).items():
        if name in known:
            continue
        hint = did_you_mean(name, known) or f" Known: {', '.join(known)}."
        problems += [f"{path}: {key}: column {name!r} is not in the data.{hint}" for key in keys]
    return problems


def label_problems(job: Job, known: Collection[str]) -> list[str]:
    """Return a line for each feature that reads the label, or a column from which it comes.

    `known` are the columns of the data. Whoever scores a request does not have the label's columns yet.
    """
    features = job.features
    if not features.label:
        return []
    secret = expressions.sources(features.label, job.data.derive, known) - {*features.known_before}
    problems: list[str] = []
    for encoder in features.columns:
        if not isinstance(encoder, Column):
            continue
        (name,) = encoder.inputs
        if name == features.label:
            problems.append(
                f"features.columns: {encoder.name!r} reads the label {name!r}, which is not known "
                f"when a request is scored; remove it."
            )
        elif shared := sorted(expressions.sources(name, job.data.derive, known) & secret):
            expression = job.data.derive.get(features.label, features.label)
            problems.append(
                f"features.columns: {encoder.name!r} reads {shared[0]!r}, from which the label comes "
                f"({expression}): a model would only repeat it. Remove the feature, or name the column in "
                f"features.known_before where it is known when a request is scored."
            )
    return problems


def column_types(
    encoders: Sequence[Declared], types: Mapping[str, pl.DataType]
) -> tuple[dict[str, RawColumn], list[str]]:
    """Return the raw columns that encoders read, by name, and a line for each that cannot take its own.

    `types` are those of the data; an encoder whose column is not there is passed over.
    """
    raw: dict[str, RawColumn] = {}
    sound: list[Declared] = []
    readers: dict[str, list[Column]] = {}
    problems: list[str] = []
    for encoder in encoders:
        try:
            if isinstance(encoder, Column):
                (name,) = encoder.inputs
                if name not in types:
                    continue
                own = [*readers.get(name, ()), encoder]
                found = _as_numbers(own, raw_columns(own, types))
                check(own, found)
                readers[name] = own
                raw |= found
            else:
                check([*sound, encoder], raw)
        except InputError as error:
            problems.append(str(error))
        else:
            sound.append(encoder)
    try:
        check(sound, raw)  # of all together: names of a release that would meet
    except InputError as error:
        problems.append(str(error))
    return raw, problems


def _as_numbers(readers: Sequence[Column], raw: Mapping[str, RawColumn]) -> dict[str, RawColumn]:
    """Return the one raw column of `readers`, text as numbers where only encoders of numbers read it.

    A value that is no number is then refused by its row, not the column by its type.
    """
    common: list[Dtype] = [
        each for each in _NUMBERS if all(each in reader.accepts for reader in readers)
    ]
    takes_text = any("string" in reader.accepts for reader in readers)
    result = dict(raw)
    for name, column in raw.items():
        if column.dtype == "string" and common and not takes_text:
            result[name] = RawColumn(name=name, dtype=common[0], is_list=column.is_list)
    return result


def class_problems(counts: Mapping[SplitName, tuple[int, int]], path: str, job: Job) -> list[str]:
    """Return a line for each of train and valid that has no rows, or where labels teach, of one class only.

    `counts` are rows and positive rows; `path` is the data's.
    """
    problems: list[str] = []
    for split in ("train", "valid"):
        rows, positives = counts[split]
        if rows == 0:
            problems.append(
                f"{path}: no rows for {split}; expected some. Check `split` and `filter` of [data]."
            )
        elif job.interactions is None and positives in (0, rows):
            problems.append(
                f"{path}: all {rows:,} rows of {split} have the label {int(positives > 0)}; expected both 0 "
                f"and 1, without which no model can be trained or judged. Check the label and `split`."
            )
    return problems
