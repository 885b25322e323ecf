"""The buckets of Criteo's counts as float64 edges, so that no logarithm runs after fitting.

A value v falls into bucket floor(ln(v)^2) above 2, and into bucket trunc(v) otherwise. The first
rule begins again at 0 just above 2, so that buckets 0, 1 and 2 hold two intervals each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

import polars as pl

from headwater.feature_store.schema import FIRST_CODE, Edges, Lookup

LAST_LOG_BUCKET = 1906
"""The bucket of 2^63, beyond every int64; larger doubles share it."""

LOWEST = -(2.0**63)
"""Doubles below it share its bucket."""


@lru_cache(maxsize=1)
def log_edges() -> tuple[float, ...]:
    """Return the least float64 of each bucket k of the logarithmic rule, k = 0..LAST_LOG_BUCKET."""
    edges = [math.nextafter(2.0, math.inf)]
    for bucket in range(1, LAST_LOG_BUCKET + 1):
        edge = max(math.exp(math.sqrt(bucket)), edges[-1])
        # exp and log round on their own: step to the exact place where floor(ln(v)^2) turns.
        while math.log(edge) ** 2 >= bucket:
            edge = math.nextafter(edge, -math.inf)
        while math.log(edge) ** 2 < bucket:
            edge = math.nextafter(edge, math.inf)
        edges.append(edge)
    return tuple(edges)


def bucketise(values: pl.LazyFrame) -> pl.LazyFrame:
    """Return the bucket (Int64) of each finite number in the column `value`."""
    value = pl.col("value").cast(pl.Float64)
    above_two = value.bin_intervals(list(log_edges())[1:], labels=False).cast(pl.Int64)
    # A cast to an integer drops the fraction, as trunc does.
    otherwise = value.clip(LOWEST, 2.0).cast(pl.Int64)
    bucket = pl.when(value > 2.0).then(above_two).otherwise(otherwise)
    return values.filter(value.is_finite()).select(bucket.alias("value"))


def intervals(buckets: Sequence[int]) -> tuple[Edges, Lookup]:
    """Return the edges around `buckets`, and the lookup from interval to code, 2 for the first.

    Values between the given buckets fall into intervals that have no key: they are unknown.
    """
    code_of_start: dict[float, int] = {}
    edges: set[float] = set()
    for position, bucket in enumerate(buckets):
        for start, end in _spans(bucket):
            code_of_start[start] = FIRST_CODE + position
            edges.update((start, end))
    ascending = sorted(edge for edge in edges if math.isfinite(edge))
    # The code of an Edges step is 2 plus the edges passed, the interval's own start among them.
    keys = {FIRST_CODE + passed: edge for passed, edge in enumerate(ascending, start=1)}
    if -math.inf in code_of_start:
        keys[FIRST_CODE] = -math.inf
    known = {key: code_of_start[edge] for key, edge in keys.items() if edge in code_of_start}
    return Edges(values=tuple(ascending)), Lookup(
        keys=tuple(known.keys()), codes=tuple(known.values())
    )


def _spans(bucket: int) -> Iterator[tuple[float, float]]:
    """Yield the half-open intervals [start, end) of one bucket."""
    logarithmic = log_edges()
    if bucket <= 0:
        start = -math.inf if bucket <= LOWEST else _first_above(bucket - 1)
        yield start, 1.0 if bucket == 0 else _first_above(bucket)
    elif bucket == 1:
        yield 1.0, 2.0
    elif bucket == 2:
        yield 2.0, logarithmic[0]
    if bucket == LAST_LOG_BUCKET:
        yield logarithmic[bucket], math.inf
    elif bucket >= 0:
        yield logarithmic[bucket], logarithmic[bucket + 1]


def _first_above(whole: int) -> float:
    """Return the least float64 greater than an integer, which float64 may not hold itself."""
    nearest = float(whole)
    return nearest if nearest > whole else math.nextafter(nearest, math.inf)
