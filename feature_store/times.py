"""Times written as ISO 8601 text, read in one way from files and in the graph of a release.

`YYYY-MM-DD`, alone or with a clock after `T` or a space: `HH:MM`, `HH:MM:SS` or `HH:MM:SS.f` with up to nine
digits; then perhaps `Z` or an offset `+HH:MM`, `+HHMM` or `+HH`. Without one it is UTC. Years are 0000 to
9999; a day that its month lacks, a second 60 and an hour 24 are no times.
"""

from __future__ import annotations

import polars as pl

_HOUR, _SIXTY = "([01][0-9]|2[0-3])", "[0-5][0-9]"
PATTERN = (
    "[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
    f"([T ]{_HOUR}:{_SIXTY}(:{_SIXTY}([.][0-9]{{1,9}})?)?(Z|[+-]{_HOUR}(:?{_SIXTY})?)?)?"
)
"""The form of the whole text of a time; whether its month has the day is not said in it."""

_MINUTE_US = 60_000_000


def datetime(text: pl.Expr) -> pl.Expr:
    """Return the time, UTC, that each text says, Datetime("us"); null for any other text.

    Digits below a microsecond are dropped.
    """
    time = pl.when(text.str.contains(f"^({PATTERN})$")).then(text)
    day = time.str.head(10).str.to_date("%Y-%m-%d", strict=False)
    clock = time.str.slice(11)
    minutes = 60 * _number(clock, r"^(..)") + _number(clock, r"^..:(..)")
    seconds = _number(clock, r"^..:..:(..)")
    micros = _number(clock, r"[.]([0-9]{1,6})", digits=6)
    offset = 60 * _number(clock, r"[+-](..)") + _number(clock, r"[+-]..:?(..)$")
    offset = pl.when(clock.str.contains("-", literal=True)).then(-offset).otherwise(offset)
    after = (minutes - offset) * _MINUTE_US + seconds * 1_000_000 + micros
    return day.cast(pl.Datetime("us")) + after.cast(pl.Duration("us"))


def milliseconds(text: pl.Expr) -> pl.Expr:
    """Return the time, in milliseconds since 1970, UTC, that each text says; null for any other text."""
    return datetime(text).dt.timestamp("ms")


def _number(text: pl.Expr, pattern: str, *, digits: int = 2) -> pl.Expr:
    """Return the digits that a pattern captures, filled up behind to `digits`; 0 where it is not there."""
    return text.str.extract(pattern).str.pad_end(digits, "0").cast(pl.Int64).fill_null(0)
