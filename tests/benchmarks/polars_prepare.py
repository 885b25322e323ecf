"""The rival of `preparing.py` that a good engineer writes by hand: vocabularies and codes in plain Polars.

    .venv/bin/python tests/benchmarks/polars_prepare.py TRAIN.parquet VALID.parquet OUT

writes OUT/train.arrow and OUT/valid.arrow: for each row 39 int32 codes (0 missing, 1 unknown, then by count
in the training file, of values seen ten times or more) and a float32 label. Counts fall into the buckets of
the Criteo challenge first. Everything streams: each vocabulary is one grouped query, all of them
collected together over one scan of the file; a category is looked up by a cast to an Enum, a bucket by a
dictionary.
"""

from __future__ import annotations

import sys
from pathlib import Path

import polars as pl

COUNTS = [f"I{number}" for number in range(1, 14)]
CATEGORIES = [f"C{number}" for number in range(1, 27)]
MIN_COUNT = 10


def bucket(name: str) -> pl.Expr:
    """Return floor(ln(v)^2) above 2, v otherwise, as Int32."""
    value = pl.col(name)
    logarithmic = value.log().pow(2).floor().cast(pl.Int32)
    return pl.when(value > 2).then(logarithmic).otherwise(value.cast(pl.Int32))


def vocabularies(train: pl.LazyFrame) -> dict[str, pl.Series]:
    """Return the values of each column that are frequent, the most frequent first."""
    values = {name: bucket(name) for name in COUNTS} | {name: pl.col(name) for name in CATEGORIES}
    queries = [
        train.select(value.alias("key"))
        .drop_nulls()
        .group_by("key")
        .len()
        .filter(pl.col("len") >= MIN_COUNT)
        .sort("len", "key", descending=[True, False])
        .select("key")
        for value in values.values()
    ]
    found = pl.collect_all(queries, engine="streaming")
    return {name: frame.to_series() for name, frame in zip(values, found, strict=True)}


def codes(known: dict[str, pl.Series]) -> list[pl.Expr]:
    """Return the code of each column, named as the column."""
    encoded: list[pl.Expr] = []
    for name, keys in known.items():
        value = pl.col(name)
        if name in CATEGORIES:
            position = value.cast(pl.Enum(keys), strict=False).to_physical().cast(pl.Int32) + 2
            code = position.fill_null(1)
        else:
            numbers = pl.int_range(2, len(keys) + 2, dtype=pl.Int32, eager=True)
            code = bucket(name).replace_strict(keys, numbers, default=1, return_dtype=pl.Int32)
        encoded.append(pl.when(value.is_null()).then(0).otherwise(code).cast(pl.Int32).alias(name))
    return encoded


def main() -> None:
    train, valid, out = (Path(word) for word in sys.argv[1:])
    out.mkdir(parents=True)
    known = vocabularies(pl.scan_parquet(train))
    encoded = [*codes(known), pl.col("label").cast(pl.Float32)]
    for name, path in (("train", train), ("valid", valid)):
        pl.scan_parquet(path).select(encoded).sink_ipc(out / f"{name}.arrow", engine="streaming")


if __name__ == "__main__":
    main()
