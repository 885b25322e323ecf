"""Recognition of a log of interactions: users and items, perhaps times and ratings, and no label."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import polars as pl

from headwater.feature_store.normalise import named
from headwater.pipelines.first_job.guess import (
    SPLIT_GIVEN,
    find_keys,
    find_splits,
    find_time,
    split_by,
)
from headwater.pipelines.first_job.label import liked_from, may_be_label
from headwater.pipelines.first_job.profile import Look, quoted

LEAST_HELD_OUT = 0.1
"""Of each user the newest rows are held out where so large a share of the users has rows to spare."""
ROWS_TO_SPARE = 3


@dataclass(slots=True)
class Log:
    """A log of interactions: its columns, and why it is split as it is."""

    user: str
    item: str
    time: str | None
    split: dict[str, Any]
    split_why: str
    liked: str | None = None
    """Condition that keeps the high ratings; None without ratings."""
    repeated: int = 0
    """Rows that repeat the user, item and time of another one."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Columns that are not read, with the reason."""


def find_log(look: Look) -> Log | None:
    """Return the log that a table is; None where a column may be the label of a click model.

    Ratings are a label where columns beside user, item and time can be its features, and else each counts
    as an interaction.
    """
    keys = find_keys(look)
    if len(keys) < 2:
        return None
    time, rules = find_time(look), find_splits(look)
    used = {*keys.values(), time, *(rule["column"] for rule in rules)}
    others = [column for column in look.columns if column.name not in used]
    if any(may_be_label(column, look) for column in others):
        return None
    ratings = {column.name: liked_from(column, look) for column in others}
    liked = {name: least for name, least in ratings.items() if least is not None}
    if liked and len(others) > len(liked):
        return None
    split, why = (rules[0], SPLIT_GIVEN) if rules else _split(look, keys["user"], time)
    log = Log(keys["user"], keys["item"], time, split, why)
    log.repeated = _repeated(look, [name for name in (*keys.values(), time) if name is not None])
    for name, least in liked.items():
        log.liked = log.liked or f"{quoted(name)} >= {least:g}"
        log.left_out[name] = "each rating counts as an interaction, high or low"
    for rule in rules:
        log.left_out[rule["column"]] = "the split" if rule is rules[0] else "another split"
    for column in others:
        log.left_out.setdefault(column.name, "a log has user, item and time alone")
    return log


def _split(look: Look, user: str, time: str | None) -> tuple[dict[str, Any], str]:
    if time is None:
        return split_by(None)
    users = look.sample.select(named(user).alias("user")).drop_nulls()
    counts = users.group_by("user").len()
    share = counts.select((pl.col("len") >= ROWS_TO_SPARE).mean()).item()
    if (share or 0.0) < LEAST_HELD_OUT:
        return split_by(time)
    why = "each user's newest item is held out for test, the one before it for validation"
    return {"by": "leave-one-out", "user": user, "time": time}, why


def _repeated(look: Look, names: list[str]) -> int:
    rows = look.sample.select(named(name) for name in names).drop_nulls()
    return rows.height - rows.select(pl.struct(pl.all()).n_unique()).item()
