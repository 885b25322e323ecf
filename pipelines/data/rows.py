"""The rows of a job: its table with side tables joined, columns derived and rows filtered.

Everything here looks at one row alone, so a chunk at a time gives what the whole table would. The number of
the raw row stays beside it, in `ROW`, through joins and filters: errors and random splits count raw rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from headwater.feature_store.errors import DataError, JobError
from headwater.pipelines.data import expressions
from headwater.pipelines.data.sources import Chunk, Table, find_files
from headwater.pipelines.job import Data, Join

ROW = "__row"
"""Number of the raw row in the table, from 0 (Int64)."""


@dataclass(frozen=True, slots=True)
class _Side:
    """A side table in memory: key columns, then the columns that it gives."""

    keys: tuple[str, ...]
    how: str
    frame: pl.DataFrame


class Rows:
    """The rows of a table under the joins, derivations and filter of a job's [data] section.

    `wanted` names the columns to give, each with the sentence that says what needs it. Raises JobError for a
    bad expression, DataError for an absent column or a key that does not fit.
    """

    def __init__(
        self,
        table: Table,
        data: Data,
        wanted: Mapping[str, str],
        *,
        as_text: Sequence[str] = (),
    ) -> None:
        self.table = table
        self._columns = list(wanted)
        self._filter = data.filter
        sides = [Table(find_files(join.path)) for join in data.join]
        self._known = list(dict.fromkeys(name for each in [table, *sides] for name in each.names()))
        readable = {*self._known, *data.derive}
        needed = dict(wanted)
        if data.filter is not None:
            needed |= expressions.reads(data.filter, readable, "data.filter")
        for name, text in reversed(data.derive.items()):
            needed.pop(name, None)
            needed |= expressions.reads(text, readable, f"data.derive.{name}")
        self._derive = dict(data.derive)
        taken: list[list[str]] = []
        for index in reversed(range(len(sides))):
            before = [table, *sides[:index]]
            taken.insert(0, _taken(data.join[index], index, sides[index], needed, before))
        table.require(needed)
        self._source = list(needed)
        types = table.infer(self._source, as_text=as_text)
        self._sides: list[_Side] = []
        self._empty = pl.DataFrame(schema={**types, ROW: pl.Int64})
        for join, side, columns in zip(data.join, sides, taken, strict=True):
            self._sides.append(_side(join, side, columns, self._empty, as_text, table.path))
            self._empty = _join(self._empty, self._sides[-1])
        self.schema: dict[str, pl.DataType] = dict(self._finish(self._empty).schema)
        """Types of the wanted columns."""

    @property
    def are_raw(self) -> bool:
        """True where nothing is joined, derived or filtered: the rows are those of the table."""
        return not (self._sides or self._derive or self._filter is not None)

    def chunks(self) -> Iterator[tuple[Chunk, pl.DataFrame]]:
        """Yield each raw chunk with what became of it: the wanted columns, then ROW."""
        for chunk in self.table.chunks(self._source):
            frame = chunk.frame.with_columns(
                pl.int_range(chunk.offset, chunk.offset + chunk.frame.height).alias(ROW)
            )
            for side in self._sides:
                frame = _join(frame, side)
            yield chunk, self._finish(frame)

    def where(self, chunk: Chunk, row: int) -> str:
        """Return file and row (from 1, in that file) of the raw row that ROW numbers `row`."""
        return f"{self.table.files[chunk.file].path}, row {row - chunk.offset + chunk.first_row}"

    def _finish(self, frame: pl.DataFrame) -> pl.DataFrame:
        for name, text in self._derive.items():
            frame = frame.with_columns(
                expressions.evaluate(frame, text, f"data.derive.{name}", self._known).alias(name)
            )
        if self._filter is not None:
            condition = expressions.evaluate(frame, self._filter, "data.filter", self._known)
            if condition.dtype != pl.Boolean:
                raise JobError(
                    f"data.filter: {self._filter!r} gives {condition.dtype}, expected true or false."
                )
            frame = frame.filter(condition)
        return frame.select(*self._columns, ROW)


def _taken(
    join: Join, index: int, side: Table, needed: dict[str, str], before: Sequence[Table]
) -> list[str]:
    """Return the columns that a side table gives to `needed`, which then names its keys instead."""
    keys = [join.on] if isinstance(join.on, str) else list(join.on)
    reason = f"(data.join[{index}] needs it.)"
    listed = side.names() if join.columns is None else join.columns
    side.require(dict.fromkeys([*keys, *(join.columns or [])], reason))
    columns = [name for name in listed if name in needed and name not in keys]
    for name in columns:
        for other in before:
            if name in other.names():
                raise DataError(
                    f"{side.path}: column {name!r} is also in {other.path}. List in `columns` of "
                    f"data.join[{index}] what to take from it, or rename one of the two."
                )
        del needed[name]
    needed |= {name: needed.get(name, reason) for name in keys}
    return columns


def _side(
    join: Join,
    side: Table,
    columns: Sequence[str],
    main: pl.DataFrame,
    as_text: Sequence[str],
    main_path: str,
) -> _Side:
    """Return a side table in memory, its keys checked against the rows so far."""
    keys = [join.on] if isinstance(join.on, str) else list(join.on)
    side.infer([*keys, *columns], as_text=as_text)
    frame = side.read([*keys, *columns])
    frame = frame.with_columns(
        pl.col(key).fill_nan(None) for key in keys if frame.schema[key].is_float()
    ).drop_nulls(keys)
    for key in keys:
        frame = frame.with_columns(
            _as_type(frame.get_column(key), main.schema[key], side.path, main_path)
        )
    repeated = frame.filter(frame.select(keys).is_duplicated())
    if repeated.height:
        values = ", ".join(f"{key} = {repeated.get_column(key)[0]!r}" for key in keys)
        raise DataError(
            f"{side.path}: join key {', '.join(keys)} is not unique: {repeated.height} rows repeat, first "
            f"{values}. Expected one row a key; aggregate the side table first."
        )
    return _Side(tuple(keys), join.how, frame)


def _as_type(keys: pl.Series, wanted: pl.DataType, path: str, main_path: str) -> pl.Series:
    """Return join keys, none of them null, in the type that the rows have them in.

    The integer 17 and the number 17.0 are the text `17`; a number with a fraction is refused for both.
    """
    if keys.dtype.is_float() and not wanted.is_float():
        whole = keys.cast(pl.Int64, strict=False)
        exact = whole.cast(keys.dtype) == keys
        read = whole.set(~exact.fill_null(value=False), None).cast(wanted, strict=False)
    else:
        read = keys.cast(wanted, strict=False)
    for value in keys.filter(read.is_null()).head(1):
        raise DataError(
            f"{path}: join key {keys.name!r} is {keys.dtype}, but {wanted} in {main_path}, and "
            f"{value!r} cannot be read so. Write both files with one type."
        )
    return read


def _join(frame: pl.DataFrame, side: _Side) -> pl.DataFrame:
    how = "left" if side.how == "left" else "inner"
    return frame.join(side.frame, on=list(side.keys), how=how, maintain_order="left")
