"""Validation of a job against its data, and what the model and the release will see.

Every problem is looked for before any is reported: first the declaration, then files and columns, then
each value, then the splits. Values are read in chunks; only labels and what the split needs are written,
to a temporary folder.
"""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from headwater.feature_store.errors import InputError, JobError

if TYPE_CHECKING:
    import polars as pl

    from headwater.feature_store.encoders import Declared
    from headwater.feature_store.schema import RawColumn
    from headwater.pipelines.job import Job
    from headwater.pipelines.preparing.staging import Source

T = TypeVar("T")


@dataclass(slots=True)
class Validation:
    """What was found out about a job; tables are lists of rows by the names of their columns."""

    problems: list[str] = field(default_factory=list)
    features: list[dict[str, Any]] = field(default_factory=list)
    inputs: list[dict[str, Any]] = field(default_factory=list)
    """Raw columns that the release takes in: name, dtype, list, role and where it comes from."""
    splits: list[dict[str, Any]] = field(default_factory=list)
    model: dict[str, Any] = field(default_factory=dict)
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
            "notes": self.notes,
        }

    def text(self, job: Path) -> str:
        """Return the result for a reader."""
        settings = [{"setting": key, "value": _plain(value)} for key, value in self.model.items()]
        parts = [
            f"{job}: valid",
            _table("Features", self.features),
            _table("What the release takes in", self.inputs),
            _table("Splits", self.splits),
            _table("Model", settings),
        ]
        return "\n\n".join(parts) + "".join(f"\n\nNote: {note}" for note in self.notes)


def check_job(job: Job) -> Validation:
    """Return what is wrong with a job and its data, or else what the model and the release will see."""
    result = Validation()
    _check_model(job, result)
    _check_training(job, result)
    _check_columns(job, result)
    _check_context(job, result)
    if not result.problems:
        from headwater.pipelines.preparing.staging import Source

        source = result.attempt(lambda: Source(job))
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
    result = Validation()
    _check_model(job, result)
    _check_training(job, result)
    _check_context(job, result)
    result.require_none(source)


def _check_model(job: Job, result: Validation) -> None:
    """Check the model's settings, and that it asks for features that there are."""
    from headwater.pipelines.job import read_model
    from headwater.pipelines.resolved import how_tables_learn

    try:
        model_class, config = read_model(job.model.type, job.model.settings())
    except JobError as error:
        result.problems += str(error).splitlines()
        return
    result.model = {"type": job.model.type, **config.model_dump(mode="json")}
    # fbgemm's rule; asking it would take seconds, for TorchRec to be imported.
    dim = config.embedding_dim
    if how_tables_learn(job)[0] == "fused" and dim > 1 and dim % 4:
        result.problems.append(
            f"model.embedding_dim: {dim} is not a multiple of 4, as fused tables need. "
            f"Set {dim + 4 - dim % 4}, or train.sparse.mode = 'lazy'."
        )
    names = [encoder.name for encoder in job.features.columns]
    for slot, wanted in model_class.slots(config).items():
        for name in wanted.columns or ():
            if name not in names:
                key = next((k for k, v in config if isinstance(v, tuple) and name in v), slot)
                result.problems.append(
                    f"model.{key}: {name!r} is not a feature.{_near(name, names)}"
                )


def _check_training(job: Job, result: Validation) -> None:
    """Check that the settings can train on this machine."""
    from headwater.pipelines.ranks import find_ranks
    from headwater.pipelines.training.settings import check_settings

    result.attempt(lambda: check_settings(job, find_ranks()))


def _check_columns(job: Job, result: Validation) -> None:
    """Check files, columns and types."""
    from headwater.feature_store.encoders import Column
    from headwater.feature_store.fit import check, raw_columns
    from headwater.pipelines.data.files import find_files
    from headwater.pipelines.data.rows import Rows
    from headwater.pipelines.data.table import Table
    from headwater.pipelines.preparing.staging import declared_dtypes, readable

    data = job.data
    files: list[Any] = []
    for patterns in (data.source, data.train, data.valid, data.test):
        for pattern in _list(patterns):
            files += result.attempt(lambda pattern=pattern: find_files(pattern, data.csv)) or []
    sides = [
        result.attempt(lambda join=join: Table(find_files(join.path, join.csv)).names())
        for join in data.join
    ]
    if result.problems and (not files or None in sides):
        return
    table = Table(files)
    names = result.attempt(table.names)
    if names is None:
        return
    joined = (name for side in sides for name in side or ())
    known = list(dict.fromkeys([*names, *joined, *data.derive]))
    wanted: dict[str, str] = {}
    for name, reason in _wanted(job):
        if name in known:
            wanted.setdefault(name, f"({reason} needs it.)")
        else:
            result.problems.append(
                f"{table.path}: {reason}: column {name!r} is not in the data.{_near(name, known)}"
            )
    dtypes = declared_dtypes(job.features.columns)
    rows = result.attempt(lambda: Rows(table, data, wanted, dtypes=dtypes))
    if rows is None:
        return
    raw: dict[str, RawColumn] = {}
    sound: list[Declared] = []
    for encoder in job.features.columns:
        if isinstance(encoder, Column) and encoder.inputs[0] not in wanted:
            continue
        found = result.attempt(lambda each=encoder: raw_columns([each], rows.schema))
        if found is None:
            continue
        found = readable([encoder], found)
        merged = {**found, **raw} if not isinstance(encoder, Column) else {**raw, **found}
        sound.append(encoder)
        before = len(result.problems)
        result.attempt(lambda each=tuple(sound), known=merged: check(each, known))
        if len(result.problems) > before:
            sound.pop()
        raw = merged


def _wanted(job: Job) -> Iterable[tuple[str, str]]:
    """Yield each column that the job reads, with the key that reads it."""
    from headwater.feature_store.encoders import Column
    from headwater.pipelines.preparing import splits

    for encoder in job.features.columns:
        if isinstance(encoder, Column):
            yield encoder.inputs[0], f"feature {encoder.name!r}"
    for key in ("label", "user", "item", "time", "group", "weight"):
        name = getattr(job.features, key)
        if name is not None:
            yield name, f"features.{key}"
    for name in splits.columns(job.data.split).values():
        yield name, "data.split"


def _check_context(job: Job, result: Validation) -> None:
    from headwater.feature_store.encoders import Column

    columns = (each for each in job.features.columns if isinstance(each, Column))
    read = list(dict.fromkeys(column.inputs[0] for column in columns))
    result.problems += context_problems(job.export.context, read)


def context_problems(context: Iterable[str], read: list[str]) -> list[str]:
    """Return a line for each entry of `export.context` that is no raw column which features read."""
    return [
        f"export.context: {name!r} is no raw column of a feature.{_near(name, read)}"
        for name in context
        if name not in read
    ]


def _describe(job: Job, source: Source, result: Validation) -> None:
    """Fill in features and inputs."""
    from headwater.feature_store.encoders import Codes, Column

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
    from headwater.feature_store import fit
    from headwater.feature_store.encoders import Calendar
    from headwater.pipelines.data import columns
    from headwater.pipelines.preparing import staging

    name = source.job.features.label
    checks: dict[str, Callable[[pl.DataFrame, columns.Fail], pl.DataFrame]] = {
        column: lambda frame, fail, raw=raw: columns.normal(frame, {raw.name: raw}, fail)
        for column, raw in source.raw.items()
    }
    checks[name] = lambda frame, fail: columns.evaluate(
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
    """Count rows and positives of each split; a model needs both classes to train and to be judged."""
    import polars as pl

    from headwater.feature_store.encoders import Column
    from headwater.pipelines.data.columns import LABEL
    from headwater.pipelines.prepared import time_text
    from headwater.pipelines.preparing import staging
    from headwater.pipelines.preparing.prepare import time_range_ms

    # One feature stands for all: what matters here are label and split.
    first = next(each for each in job.features.columns if isinstance(each, Column))
    slim = job.model_copy(update={"features": job.features.model_copy(update={"columns": [first]})})
    with tempfile.TemporaryDirectory(prefix="headwater-") as folder:
        source = staging.Source(slim)
        staged = result.attempt(lambda: staging.stage(source, Path(folder) / "staged"))
        if staged is None:
            return
        for split, condition in staging.conditions(source, staged).items():
            counted = pl.concat(file.rows for file in staged.files).filter(condition)
            times = time_range_ms([counted], in_ms=source.is_time_in_ms)
            first, last = map(time_text, times) if times else ("", "")
            label = pl.col(LABEL).cast(pl.Int64)
            rows, positives = counted.select(pl.len(), label.sum()).collect().row(0)
            rate = round(positives / rows, 5) if rows else 0.0
            result.splits.append(
                {
                    "split": split,
                    "rows": rows,
                    "positives": positives,
                    "rate": rate,
                    "first (UTC)": first,
                    "last (UTC)": last,
                }
            )
            if split == "test":
                continue
            if rows == 0:
                result.problems.append(
                    f"{source.table.path}: no rows for {split}; check `split` and `filter`."
                )
            elif positives in (0, rows):
                result.problems.append(
                    f"{source.table.path}: all {rows:,} rows of {split} have the label "
                    f"{int(positives > 0)}; expected both 0 and 1. Check the label and `split`."
                )


def _near(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(known)}."


def _list(value: str | list[str] | None) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else value


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_plain, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else f"{value}"


def _table(title: str, rows: list[dict[str, Any]]) -> str:
    """Return rows as an indented table, numbers to the right, without columns that are empty."""
    keys = [key for key in (rows[0] if rows else ()) if any(row[key] != "" for row in rows)]
    cells = [[_cell(row[key]) for key in keys] for row in rows]
    widths = [max(len(line[i]) for line in [keys, *cells]) for i in range(len(keys))]
    right = [all(isinstance(row[key], int | float) for row in rows) for key in keys]
    lines = [title]
    for line in [keys, *cells]:
        parts = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ]
        lines.append("  " + "  ".join(parts).rstrip())
    return "\n".join(lines)


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
