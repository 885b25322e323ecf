"""A quantile sketch of weighted points, deterministic and mergeable by putting sketches together.

Of one fragment's n values, sorted, the sketch keeps those at which the running count passes a
multiple of n / K, with the weight of what was skipped since the last one kept. Between two kept
values fewer than n / K rows are skipped, so the rank read off the sketch is too low by less than n
/ K and never too high. Ranks of fragments add up, and so do their errors: over N rows in any
number of fragments the rank of every value is exact within N / K, that is 0.025 % for K = 4096. Up
to K distinct values a fragment is kept whole, without error.
"""

from __future__ import annotations

import polars as pl

POINTS = 4096
"""K: points kept of one fragment at most, and the reciprocal of the rank error."""


def sketch(values: pl.LazyFrame, points: int = POINTS) -> pl.LazyFrame:
    """Return the points of one fragment: `key` (Float64, finite) and `count` (Int64), its weight.

    Memory is bounded by the distinct values of the fragment.
    """
    # The two zeros are one value, and one must stand for both in the file. Polars drops `+ 0.0`.
    number = pl.col("value").cast(pl.Float64)
    value = pl.when(number != 0).then(number).otherwise(pl.when(number == 0).then(0.0))
    counted = (
        values.filter(value.is_finite())
        .group_by(value.alias("key"))
        .agg(pl.len().cast(pl.Int64).alias("count"))
        .sort("key")
        .with_columns(pl.col("count").cum_sum().alias("rank"))
    )
    share = pl.col("rank") * points // pl.col("rank").last()
    passes = share > share.shift(1, fill_value=0)
    kept = counted.filter(passes | (pl.len() <= points))
    weight = pl.col("rank") - pl.col("rank").shift(1, fill_value=0)
    return kept.select("key", weight.alias("count"))


def edges(sketched: pl.DataFrame, num_buckets: int) -> list[float]:
    """Return the inner edges of `num_buckets` buckets of equal weight, ascending and distinct.

    Edge i is the least kept value whose rank is above i / num_buckets of the rows, so that a bucket
    [edge i, edge i+1) begins where the share before it is used up. An edge at the least value would
    leave an empty bucket below it and is dropped.
    """
    if sketched.is_empty():
        return []
    ordered = sketched.group_by("key").agg(pl.col("count").sum()).sort("key")
    ranks = ordered.get_column("count").cum_sum()
    total = int(ranks[-1])
    targets = pl.Series([total * i // num_buckets for i in range(1, num_buckets)], dtype=pl.Int64)
    positions = ranks.search_sorted(targets, side="right").unique().sort()
    found = ordered.get_column("key").gather(positions.filter(positions > 0))
    return found.to_list()
