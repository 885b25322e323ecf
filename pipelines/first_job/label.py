"""The label of a first job: the column that says what the model should predict, and when it is positive."""

from __future__ import annotations

import polars as pl

from headwater.feature_store.errors import JobError, did_you_mean
from headwater.feature_store.normalise import named
from headwater.pipelines.first_job.profile import Look, Profile, quoted, shared

LABELS = (
    *("label", "target", "y", "click", "clicked", "clicks", "clk", "attributed", "converted"),
    *("conversion", "purchase", "purchased", "buy", "bought", "order", "ordered", "install"),
    *("installed", "like", "liked", "response", "outcome", "positive", "accepted", "watched"),
)
ABOUT_LABELS = ("is", "has", "was", "total", "approved", "num", "n", "count", "cnt", "flag")
RATINGS = ("rating", "ratings", "stars", "overall", "score")
POSITIVE_TEXT = {"yes", "y", "true", "t", "positive", "click", "clicked"}


def named_label(look: Look, wanted: str) -> Profile:
    """Return the column that the user named; JobError where it is none or no label can come of it."""
    names = [column.name for column in look.columns]
    if wanted not in names:
        hint = did_you_mean(wanted, names)
        raise JobError(f"--label {wanted}: no such column.{hint} The data has: {', '.join(names)}.")
    chosen = look[wanted]
    if positive_when(chosen, look) is None:
        raise JobError(
            f"--label {wanted}: expected two values as 0 and 1 or yes and no, a rating, or a count "
            f"that is 0 for no; found {_shown(chosen)}."
        )
    return chosen


def outcomes(look: Look) -> list[Profile]:
    """Return the columns that look like a label, the chosen one among them."""
    return [
        column
        for column in shared(look.columns, LABELS)
        if _is_binary(column)
        or _positive(column)
        or (column.is_number and set(column.tokens) <= {*LABELS, *ABOUT_LABELS})
    ]


def positive_when(column: Profile, look: Look) -> tuple[str | None, pl.Expr] | None:
    """Return when a row is positive, as SQL and for the sample; no SQL where the column says it."""
    value = named(column.name)
    if _is_binary(column):
        return None, value.cast(pl.Float64) == 1
    positive = _positive(column)
    if positive is not None:
        text = positive.replace("'", "''")
        return f"{quoted(column.name)} = '{text}'", value == positive
    # A count that is often 0 says whether; a rating says how much.
    is_count = column.low == 0 and not set(RATINGS) & set(column.tokens)
    threshold = None if is_count else _threshold(column, look)
    if threshold is not None:
        return f"{quoted(column.name)} >= {threshold:g}", value >= threshold
    if column.is_number and not column.is_time and column.low == 0:
        # An id may be 0 too, but seldom is.
        zeros = look.sample.select((value == 0).mean()).item()
        return (f"{quoted(column.name)} > 0", value > 0) if 0.005 < zeros < 1 else None
    return None


def find_label(look: Look) -> Profile:
    """Return the column that is named like a label and has its values, else a rating."""
    named = shared(look.columns, LABELS)
    for column in named:
        if _is_binary(column) or _positive(column) is not None:
            return column
    for column in shared(look.columns, RATINGS):
        if liked_from(column, look) is not None:
            return column
    two = [column.name for column in look.columns if _is_binary(column) or len(column.values) == 2]
    counts = [column for column in named if positive_when(column, look) is not None]
    parts = ["no column looks like a label of 0 and 1, or like a rating."]
    if counts:
        shown = ", ".join(f"{column.name} ({_shown(column)})" for column in counts)
        parts.append(f"Counts, positive above 0: {shown}.")
    if two:
        parts.append(f"Columns of two values: {', '.join(two)}.")
    if counts or two:
        parts.append("Say which by --label.")
    else:
        parts.append(
            "A click model needs rows of what was not clicked too; a log of users and items alone is for a "
            "retrieval model, and has a column of either."
        )
    raise JobError(" ".join(parts))


def may_be_label(column: Profile, look: Look) -> bool:
    """Tell whether a column has values of a label, or its name and values from which one comes."""
    is_named = bool(set(LABELS) & set(column.tokens))
    return (
        _is_binary(column)
        or _positive(column) is not None
        or (is_named and positive_when(column, look) is not None)
    )


def liked_from(column: Profile, look: Look) -> float | None:
    """Return the least rating that counts as liked, for a column that is named like a rating; else None."""
    return _threshold(column, look) if set(RATINGS) & set(column.tokens) else None


def _is_binary(column: Profile) -> bool:
    """Tell whether a run reads the column as a label: 0 and 1, as numbers, text or false and true."""
    return column.values in ((0, 1), ("0", "1"), ("0.0", "1.0"))


def _positive(column: Profile) -> str | None:
    """Return the positive one of two texts, as 'yes' beside 'no'; None where that is not plain."""
    texts = [value for value in column.values if isinstance(value, str)]
    if len(texts) != 2 or len(column.values) != 2:
        return None
    positive = [text for text in texts if text.strip().lower() in POSITIVE_TEXT]
    return positive[0] if len(positive) == 1 else None


def _threshold(column: Profile, look: Look) -> float | None:
    """Return the least rating that counts as liked: four fifths of the scale, as 4 of 5."""
    if not column.is_number or column.is_time or column.low is None or column.high is None:
        return None
    if column.low < 0 or not 3 <= column.high <= 100 or not 3 <= column.distinct <= 101:
        return None
    threshold = float(round(0.8 * column.high))
    share = look.sample.select((named(column.name) >= threshold).mean()).item()
    return threshold if 0 < share < 1 else None


def _shown(column: Profile) -> str:
    if column.values:
        return "values " + ", ".join(map(str, column.values))
    return f"{column.distinct:,} values of type {column.found}"
