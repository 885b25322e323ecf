"""Names of the columns of staged rows: no raw column can have one of ours, whatever its own name.

What is staged of a raw column is named `raw.` and its name; all other columns are ours, without a dot.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import polars as pl

ROW = "row"
"""Number of the raw row in the table, from 0 (Int64)."""
SPLIT = "split"
"""Number of the row's split, where no rule decides (Int8)."""
SPLIT_KEY = "split_key"
"""Key of the split rule: a time (Int64 or Float64), or the number of the part (Int8)."""
SPLIT_USER = "split_user"
"""The user of leave-one-out (Int64), INT64_MIN where a row has none."""
LABEL, WEIGHT, GROUP, TIME = "label", "weight", "group", "time"


def staged_name(raw: str) -> str:
    """Return the name under which a raw column is staged."""
    return f"raw.{raw}"


def raw_rows(staged: pl.LazyFrame, raw: Iterable[str]) -> pl.LazyFrame:
    """Return raw columns of staged rows, by their own names."""
    return staged.select(pl.col(staged_name(name)).alias(name) for name in raw)


def free_name(name: str, taken: Collection[str]) -> str:
    """Return `name`, or the first longer one of its kind that is not taken."""
    while name in taken:
        name += "_"
    return name
