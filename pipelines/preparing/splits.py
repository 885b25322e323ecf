"""Rules of `[data] split`: which rows are for training, validation and test.

A rule looks at the staged rows, fragment by fragment, and gives a condition for each split. It depends on the
rows and their order only, never on how they are cut into fragments. What each rule promises:

- time: all rows of one time are on one side. With n rows in order of time, test begins at the time of
  the first of the last round(n * test) rows, validation at that of the round(n * valid) before them;
  rows of the same time go to the later split, which can so become larger than asked.
- ratio: a row's share is a hash of the seed and of its number in the raw table, before filters and joins.
- leave-one-out: of each user with three rows or more the newest is for test, the one before it for
  validation; of equal times the later row is newer. All rows of users with fewer, and all rows without a
  user, are for training.
- column: a column's value decides, by `split_values`; a row whose value is in no part is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import polars_hash
from numpy.typing import NDArray

from headwater.feature_store.errors import DataError
from headwater.feature_store.schema import INT64_MIN
from headwater.pipelines.data.names import ROW, SPLIT_KEY, SPLIT_USER
from headwater.pipelines.job_splits import (
    ColumnSplit,
    LeaveOneOutSplit,
    RatioSplit,
    Split,
    TimeSplit,
)
from headwater.pipelines.prepared import SPLITS, SplitName

Conditions = Mapping[SplitName, pl.Expr]

BINS = 1 << 16


def assign(split: Split, fragments: Sequence[pl.LazyFrame], unit: str = ROW) -> Conditions:
    """Return the condition of each split over staged rows (ROW, SPLIT_KEY and SPLIT_USER as needed).

    A random split draws once for each value of `unit`, by default for each row.

    Time takes two to four passes over one column and no memory that grows with rows; leave-one-out one pass
    and memory for each user; the others none.
    """
    match split:
        case TimeSplit():
            return _by_time(split, fragments)
        case RatioSplit():
            return _by_ratio(split, unit)
        case LeaveOneOutSplit():
            return _leave_one_out(fragments)
        case ColumnSplit():
            key = pl.col(SPLIT_KEY)
            return {name: key == i for i, name in enumerate(SPLITS) if getattr(split, name)}


def share(seed: int, unit: str = ROW) -> pl.Expr:
    """Return a number in [0, 1] for each value of `unit`, Float64: a hash of its text by the seed."""
    number = polars_hash.NonCryptographicHashingNameSpace(pl.col(unit).cast(pl.String))
    return number.xxh3_64(seed=seed % 2**64).cast(pl.Float64) / 2.0**64


def _by_ratio(split: RatioSplit, unit: str) -> Conditions:
    key = share(split.seed, unit)
    test, valid = split.test, split.test + split.valid
    return {"train": key >= valid, "valid": (key >= test) & (key < valid), "test": key < test}


def _by_time(split: TimeSplit, fragments: Sequence[pl.LazyFrame]) -> Conditions:
    def keys() -> Iterator[NDArray[Any]]:
        for fragment in fragments:
            yield fragment.select(SPLIT_KEY).collect().to_series().to_numpy()

    total = sum(len(part) for part in keys())
    # At least one row each: a share below half a row must not point behind the end.
    test_rank = total - max(round(total * split.test), 1)
    ranks = [max(test_rank - max(round(total * split.valid), 1), 0), test_rank]
    valid_from, test_from = order_statistics(keys, ranks)
    key = pl.col(SPLIT_KEY)
    return {
        "train": key < valid_from,
        "valid": (key >= valid_from) & (key < test_from),
        "test": key >= test_from,
    }


def order_statistics(
    parts: Callable[[], Iterator[NDArray[Any]]], ranks: Sequence[int]
) -> list[Any]:
    """Return the values of the given ranks (from 0) among all int64 or float64 values of the parts, exactly.

    Memory does not grow with the values: each pass over the parts counts values in BINS ranges and goes on
    with the one that holds the rank.
    """
    return [_order_statistic(parts, rank) for rank in ranks]


def _order_statistic(parts: Callable[[], Iterator[NDArray[Any]]], rank: int) -> Any:
    # As unsigned numbers in the same order, a range of values is a range of integers.
    sample = next(iter(parts()))
    low, high = 2**64 - 1, 0
    for part in parts():
        if len(part):
            places = ordered(part)
            low, high = min(low, int(places.min())), max(high, int(places.max()))
    while low < high:
        step = (high - low) // BINS + 1
        counts = np.zeros(BINS, np.int64)
        for part in parts():
            places = ordered(part)
            inside = places[(places >= np.uint64(low)) & (places <= np.uint64(high))]
            bins = ((inside - np.uint64(low)) // np.uint64(step)).astype(np.int64)
            counts += np.bincount(bins, minlength=BINS)
        ends = np.cumsum(counts)
        chosen = int(np.searchsorted(ends, rank, side="right"))
        rank -= int(ends[chosen - 1]) if chosen else 0
        low, high = low + chosen * step, min(high, low + (chosen + 1) * step - 1)
    return _value(low, sample.dtype)


SIGN = np.uint64(1 << 63)


def ordered(values: NDArray[Any]) -> NDArray[np.uint64]:
    """Return int64 or float64 numbers as unsigned ones in the same order."""
    bits = values.view(np.uint64)
    if values.dtype == np.int64:
        return bits ^ SIGN
    # -0.0 and 0.0 are one value.
    bits = (values + 0.0).view(np.uint64)
    return np.where(bits & SIGN, ~bits, bits | SIGN)


def _value(ordered: int, dtype: np.dtype[Any]) -> Any:
    if dtype == np.int64:
        return ordered - 2**63
    bits = ordered ^ 2**63 if ordered >= 2**63 else ~ordered & (2**64 - 1)
    return float(np.array(bits, np.uint64).view(np.float64))


def _leave_one_out(fragments: Sequence[pl.LazyFrame]) -> Conditions:
    newest = pl.DataFrame()
    for fragment in fragments:
        known = fragment.filter(pl.col(SPLIT_USER) != INT64_MIN)
        rows = known.select(SPLIT_USER, SPLIT_KEY, ROW).collect()
        rows = pl.concat([newest, rows]) if newest.height else rows
        # A stable sort and not top_k, so that of equal times the later row is newer.
        rows = rows.sort(SPLIT_KEY, ROW, descending=True)
        newest = rows.group_by(SPLIT_USER, maintain_order=True).head(3)
    users = newest.group_by(SPLIT_USER, maintain_order=True).agg(ROW)
    users = users.filter(pl.col(ROW).list.len() == 3)
    if users.height == 0:
        raise DataError(
            "leave-one-out: no user has three rows or more, so nothing can be held out."
        )
    in_test, in_valid = (
        is_one_of(users.select(pl.col(ROW).list.get(place).sort()).to_series().to_numpy())
        for place in (0, 1)
    )
    return {"train": ~(in_test | in_valid), "valid": in_valid, "test": in_test}


def is_one_of(chosen: NDArray[np.int64]) -> pl.Expr:
    """Return whether ROW, ascending in every batch, is one of `chosen`, which ascend too."""

    def test(rows: pl.Series) -> pl.Series:
        # Polars also asks what a null gives, to tell which row groups it can pass over.
        numbers = rows.fill_null(-1).to_numpy()
        found = np.zeros(len(numbers), np.bool_)
        if len(numbers):
            first, last = np.searchsorted(chosen, (numbers[0], numbers[-1] + 1))
            places = np.searchsorted(numbers, chosen[first:last])
            found[places[numbers[places] == chosen[first:last]]] = True
        return pl.Series(rows.name, found)

    return pl.col(ROW).map_batches(test, return_dtype=pl.Boolean(), is_elementwise=True)
