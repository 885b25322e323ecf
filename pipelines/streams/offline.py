"""The features of a definition at the time of each event, by Polars: the join that training would use.

It shares nothing with the online kinds but their words: counts are differences of running sums, found by
as-of joins, and histories are cut from sorted lists. Each event of the log is asked for its own keys.
"""

from __future__ import annotations

from typing import Any

import polars as pl

from headwater.feature_store.online.definition import Definition, Table
from headwater.feature_store.online.kinds import Count, Folded, History, Last, Rate, Where

ORDER = ["_ts_ms", "_topic", "_partition", "_offset", "_row"]
"""The order of events."""


def offline_values(definition: Definition, log: pl.DataFrame) -> dict[str, list[Any]]:
    """Return by `table.feature` the values at each row of `log`, for the row's key and time.

    `log` has the declared columns and those of `ORDER`; a row without a key has None.
    """
    values: dict[str, list[Any]] = {}
    for table in definition.tables:
        asked = log.select(pl.col(table.key).alias("key"), t="_ts_ms").with_row_index("place")
        for feature in table.folded:
            found = _values(table, feature, log, asked)
            joined = asked.join(found, on="place", how="left", maintain_order="left")
            values[f"{table.name}.{feature.name}"] = joined["value"].to_list()
    return values


def _values(table: Table, feature: Folded, log: pl.DataFrame, asked: pl.DataFrame) -> pl.DataFrame:
    """Return place and value for each row of `asked` that has a key."""
    asked = asked.filter(pl.col("key").is_not_null()).sort("t")
    match feature:
        case Count():
            return asked.select("place", value=_count(table, feature, log, asked))
        case Rate():
            of, over = (_count(table, count, log, asked) for count in (feature.of, feature.over))
            above, below = of + feature.prior * feature.strength, over + feature.strength
            # 0 / 0 is NaN, as online; x / 0 would be infinite, where online has no rate either.
            value = pl.Series(above / below)
            return asked.select("place", value=value.set(below == 0, float("nan")))
        case Last():
            return _last(table, feature, log, asked)
        case History():
            return _history(table, feature, log, asked)


def _count(table: Table, count: Count, log: pl.DataFrame, asked: pl.DataFrame) -> pl.Series:
    """Return the count for each row of `asked`: the running sum before t, less that before the window."""
    if count.column:
        running = pl.col(count.column).fill_null(0).cum_sum()
    else:
        running = pl.int_range(1, pl.len() + 1)
    sums = (
        _passing(table, count.where, log)
        .with_columns(sum=running.over("key"))
        .select("key", "_ts_ms", "sum")
    )
    before = _running(sums, asked.select("key", at="t"))
    if not count.window_ms:
        return before
    panes = count.window_ms // count.grain_ms
    first = (pl.col("t") // count.grain_ms - panes + 1) * count.grain_ms
    return before - _running(sums, asked.select("key", at=first))


def _running(sums: pl.DataFrame, asked: pl.DataFrame) -> pl.Series:
    """Return the running sum of events before `at`, in the order of `asked`, which is by `at`."""
    joined = asked.join_asof(
        sums,
        left_on="at",
        right_on="_ts_ms",
        by="key",
        strategy="backward",
        allow_exact_matches=False,
        check_sortedness=False,
    )
    return joined["sum"].fill_null(0)


def _last(table: Table, feature: Last, log: pl.DataFrame, asked: pl.DataFrame) -> pl.DataFrame:
    newest = _passing(table, feature.where, log).filter(pl.col(feature.column).is_not_null())
    joined = asked.join_asof(
        newest.select("key", "_ts_ms", value=feature.column),
        left_on="t",
        right_on="_ts_ms",
        by="key",
        strategy="backward",
        allow_exact_matches=False,
        check_sortedness=False,
    )
    fresh = pl.col("_ts_ms").is_not_null()
    if feature.ttl_ms:
        fresh &= pl.col("t") - pl.col("_ts_ms") <= feature.ttl_ms
    return joined.select(
        "place", value=pl.when(fresh).then("value").otherwise(pl.lit(feature.missing()))
    )


def _history(
    table: Table, feature: History, log: pl.DataFrame, asked: pl.DataFrame
) -> pl.DataFrame:
    valued = _passing(table, feature.where, log).filter(pl.col(feature.column).is_not_null())
    lists = valued.group_by("key", maintain_order=True).agg(
        times=pl.col("_ts_ms"), values=pl.col(feature.column)
    )
    numbered = valued.select("key", "_ts_ms", sum=pl.int_range(1, pl.len() + 1).over("key"))
    seen = asked.with_columns(seen=_running(numbered, asked.select("key", at="t")))
    length = pl.min_horizontal("seen", pl.lit(feature.length))
    cut = seen.join(lists, on="key", how="left").select(
        "place",
        "t",
        times=pl.col("times").list.slice(pl.col("seen") - length, length),
        values=pl.col("values").list.slice(pl.col("seen") - length, length),
    )
    oldest = pl.col("t") - feature.ttl_ms
    if not feature.ttl_ms:
        return cut.select("place", value=pl.col("values").fill_null([]))
    kept = (
        cut.explode("times", "values", empty_as_null=True)
        .filter(pl.col("times").is_not_null() & (pl.col("times") >= oldest))
        .group_by("place", maintain_order=True)
        .agg(value="values")
    )
    return (
        cut.select("place")
        .join(kept, on="place", how="left")
        .with_columns(pl.col("value").fill_null([]))
    )


def _passing(table: Table, where: Where, log: pl.DataFrame) -> pl.DataFrame:
    """Return the events that have a key and pass, in order, with their key as `key`."""
    passing = [pl.col(column).is_in(list(values)) for column, values in where.items()]
    return (
        log.filter(pl.col(table.key).is_not_null(), *passing)
        .sort(ORDER)
        .with_columns(key=pl.col(table.key))
    )
