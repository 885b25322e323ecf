"""The rows of a job: its table with side tables joined, columns derived and rows filtered.

Everything here looks at one row alone, so a chunk at a time gives what the whole table would. The number of
the raw row stays beside it, through joins and filters: errors and random splits count raw rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

import polars as pl

from headwater.feature_store.convert import Conversion, convert, is_integer
from headwater.feature_store.errors import DataError, JobError
from headwater.feature_store.normalise import named
from headwater.feature_store.readings import Reading, Refusal, read, shown_at
from headwater.feature_store.schema import Dtype
from headwater.pipelines.data import expressions
from headwater.pipelines.data.arrow_types import MAX_DIGITS
from headwater.pipelines.data.files import find_files
from headwater.pipelines.data.names import free_name
from headwater.pipelines.data.table import Chunk, Table
from headwater.pipelines.job import Data, Join


@dataclass(frozen=True, slots=True)
class _Side:
    """A side table in memory: key columns, under names of their own, then the columns that it gives."""

    on: tuple[pl.Expr, ...]
    """The keys of the rows, in the types of `keys`; null where a value has no match."""
    keys: tuple[str, ...]
    how: Literal["left", "inner"]
    frame: pl.DataFrame


def side_tables(data: Data) -> list[Table]:
    """Return the side tables of a job, in the order of its joins."""
    return [Table(find_files(join.path, join.csv)) for join in data.join]


def attach(
    rows: pl.DataFrame, side: Table, keys: Sequence[str], columns: Sequence[str]
) -> pl.DataFrame:
    """Return rows with columns of a side table, whose types are settled; nulls where it has no match.

    DataError where a key of the side table is not unique, or cannot be compared.
    """
    return _join(rows, _side("left", keys, side, columns, rows, "the vocabulary"))


class Rows:
    """The rows of a table under the joins, derivations and filter of a job's [data] section.

    `sides` are the side tables of its joins. `wanted` names the columns to give, each with the sentence that
    says what needs it; `dtypes` are the types that features declare. Raises JobError for a bad expression,
    DataError for an absent column or a key that does not fit.
    """

    def __init__(
        self,
        table: Table,
        sides: Sequence[Table],
        data: Data,
        wanted: Mapping[str, str],
        *,
        dtypes: Mapping[str, Dtype],
    ) -> None:
        self.table = table
        self._columns = list(wanted)
        self._filter = data.filter
        self.known = list(dict.fromkeys(name for each in [table, *sides] for name in each.names()))
        """Columns of the table and of its side tables."""
        readable = {*self.known, *data.derive}
        self.number = free_name("row", readable)
        """Column of the raw row's number in the table, from 0 (Int64)."""
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
        types = table.infer(self._source, dtypes=dtypes)
        self._sides: list[_Side] = []
        empty = pl.DataFrame(schema={**types, self.number: pl.Int64})
        for join, side, columns in zip(data.join, sides, taken, strict=True):
            keys = [join.on] if isinstance(join.on, str) else list(join.on)
            side.infer(list(dict.fromkeys([*keys, *columns])), dtypes=dtypes)
            self._sides.append(_side(join.how, keys, side, columns, empty, table.path))
            empty = _join(empty, self._sides[-1])
        schema = dict(self._finish(empty).schema)
        schema.pop(self.number)
        self.schema: dict[str, pl.DataType] = schema
        """Types of the wanted columns."""

    @property
    def are_raw(self) -> bool:
        """True where nothing is joined, derived or filtered: the rows are those of the table."""
        return not (self._sides or self._derive or self._filter is not None)

    def chunks(self) -> Iterator[tuple[Chunk, pl.DataFrame]]:
        """Yield each raw chunk with what became of it: the wanted columns, then `number`."""
        for chunk in self.table.chunks(self._source):
            numbers = pl.int_range(chunk.offset, chunk.offset + chunk.frame.height)
            frame = chunk.frame.with_columns(numbers.alias(self.number))
            for side in self._sides:
                frame = _join(frame, side)
            yield chunk, self._finish(frame)

    def where(self, chunk: Chunk, row: int) -> str:
        """Return file and row (from 1, in that file) of the raw row that is numbered `row`."""
        return f"{self.table.files[chunk.file].path}, row {row - chunk.offset + chunk.first_row}"

    def _finish(self, frame: pl.DataFrame) -> pl.DataFrame:
        for name, text in self._derive.items():
            frame = frame.with_columns(
                expressions.evaluate(frame, text, f"data.derive.{name}", self.known).alias(name)
            )
        if self._filter is not None:
            condition = expressions.evaluate(frame, self._filter, "data.filter", self.known)
            if condition.dtype != pl.Boolean:
                raise JobError(
                    f"data.filter: {self._filter!r} gives {condition.dtype}, expected true or false."
                )
            frame = frame.filter(condition)
        return frame.select(map(named, (*self._columns, self.number)))


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
    how: Literal["left", "inner"],
    keys: Sequence[str],
    side: Table,
    columns: Sequence[str],
    rows: pl.DataFrame,
    rows_path: str,
) -> _Side:
    """Return a side table in memory, its keys checked against the rows so far."""
    found = side.read(list(dict.fromkeys([*keys, *columns])))
    on: list[pl.Expr] = []
    own: list[Reading] = []
    for key in keys:
        wanted = _key_type(rows.schema[key], found.schema[key])
        ours = _as_key(key, rows.schema[key], wanted)
        theirs = _as_key(key, found.schema[key], wanted)
        types = f"join key {key!r} is {found.schema[key]}, but {rows.schema[key]} in {rows_path}"
        if ours is None or theirs is None:
            raise DataError(f"{side.path}: {types}. Write both files with one type.")
        on.append(ours.value)
        name = free_name("key", {*rows.columns, *columns, *(each.name for each in own)})
        own.append(_key_reading(name, key, theirs, types))

    def fail(_row: int, _column: str, message: str) -> NoReturn:
        raise DataError(f"{side.path}: {message}")

    names = [each.name for each in own]
    frame = read(found, own, fail).hstack(found.select(map(named, columns)))
    frame = frame.with_columns(
        pl.col(name).fill_nan(None) for name in names if frame.schema[name].is_float()
    ).drop_nulls(names)
    repeated = frame.filter(frame.select(names).is_duplicated())
    if repeated.height:
        pairs = zip(keys, names, strict=True)
        values = ", ".join(
            f"{key} = {shown_at(repeated.get_column(name), 0)}" for key, name in pairs
        )
        raise DataError(
            f"{side.path}: join key {', '.join(keys)} is not unique: {repeated.height} rows repeat, first "
            f"{values}. Expected one row a key; aggregate the side table first."
        )
    return _Side(tuple(on), tuple(names), how, frame)


def _key_reading(name: str, key: str, form: Conversion, types: str) -> Reading:
    if form.wrong is None:
        return Reading(name, key, form.value)

    def message(value: str) -> str:
        return f"{types}, and {value} cannot be read so. Write both files with one type."

    return Reading(name, key, form.value, (Refusal(form.wrong, message),))


def _as_key(name: str, found: pl.DataType, wanted: pl.DataType) -> Conversion | None:
    if isinstance(wanted, pl.String) and found.is_numeric():
        # The number 17.0 is the text `17`.
        whole = convert(named(name), found, pl.Int64())
        return whole and Conversion(whole.value.cast(wanted), whole.wrong)
    return convert(named(name), found, wanted)


def _key_type(rows: pl.DataType, side: pl.DataType) -> pl.DataType:
    """Return the type to compare keys in: that of the rows, or exact integers where floats meet others."""
    is_number = rows.is_numeric() or isinstance(rows, pl.Boolean)
    if rows == side or not is_number:
        return rows
    if isinstance(rows, pl.Decimal) and isinstance(side, pl.Decimal):
        return pl.Decimal(MAX_DIGITS, max(rows.scale, side.scale))
    if isinstance(rows, pl.Decimal | pl.UInt64) and is_integer(rows) and is_integer(side):
        return pl.Decimal(MAX_DIGITS, 0)
    fractions = (pl.Float64, pl.Decimal)
    if isinstance(rows, fractions) and isinstance(side, fractions) and not is_integer(side):
        return pl.Float64()
    return pl.Int64()


def _join(frame: pl.DataFrame, side: _Side) -> pl.DataFrame:
    joined = frame.join(
        side.frame,
        left_on=side.on,
        right_on=side.keys,
        how=side.how,
        maintain_order="left",
        coalesce=False,
    )
    return joined.drop(side.keys)
