"""The encoders that a job declares: one frozen class a kind, each able to fit itself.

An encoder says what it learns in two pure functions. `partial` turns the values of one fragment
into a small frame: a column `key`, and integer columns that add up over fragments. `program` turns
the sum of those frames into steps of primitives. Neither knows how a step runs: that is the
compilers' part, so an encoder cannot differ between training and serving. Adding an encoder is a
class here and a line in `ENCODERS` and `Encoder`.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import polars as pl
from pydantic import Field

from headwater.feature_store import log_buckets, moments, quantiles, times
from headwater.feature_store import schema as fs
from headwater.feature_store.config import Config
from headwater.feature_store.errors import FeatureError

Program = tuple[tuple[fs.Step, ...], int]
"""Elementwise steps, and the cardinality: rows of the table, 0 for a dense column."""

CODE_LIMIT = 2**31 - fs.FIRST_CODE
"""Codes are int32: no encoder may give more values than this."""

CALENDAR_PARTS = {"hour": 24, "weekday": 7, "weekend": 2, "hour_of_week": 168}


class Declared(Config):
    """The part that all encoders have."""

    name: str = Field(min_length=1)
    """Name of the feature; unique in the job."""

    accepts: ClassVar[tuple[fs.Dtype, ...]] = ()
    """Raw types that the encoder can take."""
    is_dense: ClassVar[bool] = False
    """True where the encoder gives a float32 number and no codes."""
    by_fragment: ClassVar[bool] = False
    """True where the fragments that rows are cut into bound the memory of `partial`, and their
    sum is not what one fragment of all rows gives."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Raw columns that are read; for a crossed column the features that it combines."""
        raise NotImplementedError

    @property
    def kind(self) -> str:
        """Registered name of the encoder."""
        return str(type(self).model_fields["encoder"].default)

    def partial(self, _values: pl.LazyFrame, /) -> pl.LazyFrame | None:
        """Return what one fragment teaches, `key` and integer columns to sum, or None for nothing.

        The values are one column `value` (Int64, Float64 or String), without missing values.
        """
        return None

    def relevant(self, summed: pl.LazyFrame, /) -> pl.LazyFrame:
        """Return the rows that `program` looks at, of the sum of all partial frames."""
        return summed

    def program(self, learned: pl.DataFrame | None, /) -> Program:
        """Return the steps for `learned`, the sum of all partial frames, in any row order."""
        raise NotImplementedError


class Column(Declared):
    """An encoder of one raw column."""

    column: str | None = None
    """Raw column to read; the feature's name when absent. Several features may read one column."""
    dtype: fs.Dtype | None = None
    """Type to read the column as: int64, double or string; taken from the data when absent."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """The raw column that is read."""
        return (self.column or self.name,)


class Codes(Column):
    """An encoder that gives codes: it also reads lists, entry by entry."""

    length: int | None = Field(default=None, gt=0)
    """For a list: how many entries an example has, longer lists cut and shorter ones padded."""
    keep: Literal["tail", "head"] = "tail"
    """For a list: which entries stay when it is cut, the last (newest) or the first."""
    pooling: Literal["sum", "mean"] = "sum"
    """For a list: how the embeddings of its entries become one."""
    separator: str | None = Field(default=None, min_length=1)
    """For a text column: what stands between the entries of a list, as `|` in `a|b`; needs `length`."""


class Counted(Declared):
    """An encoder whose codes are the keys that training shows often enough, by count; ties by key."""

    min_count: int = Field(default=1, ge=1)
    """Values (of a crossed feature: combinations) seen less often in training are unknown."""
    max_size: int | None = Field(default=None, gt=0, le=CODE_LIMIT)
    """Keep at most so many of them, the most frequent."""

    def relevant(self, summed: pl.LazyFrame, /) -> pl.LazyFrame:
        """Return the keys that are frequent enough."""
        return summed.filter(pl.col("count") >= self.min_count)

    def program(self, learned: pl.DataFrame | None, /) -> Program:
        """Look keys up, the most frequent first; of a crossed feature `fit` puts a Cross step before it."""
        keys = frequent(learned, self.min_count, self.max_size)
        return (fs.Lookup(keys=keys), fs.Missing()), fs.FIRST_CODE + len(keys)


class Vocabulary(Counted, Codes):
    """A code for each value seen in training, by count; other values are unknown."""

    encoder: Literal["vocabulary"] = "vocabulary"

    accepts: ClassVar[tuple[fs.Dtype, ...]] = ("int64", "string")

    def partial(self, values: pl.LazyFrame, /) -> pl.LazyFrame:
        """Return the count of each value."""
        return count_values(values)


class Hashed(Codes):
    """One of a fixed number of codes by hash: nothing is learned, and values may collide."""

    encoder: Literal["hashed"] = "hashed"
    num_buckets: int = Field(gt=0, le=CODE_LIMIT)
    """Number of codes beside missing."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of the hash; two features with two seeds collide on different values."""

    accepts: ClassVar[tuple[fs.Dtype, ...]] = ("int64", "string")

    def program(self, _learned: pl.DataFrame | None, /) -> Program:
        """Hash the text of the value."""
        step = fs.Hash(num_buckets=self.num_buckets, seed=self.seed)
        return (step, fs.Missing()), fs.FIRST_CODE + self.num_buckets


class LogBuckets(Codes):
    """The buckets of Criteo's counts: floor(ln(v)^2) above 2, v without fraction otherwise."""

    encoder: Literal["log_buckets"] = "log_buckets"
    min_count: int = Field(default=1, ge=1)
    """Buckets seen less often in training are unknown."""

    accepts: ClassVar[tuple[fs.Dtype, ...]] = ("int64", "double")

    def partial(self, values: pl.LazyFrame, /) -> pl.LazyFrame:
        """Return the count of each bucket."""
        return count_values(log_buckets.bucketise(values))

    def program(self, learned: pl.DataFrame | None, /) -> Program:
        """Find the interval by its edges, then the code of the bucket to which it belongs."""
        buckets = [int(bucket) for bucket in frequent(learned, self.min_count, None)]
        edges, lookup = log_buckets.intervals(buckets)
        return (edges, lookup, fs.Missing()), fs.FIRST_CODE + len(buckets)


class Quantiles(Codes):
    """Buckets that hold about equally many training rows each, in order of the value."""

    encoder: Literal["quantiles"] = "quantiles"
    num_buckets: int = Field(gt=1, le=1_000_000)
    """Number of buckets; fewer where values repeat so often that edges fall together."""

    accepts: ClassVar[tuple[fs.Dtype, ...]] = ("int64", "double")
    by_fragment: ClassVar[bool] = True

    def partial(self, values: pl.LazyFrame, /) -> pl.LazyFrame:
        """Return the sketch of the fragment."""
        return quantiles.sketch(values)

    def program(self, learned: pl.DataFrame | None, /) -> Program:
        """Count the edges at or below the value."""
        edges = quantiles.edges(_required(learned), self.num_buckets)
        steps = (fs.Edges(values=tuple(edges)), fs.Missing())
        return steps, fs.FIRST_CODE + len(edges) + 1


class Standardized(Column):
    """The number at mean 0 and standard deviation 1 over the training rows; 0 where missing."""

    encoder: Literal["standardized"] = "standardized"

    accepts: ClassVar[tuple[fs.Dtype, ...]] = ("int64", "double")
    is_dense: ClassVar[bool] = True

    def partial(self, values: pl.LazyFrame, /) -> pl.LazyFrame:
        """Return the exact sums of the values and of their squares."""
        return moments.exact_sums(values)

    def program(self, learned: pl.DataFrame | None, /) -> Program:
        """Scale to mean 0 and deviation 1; a constant column is only shifted."""
        mean, deviation = moments.mean_and_deviation(_required(learned))
        scale = 1.0 / deviation if deviation > 0 else 1.0
        offset = -mean * scale
        if not (math.isfinite(scale) and math.isfinite(offset)):
            raise FeatureError(
                f"column {self.inputs[0]!r}, feature {self.name!r}: mean {mean:g} and standard "
                f"deviation {deviation:g} cannot be scaled within float64; rescale the column "
                f"in [data]."
            )
        # Far below the resolution of the float32 result.
        scale = 1.0 if abs(scale - 1.0) < fs.Affine.NEAR_ONE else scale
        offset = 0.0 if abs(offset) < fs.Affine.NEAR_ZERO else offset
        return (fs.Affine(scale=scale, offset=offset), fs.Missing()), 0


class Identity(Column):
    """The number as float32, unchanged; 0 where missing."""

    encoder: Literal["identity"] = "identity"

    accepts: ClassVar[tuple[fs.Dtype, ...]] = ("int64", "double")
    is_dense: ClassVar[bool] = True

    def program(self, _learned: pl.DataFrame | None, /) -> Program:
        """Round to float32."""
        return (fs.Affine(scale=1.0, offset=0.0), fs.Missing()), 0


class Calendar(Codes):
    """A part of the calendar, from a UTC time: a number, or text in ISO 8601."""

    encoder: Literal["calendar"] = "calendar"
    part: Literal["hour", "weekday", "weekend", "hour_of_week"]
    """hour 0..23, weekday 0 (Monday)..6, weekend 0 or 1, hour_of_week 0..167 from Monday 0:00."""
    unit: Literal["s", "ms", "us"] = "ms"
    """Unit of the column since 1970; dates, datetimes and text are read as ms."""
    utc_offset_minutes: int = Field(default=0, gt=-1440, lt=1440)
    """Offset of the local clock from UTC, the same all year."""

    accepts: ClassVar[tuple[fs.Dtype, ...]] = ("int64", "string")

    def partial(self, values: pl.LazyFrame, /) -> pl.LazyFrame | None:
        """Return of text how many values are times, and how many are not."""
        if values.collect_schema()["value"] != pl.String:
            return None
        is_time = times.milliseconds(pl.col("value")).is_not_null()
        return count_values(values.select(is_time.alias("value")))

    def program(self, learned: pl.DataFrame | None, /) -> Program:
        """Take the part; nothing is learned, but text without a single time is refused."""
        if learned is not None and learned.height and not learned.get_column("key").any():
            raise FeatureError(
                f"column {self.inputs[0]!r}, feature {self.name!r}: none of its texts is a time in ISO 8601, "
                f'as 2026-03-01T10:20:00Z. Set dtype = "int64" where they are numbers.'
            )
        step = fs.Calendar(
            part=self.part, unit=self.unit, utc_offset_minutes=self.utc_offset_minutes
        )
        return (step, fs.Missing()), fs.FIRST_CODE + CALENDAR_PARTS[self.part]


class Crossed(Counted):
    """A code for each combination of other features' codes in training; missing where one is.

    `crosses` counts the combinations, from codes that it shares with other crossed features.
    """

    encoder: Literal["crossed"] = "crossed"
    columns: list[str] = Field(min_length=2)
    """Features declared before this one, with one code an example."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """The features that are combined."""
        return tuple(self.columns)


Encoder = Annotated[
    Vocabulary | Hashed | LogBuckets | Quantiles | Standardized | Identity | Calendar | Crossed,
    Field(discriminator="encoder"),
]
"""A declared feature, as `{name = "user_id", encoder = "vocabulary", min_count = 2}` in a job."""

ENCODERS: dict[str, type[Declared]] = {
    "vocabulary": Vocabulary,
    "hashed": Hashed,
    "log_buckets": LogBuckets,
    "quantiles": Quantiles,
    "standardized": Standardized,
    "identity": Identity,
    "calendar": Calendar,
    "crossed": Crossed,
}


def count_values(values: pl.LazyFrame) -> pl.LazyFrame:
    """Return `key`, each distinct `value`, and `count`, how often it occurs (Int64)."""
    return values.group_by(pl.col("value").alias("key")).agg(pl.len().cast(pl.Int64).alias("count"))


def frequent(
    learned: pl.DataFrame | None, min_count: int, max_size: int | None
) -> Sequence[int | str]:
    """Return at most `max_size` keys of at least `min_count`, by count, ties by key."""
    kept = _required(learned).filter(pl.col("count") >= min_count)
    kept = kept.sort("count", "key", descending=[True, False])
    keys = (kept if max_size is None else kept.head(max_size)).get_column("key")
    return array("q", keys.to_numpy().tobytes()) if keys.dtype == pl.Int64 else keys.to_list()


def _required(learned: pl.DataFrame | None) -> pl.DataFrame:
    assert learned is not None, "an encoder with `partial` needs what it gave"
    return learned
