"""Options that several commands take, as types for cyclopts."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

AsJson = Annotated[
    bool, Parameter(name="--json", negative=(), help="End with the result as one line of JSON.")
]
"""End with the result as JSON; every command takes it."""

Set = Annotated[
    list[str] | None,
    Parameter(
        name="--set",
        negative=(),
        help="Setting of the job to change, as train.seed=7; may be given several times.",
    ),
]
"""Values of the job to change."""

Csv = Annotated[
    list[str] | None,
    Parameter(
        name="--csv",
        negative=(),
        help="How CSV files are written, as a key of data.csv: --csv 'delimiter=;'; may be given several "
        "times.",
    ),
]
"""Format of CSV files."""
