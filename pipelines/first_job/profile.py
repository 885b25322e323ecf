"""Profile of the columns of a data file: the evidence from which `headwater init` guesses a job.

Types are those that a run will see, settled over whole files; the rest is measured on the first rows,
which are held in memory.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from headwater.feature_store import times
from headwater.feature_store.errors import DataError
from headwater.feature_store.normalise import infer_dtype, normalise, values_of
from headwater.feature_store.schema import RawColumn
from headwater.pipelines.data.table import Table

SAMPLE_ROWS = 500_000
"""Rows looked at, at most."""
LISTED_VALUES = 12
"""Distinct values that are kept by name, at most."""
SEPARATORS = ("|", ";", ",", " ")


@dataclass(frozen=True, slots=True)
class Profile:
    """One column. Counts are of the rows looked at; `distinct` is exact up to some hundred values."""

    name: str
    found: pl.DataType
    """Type in the data."""
    raw: RawColumn | None
    """Type as encoders read it; None where none can."""
    missing: int = 0
    distinct: int = 0
    values: tuple[int | float | str, ...] = ()
    """All values in order, where there are at most LISTED_VALUES."""
    low: float | None = None
    """Smallest, middle and largest number; None for text."""
    middle: float | None = None
    high: float | None = None
    mean_chars: float = 0.0
    separator: str | None = None
    """Separator of values within the text, as `|` in `Comedy|Drama`."""
    entries: int = 1
    """Entries that 95 of 100 lists do not exceed."""
    is_time_text: bool = False
    """True where each text is a time in ISO 8601."""

    @property
    def is_time(self) -> bool:
        """True for dates and datetimes, which encoders read as int64 milliseconds."""
        return self.found.is_temporal()

    @property
    def is_number(self) -> bool:
        """True for a scalar int64 or double."""
        return self.raw is not None and not self.raw.is_list and self.raw.dtype != "string"

    @property
    def tokens(self) -> tuple[str, ...]:
        """The words of the name: `userId`, `user_id` and `USER ID` are all user, id."""
        spaced = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", self.name)
        return tuple(re.findall(r"[^\W_]+", spaced.lower()))


@dataclass(frozen=True, slots=True)
class Look:
    """The columns of a table, and the rows from which their profiles come."""

    columns: tuple[Profile, ...]
    sample: pl.DataFrame
    """Normal form: Int64, Float64, String or lists of them; null where missing."""
    is_whole: bool
    """True where the sample is all rows."""

    def __getitem__(self, name: str) -> Profile:
        return next(column for column in self.columns if column.name == name)

    @property
    def num_rows(self) -> int:
        """Rows looked at."""
        return self.sample.height


def look_at(table: Table) -> Look:
    """Return what the columns of a table look like; DataError where it has no rows."""
    names = table.names()
    known = table.readable(names)
    types = dict.fromkeys(names, pl.Unknown()) | table.infer(known)
    readable: list[RawColumn] = []
    for name in known:
        try:
            readable.append(infer_dtype(name, types[name]))
        except DataError:
            continue
    if not readable:
        raise DataError(f"{table.path}: no column that an encoder could read.")
    frames: list[pl.DataFrame] = []
    num_rows, is_whole = 0, True
    for chunk in table.chunks([raw.name for raw in readable]):
        if num_rows >= SAMPLE_ROWS:
            is_whole = False
            break
        frames.append(chunk.frame)
        num_rows += chunk.frame.height
    if num_rows == 0:
        raise DataError(f"{table.path}: no rows; expected at least one.")
    sample = normalise(pl.concat(frames), readable)
    raw_of = {raw.name: raw for raw in readable}
    columns = (_profile(name, types[name], raw_of.get(name), sample) for name in names)
    return Look(tuple(columns), sample, is_whole)


def _profile(name: str, found: pl.DataType, raw: RawColumn | None, sample: pl.DataFrame) -> Profile:
    if raw is None:
        return Profile(name, found, None)
    column = values_of(sample, name)
    missing = column.null_count()
    entries = 1
    if raw.is_list:
        lengths = column.list.len().drop_nulls()
        entries = _most(lengths)
        column = column.explode(keep_nulls=False, empty_as_null=False)
    column = column.drop_nulls()
    distinct = _distinct(column)
    few = column.unique().sort().to_list() if distinct <= LISTED_VALUES else []
    is_text = raw.dtype == "string"
    finite = column.filter(column.is_finite()) if raw.dtype == "double" else column
    separator, is_time_text = None, False
    if is_text and not raw.is_list:
        is_time_text = _are_times(column)
        separator, entries = (None, 1) if is_time_text else _separator(column, distinct)
    return Profile(
        name=name,
        found=found,
        raw=raw,
        missing=missing,
        distinct=distinct,
        values=tuple(few),
        low=None if is_text else _number(finite.min()),
        middle=None if is_text else _number(finite.median()),
        high=None if is_text else _number(finite.max()),
        mean_chars=(_number(column.str.len_chars().mean()) or 0.0) if is_text else 0.0,
        separator=separator,
        entries=entries,
        is_time_text=is_time_text,
    )


def _are_times(column: pl.Series) -> bool:
    """Return whether all texts, at least two different ones, are times in ISO 8601."""
    found = column.to_frame("text").select(times.milliseconds(pl.col("text"))).to_series()
    return found.null_count() == 0 and found.n_unique() > 1


def _distinct(column: pl.Series) -> int:
    """Return the number of distinct values; of many values an estimate, which costs no memory."""
    return (
        column.n_unique() if len(column) <= 50_000 else int(_number(column.approx_n_unique()) or 0)
    )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _most(lengths: pl.Series) -> int:
    return max(1, int(_number(lengths.quantile(0.95, "higher")) or 1))


def _separator(column: pl.Series, distinct: int) -> tuple[str | None, int]:
    """Return what divides texts into few words that recur in many combinations, and how many words."""
    if distinct <= LISTED_VALUES:
        return None, 1
    values = column.unique().head(20_000)
    for separator in SEPARATORS:
        parts = values.str.split(separator)
        lengths = parts.list.len()
        if (_number((lengths > 1).mean()) or 0.0) < 0.3:
            continue
        words = parts.explode(keep_nulls=False, empty_as_null=False).unique()
        limit = 1000 if separator != " " else 50
        if len(words) <= limit and len(words) * 2 <= len(values) and _are_words(words, separator):
            return separator, _most(lengths)
    return None, 1


def _are_words(words: pl.Series, separator: str) -> bool:
    # '1,000 - 5,000' and 'iPhone 6' are one value each: only words without digits stand alone.
    digits = words.str.contains(r"\d").any()
    blanks = words.str.contains(r"^\s*$").any()
    return not blanks and not (digits and separator in (",", " "))


def shared(columns: Sequence[Profile], words: Sequence[str]) -> list[Profile]:
    """Return the columns whose name holds one of `words`, by the order of the words."""
    found: dict[str, Profile] = {}
    for word in words:
        for column in columns:
            if word in column.tokens:
                found.setdefault(column.name, column)
    return list(found.values())


def quoted(name: str) -> str:
    """Return a column name as an expression of a job writes it."""
    plain = re.fullmatch(r"[^\W\d]\w*", name)
    return name if plain else '"' + name.replace('"', '""') + '"'
