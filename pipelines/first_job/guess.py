"""Guesses for a first job: label, keys, split, and an encoder for each column, each with its reason.

Rules over names and values, no more: what they decide is written into a file that a person reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from headwater.feature_store import times
from headwater.feature_store.errors import JobError
from headwater.feature_store.normalise import named
from headwater.pipelines.first_job.label import find_label, named_label, outcomes, positive_when
from headwater.pipelines.first_job.profile import Look, Profile, quoted, shared

USERS = (
    *("user", "customer", "member", "visitor", "shopper", "client", "account", "buyer", "reviewer"),
    *("subscriber", "viewer", "reader", "listener", "player", "guest", "uid"),
)
ITEMS = (
    *("item", "product", "movie", "article", "news", "book", "song", "track", "video", "iid"),
    *("restaurant", "hotel", "banner", "ad", "adgroup", "creative", "sku", "asin", "listing"),
    *("document", "offer", "recipe", "game"),
)
TIMES = ("timestamp", "time", "ts", "datetime", "date", "at", "day")
SPLITS = ("split", "fold", "partition", "subset")
KEY_WORDS = {"id", "ids", "no", "key", "code", "hash", "idx", "index"}
KEY_ENDS = {"nr", "number"}
"""Words that name a key at the end, as in `banner_nr`, but not before: `number_of_views` is an amount."""
QUANTITIES = {
    *("age", "price", "cost", "amount", "count", "cnt", "num", "total", "sum", "avg", "mean"),
    *("ratio", "duration", "length", "size", "width", "height", "days", "hours", "minutes"),
    *("seconds", "year", "distance", "balance", "income", "salary", "qty", "quantity", "views"),
    *("impressions", "clicks", "spent", "spend", "budget", "bid", "revenue"),
}

UNIQUE_SHARE = 0.9
"""A column with more distinct values than this share of the rows names the row and nothing else."""
FEW_ROWS = 5_000
HASHED_FROM = 100_000
"""Distinct values from which a column is hashed."""


@dataclass(slots=True)
class Guess:
    """A first job: what was decided, and why."""

    label: str = ""
    label_why: str = ""
    derive: dict[str, str] = field(default_factory=dict)
    filter: str | None = None
    user: str | None = None
    item: str | None = None
    time: str | None = None
    perhaps: dict[str, str] = field(default_factory=dict)
    """By role, user or item: a column that only its values make likely, to be written as a remark."""
    split: dict[str, Any] = field(default_factory=dict)
    split_why: str = ""
    columns: list[tuple[dict[str, Any], str]] = field(default_factory=list)
    """Encoders as in the job file, each with a remark."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Columns that are no features, with the reason."""
    context: list[str] = field(default_factory=list)
    """Raw columns that belong to the user or the moment, not to the candidate; of a user or item that is
    not known by name, as a remark."""


def guess(look: Look, label: str | None = None) -> Guess:
    """Return a first job for what `look` shows; JobError where no column can be the label."""
    result = Guess()
    _label(look, label, result)
    keys = find_keys(look)
    result.user, result.item = keys.get("user"), keys.get("item")
    _split(look, result)
    for column in look.columns:
        if column.name not in result.left_out:
            _column(column, look, result)
    if not result.columns:
        reasons = "; ".join(f"{name}: {why}" for name, why in result.left_out.items())
        raise JobError(f"no column is left as a feature ({reasons}).")
    _perhaps(look, result)
    _context(look, result)
    return result


def _label(look: Look, wanted: str | None, result: Guess) -> None:
    chosen = find_label(look) if wanted is None else named_label(look, wanted)
    if chosen.missing:
        result.filter = f"{quoted(chosen.name)} IS NOT NULL"
    condition = positive_when(chosen, look)
    assert condition is not None
    text, expression = condition
    if text is None:
        result.label = chosen.name
        result.left_out[chosen.name] = "the label"
    else:
        result.label = _free_name("label", look)
        result.derive[result.label] = text
        result.left_out[chosen.name] = "the label comes from it"
    share = look.sample.select(expression.mean()).item()
    result.label_why = f"{100 * share:.3g} % of the rows are positive"
    for other in outcomes(look):
        if other.name not in result.left_out:
            result.left_out[other.name] = "looks like another outcome, known only afterwards"


def _free_name(name: str, look: Look) -> str:
    taken = {column.name for column in look.columns}
    while name in taken:
        name += "_01"
    return name


def find_keys(look: Look) -> dict[str, str]:
    """Return the columns that are named like a user's and an item's key and recur like one, by role."""
    found: dict[str, str] = {}
    for words, role in ((USERS, "user"), (ITEMS, "item")):
        for column in shared(look.columns, words):
            rest = [token for token in column.tokens if token not in KEY_WORDS | KEY_ENDS]
            is_key = len(rest) == 1 and column.raw is not None and not column.raw.is_list
            # In a few rows even a good key seldom recurs; two values are a flag, as `member`.
            recurs = _recurs(column, look) or look.num_rows < FEW_ROWS
            if is_key and recurs and column.distinct > 2 and column.found != pl.Float64:
                found[role] = column.name
                break
    return found


def _perhaps(look: Look, result: Guess) -> None:
    """Find columns of codes with many values that recur: of two unknown keys, users are the more."""
    keys = [
        look[encoder["name"]]
        for encoder, _ in result.columns
        if encoder["encoder"] in ("vocabulary", "hashed") and "length" not in encoder
    ]
    many = [
        column
        for column in keys
        if column.name not in (result.user, result.item)
        and column.distinct**2 >= look.num_rows
        and column.distinct * 2 <= look.num_rows - column.missing
    ]
    many.sort(key=lambda column: -column.distinct)
    roles = [role for role in ("user", "item") if getattr(result, role) is None]
    result.perhaps = {role: column.name for role, column in zip(roles, many, strict=False)}


def _recurs(column: Profile, look: Look) -> bool:
    """Tell whether values come often enough to learn something about each."""
    filled = look.num_rows - column.missing
    return 1 < column.distinct <= UNIQUE_SHARE * filled


def time_unit(column: Profile) -> str | None:
    """Return s, ms or us, the unit of a time since 1970, by where its values lie; None for no time."""
    if column.is_time_text:
        return "ms"
    if column.is_time:
        return "ms" if isinstance(column.found, pl.Date | pl.Datetime) else None
    if column.raw is None or column.raw.is_list or column.raw.dtype != "int64":
        return None
    if column.low is None or column.high is None or not set(TIMES) & set(column.tokens):
        return None
    for unit, second in (("s", 1), ("ms", 1_000), ("us", 1_000_000)):
        # From 1980 to 2100.
        if 315_532_800 * second <= column.low and column.high <= 4_102_444_800 * second:
            return unit
    return None


def find_time(look: Look) -> str | None:
    """Return the column of the time at which a row happened, if one looks like it."""
    times = [column for column in look.columns if time_unit(column) and column.distinct > 1]
    times.sort(key=lambda column: next((i for i, w in enumerate(TIMES) if w in column.tokens), 99))
    return times[0].name if times else None


def find_splits(look: Look) -> list[dict[str, Any]]:
    """Return a rule for each column that says for which part its row is."""
    found: list[dict[str, Any]] = []
    for column in shared(look.columns, SPLITS):
        names = {str(value).lower(): str(value) for value in column.values}
        valid = next((names[w] for w in ("valid", "val", "validation", "dev") if w in names), None)
        if "train" in names and "test" in names and valid is not None:
            values = {"train": names["train"], "valid": valid, "test": names["test"]}
            found.append({"by": "column", "column": column.name, **values})
    return found


SPLIT_GIVEN = "the data says where a row belongs"


def split_by(time: str | None) -> tuple[dict[str, Any], str]:
    """Return a split of single rows, the newest ones held out where there is a time, and the reason."""
    if time is not None:
        why = "the newest rows are held out: the model is asked about the future"
        return {"by": "time", "column": time, "valid": 0.1, "test": 0.1}, why
    why = "rows are held out at random, as no column tells their time"
    return {"by": "ratio", "valid": 0.1, "test": 0.1}, why


def _split(look: Look, result: Guess) -> None:
    result.time = find_time(look)
    rules = find_splits(look)
    for rule in rules:
        result.left_out[rule["column"]] = "the split" if rule is rules[0] else "another split"
    if rules:
        result.split, result.split_why = rules[0], SPLIT_GIVEN
    else:
        result.split, result.split_why = split_by(result.time)


def _column(column: Profile, look: Look, result: Guess) -> None:
    """Add the encoder of a column, or the reason why it has none."""
    filled = look.num_rows - column.missing
    amount = f"{column.distinct:,} values"
    gaps = f", {100 * column.missing / look.num_rows:.2g} % missing" if column.missing else ""
    if column.raw is None:
        result.left_out[column.name] = f"no encoder reads {column.found}"
    elif column.distinct == 0 or (column.distinct == 1 and not column.missing):
        result.left_out[column.name] = "no value" if column.distinct == 0 else "one value only"
    elif time_unit(column):
        _time(column, look, result)
    elif column.raw.is_list and column.raw.dtype == "double":
        result.left_out[column.name] = "a vector of numbers"
    elif column.raw.is_list:
        encoder = {**_codes(column, look), "length": min(column.entries, 50)}
        result.columns.append((encoder, f"list, {amount}{gaps}"))
    elif column.raw.dtype == "double" or _is_quantity(column):
        buckets = 10 if filled < 10_000 else 20
        encoder = {"name": column.name, "encoder": "quantiles", "num_buckets": buckets}
        result.columns.append((encoder, f"{column.low:g} to {column.high:g}{gaps}"))
    elif column.name in (result.user, result.item) and not _recurs(column, look):
        result.columns.append((_codes(column, look), f"{amount}: too few rows here to learn them"))
    elif column.distinct > UNIQUE_SHARE * filled and filled >= 20:
        result.left_out[column.name] = "a value of its own in almost every row"
    elif column.separator is not None:
        encoder = {"name": column.name, "encoder": "vocabulary", "min_count": _min_count(look)}
        encoder |= {"length": min(column.entries, 50), "separator": column.separator}
        result.columns.append((encoder, f"text that holds lists{gaps}"))
    elif column.mean_chars > 60:
        result.left_out[column.name] = "free text"
    else:
        result.columns.append((_codes(column, look), f"{amount}{gaps}"))


def _codes(column: Profile, look: Look) -> dict[str, Any]:
    if column.distinct <= HASHED_FROM:
        return {"name": column.name, "encoder": "vocabulary", "min_count": _min_count(look)}
    buckets = min(2**20, 1 << (column.distinct - 1).bit_length())
    return {"name": column.name, "encoder": "hashed", "num_buckets": buckets}


def _min_count(look: Look) -> int:
    """Return how often a value must occur: rarer ones teach the row of unknown values."""
    return 2 if look.num_rows < 100_000 else 5


def _is_quantity(column: Profile) -> bool:
    """Tell an amount from a number that names something, by its name and by its spread."""
    if not column.is_number or column.distinct <= LISTED or KEY_WORDS & set(column.tokens):
        return False
    if KEY_ENDS & set(column.tokens[-1:]):
        return False
    if QUANTITIES & set(column.tokens):
        return True
    assert column.low is not None
    assert column.middle is not None
    assert column.high is not None
    # Names are spread over their range; amounts crowd at its low end, or fall below zero.
    return column.distinct > 50 and (column.low < -1 or column.high > 100 * max(column.middle, 1))


LISTED = 10
"""Up to so many distinct numbers each is better off with an embedding of its own."""


def _time(column: Profile, look: Look, result: Guess) -> None:
    unit = time_unit(column)
    if column.name != result.time:
        result.left_out[column.name] = "another time: perhaps known only afterwards"
        return
    second = {"s": 1, "ms": 1_000, "us": 1_000_000}[unit or "ms"]
    time = named(column.name)
    number = times.milliseconds(time) if column.is_time_text else time
    seconds = look.sample.select(number).to_series() // second
    for part, divisor, count in (("hour", 3_600, 24), ("weekday", 86_400, 7)):
        if (seconds // divisor % count).drop_nulls().n_unique() > 1:
            encoder = {"name": _free_name(part, look), "column": column.name}
            encoder |= {"encoder": "calendar", "part": part}
            encoder |= {} if column.is_time_text else {"unit": unit}
            result.columns.append((encoder, "UTC; utc_offset_minutes sets a local clock"))
    if not any(encoder.get("column") == column.name for encoder, _ in result.columns):
        result.left_out[column.name] = "one hour of one day only"


def _context(look: Look, result: Guess) -> None:
    """Find what belongs to the user: columns with one value for each user."""
    user = result.user or result.perhaps.get("user")
    item = result.item or result.perhaps.get("item")
    if user is None or item is None:
        return
    read = {encoder.get("column", encoder["name"]): encoder for encoder, _ in result.columns}
    if user not in read or look[user].distinct * 2 > look.num_rows:
        return
    raw = [name for name in read if name in look.sample.columns and name != user]
    counts: Mapping[str, int] = (
        look.sample.lazy()
        .group_by(user)
        .agg(named(name).drop_nulls().n_unique() for name in raw)
        .select(named(name).max() for name in raw)
        .collect()
        .row(0, named=True)
        if raw
        else {}
    )
    fixed = [name for name in raw if counts[name] <= 1 and name != item]
    moment = [result.time] if result.time in read and result.time not in fixed else []
    result.context = [user, *fixed, *(name for name in moment if name is not None)]
