"""Online features as they are declared, `[[tables]]` of STREAM.toml, and the definition that follows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from headwater.feature_store.config import Config
from headwater.feature_store.online import kinds
from headwater.feature_store.online.definition import Definition, Table
from headwater.feature_store.schema import Dtype
from headwater.pipelines.streams.settings import NAME, StreamSettings

Scalar: TypeAlias = int | float | str
Where: TypeAlias = dict[str, Scalar | list[Scalar]]
"""Column to the value, or the values, that count."""
FeatureName: TypeAlias = Annotated[str, Field(pattern=NAME)]
MAX_PANES = 4096


class _Windowed(Config):
    window_s: int = Field(default=0, ge=0)
    """Length of the sliding window in seconds; 0 counts for ever."""
    grain_s: int = Field(default=0, ge=0)
    """Length of its panes; a sixtieth of the window, and at least a second, when absent."""

    @model_validator(mode="after")
    def _whole_panes(self) -> _Windowed:
        if self.grain_s and not self.window_s:
            raise ValueError("grain_s goes with window_s")
        if self.window_s and self.window_s % self.grain:
            raise ValueError(f"window_s: {self.window_s} is no multiple of grain_s, {self.grain}")
        if self.window_s and self.window_s // self.grain > MAX_PANES:
            raise ValueError(
                f"grain_s: {self.window_s // self.grain:,} panes, of at most {MAX_PANES:,}"
            )
        return self

    @property
    def grain(self) -> int:
        """The length of a pane in seconds; 0 without a window."""
        if self.grain_s or not self.window_s:
            return self.grain_s
        least = max(1, self.window_s // 60)
        return next(grain for grain in range(least, self.window_s + 1) if not self.window_s % grain)


class CountFeature(_Windowed):
    """Number of events, or the sum of an integer column over them."""

    kind: Literal["count"]
    """`count`."""
    name: FeatureName
    """Name of the feature."""
    where: Where = {}
    """Events that count, as {type = "click"}; all when absent."""
    column: str | None = None
    """Integer column to add up, in place of counting."""

    def feature(self) -> kinds.Count:
        """Return the feature as the store has it."""
        return _count(self.name, self.where, self.column or "", self)


class RateFeature(_Windowed):
    """Events of one kind for each of another, smoothed."""

    kind: Literal["rate"]
    """`rate`."""
    name: FeatureName
    """Name of the feature."""
    of: Where
    """Events above the line, as {type = "click"}."""
    over: Where
    """Events below it, as {type = "impression"}."""
    prior: float = 0.0
    """The rate that is expected before any event."""
    strength: float = Field(default=0.0, ge=0)
    """The number of events that the prior weighs as much as."""

    def feature(self) -> kinds.Rate:
        """Return the feature as the store has it."""
        of = _count("of", self.of, "", self)
        over = _count("over", self.over, "", self)
        return kinds.Rate(self.name, of, over, self.prior, self.strength)


class LastFeature(Config):
    """The newest value of a column."""

    kind: Literal["last"]
    """`last`."""
    name: FeatureName
    """Name of the feature."""
    column: str
    """Column of the value."""
    where: Where = {}
    """Events that count; all when absent."""
    ttl_s: float = Field(default=0, ge=0)
    """Forgotten so long after its event; 0 keeps it."""

    def feature(self, dtype: Dtype) -> kinds.Last:
        """Return the feature as the store has it."""
        return kinds.Last(
            self.name, self.column, dtype, _where(self.where), round(self.ttl_s * 1000)
        )


class HistoryFeature(Config):
    """The last values of a column, oldest first."""

    kind: Literal["history"]
    """`history`."""
    name: FeatureName
    """Name of the feature."""
    column: str
    """Column of the values."""
    length: int = Field(gt=0, le=1000)
    """Number of values kept."""
    where: Where = {}
    """Events that count; all when absent."""
    ttl_s: float = Field(default=0, ge=0)
    """An entry is forgotten so long after its event; 0 keeps it."""

    def feature(self, dtype: Dtype) -> kinds.History:
        """Return the feature as the store has it."""
        ttl_ms = round(self.ttl_s * 1000)
        return kinds.History(self.name, self.column, dtype, self.length, _where(self.where), ttl_ms)


class VectorFeature(Config):
    """A vector that is loaded from a file, and that no event changes."""

    kind: Literal["vector"]
    """`vector`."""
    name: FeatureName
    """Name of the feature."""
    dim: int = Field(gt=0, le=4096)
    """Numbers in it."""

    def feature(self) -> kinds.Vector:
        """Return the feature as the store has it."""
        return kinds.Vector(self.name, self.dim)


AnyFeature = Annotated[
    CountFeature | RateFeature | LastFeature | HistoryFeature | VectorFeature,
    Field(discriminator="kind"),
]


class TableSettings(Config):
    """The features of one kind of key."""

    name: str = Field(pattern=NAME)
    """Name of the table, as users."""
    key: str
    """Column of its key."""
    features: list[AnyFeature] = Field(min_length=1)
    """The features of a key."""


class FeatureSettings(StreamSettings):
    """A stream job that keeps features up in an online store."""

    tables: list[TableSettings] = Field(min_length=1)
    """Features, by what they are about."""

    @model_validator(mode="after")
    def _fits(self) -> FeatureSettings:
        problems = list(self._problems())
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def encoded(self) -> bytes:
        """Return the definition as JSON."""
        return self.definition().encoded()

    def definition(self) -> Definition:
        """Return the definition that the store carries."""
        dtypes = self.source.dtypes
        tables = tuple(
            Table(
                table.name,
                table.key,
                dtypes[table.key],
                tuple(
                    feature.feature(dtypes[feature.column])
                    if isinstance(feature, LastFeature | HistoryFeature)
                    else feature.feature()
                    for feature in table.features
                ),
            )
            for table in self.tables
        )
        return Definition(
            self.name,
            tuple(self.topics),
            self.source.time,
            self.source.event_id or "",
            self.source.lateness_ms,
            tables,
        )

    def _problems(self) -> Iterator[str]:
        dtypes = self.source.dtypes
        names = [table.name for table in self.tables]
        for twice in sorted({name for name in names if names.count(name) > 1}):
            yield f"tables: {twice!r} declared twice"
        for table in self.tables:
            where = f"table {table.name!r}"
            if dtypes.get(table.key) not in ("int64", "string"):
                yield f"{where}: key {table.key!r} is no int64 or string column of source.columns"
            named = [feature.name for feature in table.features]
            for twice in sorted({name for name in named if named.count(name) > 1}):
                yield f"{where}: feature {twice!r} declared twice"
            for feature in table.features:
                yield from (
                    f"{where}, feature {feature.name!r}: {problem}"
                    for problem in _problems_of(feature, dtypes)
                )


def _problems_of(feature: AnyFeature, dtypes: Mapping[str, Dtype]) -> Iterator[str]:
    match feature:
        case CountFeature():
            filters = [feature.where]
            if feature.column and dtypes.get(feature.column) != "int64":
                yield f"column {feature.column!r} is no int64 column of source.columns"
        case RateFeature():
            filters = [feature.of, feature.over]
        case LastFeature() | HistoryFeature():
            filters = [feature.where]
            if feature.column not in dtypes:
                yield f"column {feature.column!r} is no column of source.columns"
        case VectorFeature():
            filters = []
    for each in filters:
        yield from (
            f"column {column!r} is no column of source.columns"
            for column in each
            if column not in dtypes
        )


def _count(name: str, where: Where, column: str, windowed: _Windowed) -> kinds.Count:
    window_ms, grain_ms = windowed.window_s * 1000, windowed.grain * 1000
    return kinds.Count(name, _where(where), column, window_ms, grain_ms)


def _where(where: Where) -> kinds.Where:
    return {
        column: tuple(values) if isinstance(values, list) else (values,)
        for column, values in where.items()
    }
