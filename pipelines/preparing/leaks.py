"""Events that are in two splits of a log, so that a model would be asked for what it was shown."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from headwater.feature_store.schema import FIRST_CODE, UNKNOWN_CODE, Schema
from headwater.feature_store.shards import ShardSet
from headwater.pipelines.events import read_events, row_keys
from headwater.pipelines.prepared import SplitName


def leaks(splits: Mapping[SplitName, ShardSet], schema: Schema) -> list[str]:
    """Return a line for each two splits that share an event of one user, item and time.

    Without a time, of one user and item. A basket is of one split as a whole. Only what training knows can
    be compared.
    """
    problems: list[str] = []
    done: list[tuple[SplitName, pl.DataFrame]] = []
    for split, shards in splits.items():
        events = read_events(shards)
        named = {"item": events.item_E, "time": events.time_E}
        if events.user_E is None:
            keys = pl.DataFrame({"basket": events.group_E}).unique()
        else:
            present = {name: array for name, array in named.items() if array is not None}
            keys = pl.DataFrame({"user": events.user_E, **present}).unique()
            keys = keys.filter(pl.min_horizontal("user", "item") > UNKNOWN_CODE)
        for other, others in done:
            both = keys.join(others, on=keys.columns, how="semi").sort(keys.columns)
            if both.height:
                problems.append(_leak(both.row(0, named=True), both.height, other, split, schema))
        done.append((split, keys))
    return problems


def _leak(
    first: Mapping[str, int], count: int, other: SplitName, split: SplitName, schema: Schema
) -> str:
    if "basket" in first:
        return f"{count:,} baskets have items both in {other} and in {split}; expected each in one split."
    user, item = (
        row_keys(column)[first[name] - FIRST_CODE]
        for name, column in zip(("user", "item"), schema.columns, strict=True)
    )
    again = f" at time {first['time']}" if "time" in first else ""
    events = "event is" if count == 1 else "events are"
    return (
        f"{count:,} {events} both in {other} and in {split}, as user {user!r} with item {item!r}{again}: "
        "a model would be asked for what it was shown. Leave repeated rows out by data.filter or in the files"
        + ("." if "time" in first else ", or name interactions.time where an item may come again.")
    )
