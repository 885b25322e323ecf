"""Polars SQL expressions of a job (`derive`, `filter`), each over the columns of its own row.

Rows are read in chunks, so an expression over several rows would give another result for another cut: it is
refused. Names of columns that are words of SQL, as `user` or `time`, need no quotes here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

import polars as pl

from headwater.feature_store.errors import DataError, JobError
from headwater.feature_store.normalise import is_pattern, missing_column
from headwater.pipelines.data.names import free_name

_TEXT = re.compile(r"""("(?:[^"]|"")*")|'(?:[^']|'')*'""")
"""A text; or, in the group, a quoted name, which may hold an apostrophe."""
_NAME = re.compile(r'"((?:[^"]|"")+)"|([^\W\d]\w*)')
_TOKEN = re.compile(
    r"""'(?:[^']|'')*'|"(?P<quoted>(?:[^"]|"")*)"|(?P<name>[^\W\d]\w*)(?!\w|\s*\()"""
)
# By name: what Polars itself says of an expression (`Expr.meta`) needs columns it cannot see, and counts
# `a / COUNT(*)` as one row's.
_SEVERAL_ROWS = re.compile(
    r"""\b(?:over|select|(?:avg|sum|min|max|count|median|first|last|corr|covar\w*|stddev\w*|stdev\w*|var
    |var_\w+|variance\w*|quantile\w*|row_number|rank|dense_rank|lag|lead|first_value|last_value|ntile
    |array_agg|string_agg|unnest|explode)\s*\()""",
    re.IGNORECASE | re.VERBOSE,
)
_SQL_ERRORS = (pl.exceptions.SQLInterfaceError, pl.exceptions.SQLSyntaxError)


def reads(text: str, columns: Collection[str], key: str) -> dict[str, str]:
    """Return the columns that an expression names, each with the sentence that says so."""
    found = _NAME.findall(_TEXT.sub(r"\1 ", text))
    names = [quoted.replace('""', '"') or plain for quoted, plain in found]
    return {name: f"({key} reads it.)" for name in names if name in columns}


def sources(name: str, derive: Mapping[str, str], known: Collection[str]) -> set[str]:
    """Return the columns of the data that a column is made of: itself, or what its expressions read."""
    steps = list(derive.items())
    found: set[str] = set()
    waiting = [(name, len(steps))]
    while waiting:
        each, end = waiting.pop()
        # An expression sees what was derived before it, and else the data.
        place = next((i for i in reversed(range(end)) if steps[i][0] == each), None)
        if place is None:
            found.add(each)
        else:
            readable = {*known, *derive}
            waiting += [(source, place) for source in reads(steps[place][1], readable, "")]
    return found


def evaluate(frame: pl.DataFrame, text: str, key: str, known: Sequence[str]) -> pl.Series:
    """Return the value of an expression for each row.

    `key` is where the job states it and `known` are the columns of the data, for messages. Raises JobError
    for what is no expression of one row, DataError for a column that is not there.
    """
    several = _SEVERAL_ROWS.search(_TEXT.sub(r"\1 ", text))
    try:
        values = _run(frame, text)
    except pl.exceptions.ColumnNotFoundError as error:
        found = re.search(r'unable to find column "(.*?)"', str(error))
        name = found.group(1) if found is not None else "?"
        raise DataError(f"{key}: {missing_column(name, known)}") from None
    except pl.exceptions.PolarsError as error:
        if several is None:
            types = [f"{name} is {frame.schema[name]}" for name in reads(text, frame.columns, key)]
            reason = str(error).strip().splitlines()[0]
            raise JobError(
                f"{key}: {text!r} is no Polars SQL expression of these columns: {reason} "
                f"({', '.join(types)})."
            ) from None
        values = None
    if several is not None or values is None or len(values) != frame.height:
        raise JobError(
            f"{key}: {text!r} needs more than one row. An expression here may use the columns of its own "
            f"row only; compute such a column before Headwater reads the data."
        )
    return values


def _run(frame: pl.DataFrame, text: str) -> pl.Series:
    # Polars takes these names for patterns, quoted or not.
    patterns = [name for name in frame.columns if is_pattern(name)]
    names = {name: free_name(f"column {i}", frame.columns) for i, name in enumerate(patterns)}
    frame = frame.rename(names)

    def rename(match: re.Match[str]) -> str:
        name = (match.group("quoted") or "").replace('""', '"')
        return f'"{names[name]}"' if name in names else match.group()

    text = _TOKEN.sub(rename, text)

    def query(expression: str) -> pl.Series:
        result = frame.lazy().sql(f'SELECT ({expression}) AS "value" FROM self').collect()
        return result.get_column("value")

    def quote(match: re.Match[str]) -> str:
        name = match.group("name")
        return f'"{name}"' if name in frame.columns else match.group()

    try:
        return query(text)
    except _SQL_ERRORS as error:
        try:
            return query(_TOKEN.sub(quote, text))
        except _SQL_ERRORS:
            raise error from None
