"""Polars SQL expressions of a job (`derive`, `filter`), each over the columns of its own row.

Rows are read in chunks, so an expression over several rows would give another result for another cut: it is
refused. Names of columns that are words of SQL, as `user` or `time`, need no quotes here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from itertools import zip_longest
from typing import NamedTuple

import polars as pl

from headwater.feature_store.errors import DataError, JobError
from headwater.feature_store.normalise import is_pattern, missing_column
from headwater.pipelines.data.names import free_name

_DIALECT = "duckdb"
"""sqlglot knows none of Polars; of those that it knows, this one has Polars' names and texts."""
# By name: what Polars itself says of an expression (`Expr.meta`) needs columns it cannot see, and counts
# `a / COUNT(*)` as one row's. Of tokens, not of a parse, since sqlglot's grammar is not that of Polars.
_SEVERAL_ROWS = re.compile(
    r"""over|avg|sum|min|max|count|median|first|last|corr|covar\w*|stddev\w*|stdev\w*|var|var_\w+
    |variance\w*|quantile\w*|row_number|rank|dense_rank|lag|lead|first_value|last_value|ntile|array_agg
    |string_agg|unnest|explode""",
    re.IGNORECASE | re.VERBOSE,
)
"""Words before a parenthesis where more than one row is looked at."""
_SQL_ERRORS = (pl.exceptions.SQLInterfaceError, pl.exceptions.SQLSyntaxError)


class _Word(NamedTuple):
    """A name or a word of SQL in an expression."""

    text: str
    """Without the quotes."""
    start: int
    end: int
    is_quoted: bool
    is_called: bool
    """True where a parenthesis follows."""


def reads(text: str, columns: Collection[str], key: str) -> dict[str, str]:
    """Return the columns that an expression names, each with the sentence that says so."""
    return {word.text: f"({key} reads it.)" for word in _words(text) if word.text in columns}


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
    needs_rows = _needs_rows(_words(text))
    try:
        values = _run(frame, text)
    except pl.exceptions.ColumnNotFoundError as error:
        found = re.search(r'unable to find column "(.*?)"', str(error))
        name = found.group(1) if found is not None else "?"
        raise DataError(f"{key}: {missing_column(name, known)}") from None
    except pl.exceptions.PolarsError as error:
        if not needs_rows:
            types = [f"{name} is {frame.schema[name]}" for name in reads(text, frame.columns, key)]
            reason = str(error).strip().splitlines()[0]
            raise JobError(
                f"{key}: {text!r} is no Polars SQL expression of these columns: {reason} "
                f"({', '.join(types)})."
            ) from None
        values = None
    if needs_rows or values is None or len(values) != frame.height:
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

    text = _replace(text, {word: names[word.text] for word in _words(text) if word.text in names})

    def query(expression: str) -> pl.Series:
        result = frame.lazy().sql(f'SELECT ({expression}) AS "value" FROM self').collect()
        return result.get_column("value")

    try:
        return query(text)
    except _SQL_ERRORS as error:
        try:
            # As names, the words of SQL that a column has for its name.
            bare = [word for word in _words(text) if not (word.is_quoted or word.is_called)]
            columns = {word: word.text for word in bare if word.text in frame.columns}
            return query(_replace(text, columns))
        except _SQL_ERRORS:
            raise error from None


def _words(text: str) -> list[_Word]:
    """Return names and words in order; none of a text that is not even tokens, which Polars refuses."""
    # Late, since few jobs have expressions and it takes as long to import as Polars.
    import sqlglot

    # After a parenthesis no word begins a command, of which sqlglot would not look at the rest.
    text = f"({text}"
    try:
        tokens = sqlglot.tokenize(text, dialect=_DIALECT)
    except sqlglot.TokenError:
        return []
    words: list[_Word] = []
    for token, after in zip_longest(tokens[1:], tokens[2:]):
        source = text[token.start : token.end + 1]
        is_quoted = token.token_type == sqlglot.TokenType.IDENTIFIER
        if is_quoted or (re.match(r"[^\W\d]", source) and "'" not in source):
            is_called = after is not None and after.token_type == sqlglot.TokenType.L_PAREN
            name = token.text if is_quoted else source
            words.append(_Word(name, token.start - 1, token.end, is_quoted, is_called))
    return words


def _needs_rows(words: Sequence[_Word]) -> bool:
    return any(
        (word.is_called and _SEVERAL_ROWS.fullmatch(word.text))
        or (not word.is_quoted and word.text.lower() == "select")
        for word in words
    )


def _replace(text: str, names: Mapping[_Word, str]) -> str:
    """Return an expression with other names, quoted, in the place of words."""
    parts: list[str] = []
    end = 0
    for word, name in names.items():
        parts += [text[end : word.start], f'"{name}"']
        end = word.end
    return "".join([*parts, text[end:]])
