"""Validation of a job against its data, and what the model and the release will see.

Every problem is looked for before any is reported: first the declaration, then files and columns, then
each value, then the splits. Values are read in chunks; only labels and what the split needs are written,
to a temporary folder.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import polars as pl

from headwater.feature_store import fit
from headwater.feature_store.encoders import Calendar, Codes, Column
from headwater.feature_store.errors import InputError, JobError
from headwater.feature_store.readings import Fail, read
from headwater.feature_store.schema import INT64_MIN
from headwater.pipelines.console import table
from headwater.pipelines.data import columns
from headwater.pipelines.data.files import find_files
from headwater.pipelines.data.names import GROUP, LABEL, staged_name
from headwater.pipelines.data.rows import Rows
from headwater.pipelines.data.source_file import SourceFile
from headwater.pipelines.data.table import Table
from headwater.pipelines.job import Job
from headwater.pipelines.job_interactions import InteractionLog
from headwater.pipelines.job_model import job_model
from headwater.pipelines.job_tuning import Range, choice_text
from headwater.pipelines.prepared import SplitName, time_text
from headwater.pipelines.preparing import staging
from headwater.pipelines.preparing.core import k_core
from headwater.pipelines.preparing.prepare import time_range_ms
from headwater.pipelines.preparing.staging import Source
from headwater.pipelines.ranks import find_ranks
from headwater.pipelines.rules.data import (
    absent_columns,
    class_problems,
    column_needs,
    column_types,
    known_columns,
    label_problems,
)
from headwater.pipelines.rules.release import context_problems, opset_problems
from headwater.pipelines.rules.settings import setting_problems
from headwater.pipelines.rules.tuning import tuning_problems

T = TypeVar("T")


@dataclass(slots=True)
class Validation:
    """Findings about a job; tables are lists of rows by the names of their columns."""

    problems: list[str] = field(default_factory=list)
    features: list[dict[str, Any]] = field(default_factory=list)
    inputs: list[dict[str, Any]] = field(default_factory=list)
    """Raw columns that the release takes in: name, dtype, list, role and where it comes from."""
    splits: list[dict[str, Any]] = field(default_factory=list)
    model: dict[str, Any] = field(default_factory=dict)
    tune: list[dict[str, Any]] = field(default_factory=list)
    """Keys that `[tune]` searches, and over what."""
    notes: list[str] = field(default_factory=list)

    def attempt(self, work: Callable[[], T]) -> T | None:
        """Return what `work` gives, or None and one more problem."""
        try:
            return work()
        except InputError as error:
            self.problems += [line for line in str(error).splitlines() if line not in self.problems]
            return None

    def require_none(self, source: object) -> None:
        """Raise JobError where there are problems, a line for each; `source` names the job."""
        if self.problems:
            raise JobError("\n".join(f"{source}: {problem}" for problem in self.problems))

    def as_dict(self, job: Path) -> dict[str, Any]:
        """Return the result as one JSON object."""
        return {
            "job": job,
            "features": self.features,
            "inputs": self.inputs,
            "splits": self.splits,
            "model": self.model,
            "tune": self.tune,
            "notes": self.notes,
        }

    def text(self, job: Path) -> str:
        """Return the result for a reader."""
        settings = [{"setting": key, "value": _plain(value)} for key, value in self.model.items()]
        parts = [
            f"{job}: valid",
            table("Features", self.features),
            *([table("What the release takes in", self.inputs)] if self.inputs else []),
            table("Splits", self.splits),
            table("Model", settings),
        ]
        if self.tune:
            parts.append(table("What `headwater tune` searches", self.tune))
        return "\n\n".join(parts) + "".join(f"\n\nNote: {note}" for note in self.notes)


def check_job(job: Job) -> Validation:
    """Return what is wrong with a job and its data, or else what the model and the release will see."""
    ranks = find_ranks()
    result = Validation([*setting_problems(job, ranks), *tuning_problems(job, ranks)])
    _describe_model(job, result)
    result.tune = _searched(job)
    _check_columns(job, result)
    result.problems += _context_problems(job)
    if not result.problems:
        source = result.attempt(lambda: staging.Source(job))
        if source is not None:
            _describe(job, source, result)
            _check_values(source, result)
        if not result.problems:
            _check_splits(job, result)
    return result


def require_sound(job: Job, source: object = "job") -> None:
    """Raise JobError for what is wrong with `[model]`, `[train]` and `[export]`: no data is needed to tell.

    Preparing and training may take hours; whoever begins them asks this first. `source` names the job.
    """
    if problems := [*setting_problems(job, find_ranks()), *_context_problems(job)]:
        raise JobError("\n".join(f"{source}: {problem}" for problem in problems))


def _context_problems(job: Job) -> list[str]:
    """Return what is wrong with `export.context`, by the columns that features declare to read."""
    columns = (each for each in job.features.columns if isinstance(each, Column))
    read = list(dict.fromkeys(each.inputs[0] for each in columns))
    return context_problems(job.export.context, read)


def _describe_model(job: Job, result: Validation) -> None:
    """Fill in the model's settings, with their defaults."""
    found = result.attempt(lambda: job_model(job))
    if found is not None:
        result.model = {"type": job.model.type, **found[1].model_dump(mode="json")}


def _searched(job: Job) -> list[dict[str, Any]]:
    """Return the keys of `[tune]` with their values as text."""
    found: list[dict[str, Any]] = []
    for key, values in () if job.tune is None else job.tune.keys.items():
        shown = values.text if isinstance(values, Range) else ", ".join(map(choice_text, values))
        found.append({"key": key, "values": shown})
    return found


def _check_columns(job: Job, result: Validation) -> None:
    """Check files, columns and types, and what the types ask of the release."""
    data = job.data
    files: list[SourceFile] = []
    for patterns in (data.source, data.train, data.valid, data.test):
        for pattern in _list(patterns):
            files += result.attempt(lambda pattern=pattern: find_files(pattern, data.csv)) or []
    tables = [
        result.attempt(lambda join=join: _readable(Table(find_files(join.path, join.csv))))
        for join in data.join
    ]
    sides = [each for each in tables if each is not None]
    if not files or len(sides) < len(tables):
        return
    table = result.attempt(lambda: _readable(Table(files)))
    if table is None:
        return
    known = known_columns([table, *sides], data)
    result.problems += absent_columns(job, known, table.path)
    wanted = {name: need for name, need in column_needs(job).items() if name in known}
    dtypes = staging.declared_dtypes(job.features.columns)
    rows = result.attempt(lambda: Rows(table, sides, data, wanted, dtypes=dtypes))
    if rows is None:
        return
    result.problems += label_problems(job, known)
    raw, problems = column_types(job.features.columns, rows.schema)
    result.problems += problems
    result.problems += opset_problems(
        job.export.opset,
        {
            each.name: fit.reading_steps(each, raw[each.inputs[0]])
            for each in job.features.columns
            if isinstance(each, Column) and each.inputs[0] in raw
        },
    )


def _readable(table: Table) -> Table:
    """Return a table whose columns have been looked up; DataError where its files cannot be read."""
    table.names()
    return table


def _describe(job: Job, source: Source, result: Validation) -> None:
    """Fill in features and, for a model that a release can hold, its inputs."""
    for encoder in job.features.columns:
        column = source.raw[encoder.inputs[0]] if isinstance(encoder, Column) else None
        settings = encoder.model_dump(
            exclude_defaults=True, exclude={"name", "encoder", "column", "columns", "length"}
        )
        result.features.append(
            {
                "feature": encoder.name,
                "reads": " x ".join(encoder.inputs),
                "dtype": "codes" if column is None else column.dtype,
                "encoder": encoder.kind,
                "length": (encoder.length if isinstance(encoder, Codes) else None) or "",
                "settings": ", ".join(f"{k} {_plain(v)}" for k, v in settings.items()),
            }
        )
    if job.interactions is not None:
        return
    table_names = source.table.names()
    for name, column in source.raw.items():
        derived = name in job.data.derive
        result.inputs.append(
            {
                "input": name,
                "dtype": column.dtype,
                "shape": "list" if column.is_list else "scalar",
                "role": "context" if name in job.export.context else "candidate",
                "from": "derived" if derived else "data" if name in table_names else "join",
            }
        )
    for name in (row["input"] for row in result.inputs if row["from"] == "derived"):
        result.notes.append(
            f"{name!r} is derived and a feature, so it is a raw input of the release: callers of the service "
            f"send it, computed as {job.data.derive[name]} (`headwater score` does so by itself). An encoder "
            f"would be in the graph."
        )


def _check_values(source: Source, result: Validation) -> None:
    """Read every value once; report the first wrong one of each column."""
    name = source.job.features.label
    checks: dict[str, Callable[[pl.DataFrame, Fail], pl.DataFrame]] = {
        column: lambda frame, fail, raw=raw: columns.normal(frame, {raw.name: raw}, fail)
        for column, raw in source.raw.items()
    }
    if name:
        checks[name] = lambda frame, fail: read(
            frame, [columns.label_column(name, frame.schema[name])], fail
        )
    # What a fit learns of these can refuse them, and is small.
    calendars = [each for each in source.job.features.columns if isinstance(each, Calendar)]
    learned: list[fit.Partial] = []
    for chunk, frame in _read(source, result):
        fail = staging.failing(source, chunk, frame)
        normal: dict[str, pl.DataFrame] = {}
        for column, check in list(checks.items()):
            found = result.attempt(lambda check=check: check(frame, fail))  # noqa: B023
            if found is None:
                del checks[column]
            else:
                normal[column] = found
        learned += [
            fit.partial([each], normal[each.inputs[0]].lazy(), source.raw)
            for each in calendars
            if each.inputs[0] in normal
        ]
    result.attempt(lambda: fit.finish(calendars, calendars, fit.merge(learned), source.raw))


def _read(source: Source, result: Validation) -> Iterable[Any]:
    """Yield the chunks of a source; a file that cannot be read on is a problem and the end."""
    chunks = source.rows.chunks()
    while (chunk := result.attempt(lambda: next(chunks, None))) is not None:
        yield chunk


def _check_splits(job: Job, result: Validation) -> None:
    """Count the rows of each split, and what they hold: positives, or of a log users and items.

    A click model needs both classes to train and to be judged.
    """
    log = job.interactions
    if log is None:
        # One feature stands for all: what matters here are label and split.
        first = next(each for each in job.features.columns if isinstance(each, Column))
        features = job.features.model_copy(update={"columns": [first]})
        job = job.model_copy(update={"features": features})
    with tempfile.TemporaryDirectory(prefix="headwater-") as folder:
        source = staging.Source(job)
        staged = result.attempt(lambda: staging.stage(source, Path(folder) / "staged"))
        if staged is not None and log is not None:
            staged = result.attempt(lambda staged=staged: k_core(staged, log))
        if staged is None:
            return
        counts: dict[SplitName, tuple[int, int]] = {}
        for split, condition in staging.conditions(source, staged).items():
            counted = pl.concat(file.rows for file in staged.files).filter(condition)
            times = time_range_ms([counted], in_ms=source.is_time_in_ms)
            first, last = map(time_text, times) if times else ("", "")
            label = pl.col(LABEL).cast(pl.Int64)
            rows, positives = counted.select(pl.len(), label.sum()).collect().row(0)
            if log is None:
                rate = round(positives / rows, 5) if rows else 0.0
                held = {"positives": positives, "rate": rate}
            else:
                held = _distinct(counted, log)
            result.splits.append(
                {
                    "split": split,
                    "rows": rows,
                    **held,
                    "first (UTC)": first,
                    "last (UTC)": last,
                }
            )
            counts[split] = rows, positives
        result.problems += class_problems(counts, source.table.path, job)


def _distinct(rows: pl.LazyFrame, log: InteractionLog) -> dict[str, int]:
    """Return how many users or baskets and how many items staged rows have."""
    asker, item = pl.col(GROUP), pl.col(staged_name(log.item))
    counts = {
        f"{log.asker_key}s": asker.filter(asker != INT64_MIN).n_unique(),
        "items": item.drop_nulls().n_unique(),
    }
    return rows.select(**counts).collect().row(0, named=True)


def _list(value: str | list[str] | None) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else value


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_plain, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else f"{value}"
