"""The data set of the training benchmark: 39 fields sized as Criteo-Kaggle's, log-uniform ids, from a seed.

In one folder: `train/` and `valid/` shards, as `headwater prepare` leaves them, for Headwater and the plain
sides; `train.parquet` with a column a field and `fields.json` for FuxiCTR.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headwater.feature_store import schema as fs
from headwater.feature_store.schema_file import write_schema
from headwater.feature_store.shards import Arrays, ShardWriter
from headwater.pipelines.job import Job, parse_job

BATCH = 4096
DIM = 12
WIDTHS = (400, 400, 400)
NUM_NUMBERS = 13
NUMBER_BUCKETS = 50
"""Ids of each of the 13 numeric fields, which are cut into buckets."""
CATEGORIES = (
    *(1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194, 27),
    *(14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572),
)
"""Distinct values of the 26 categorical columns of Criteo-Kaggle."""
SMALLEST = 5
FIELDS = NUM_NUMBERS + len(CATEGORIES)
VALID_ROWS = 1024


def field_sizes(num_ids: int) -> list[int]:
    """Return the table rows of each field, in all about `num_ids`; those of categories are scaled."""
    scale = (num_ids - NUM_NUMBERS * NUMBER_BUCKETS) / sum(CATEGORIES)
    scaled = [max(round(size * scale), SMALLEST) for size in CATEGORIES]
    return [NUMBER_BUCKETS] * NUM_NUMBERS + scaled


def make_schema(sizes: list[int]) -> fs.Schema:
    """Return a schema of one code column a field."""
    names = [f"f{index:02}" for index in range(len(sizes))]
    return fs.Schema(
        raw=tuple(fs.RawColumn(name=name, dtype="int64") for name in names),
        columns=tuple(
            fs.EncodedColumn(
                name=name,
                encoder="hashed",
                inputs=(name,),
                steps=(fs.Hash(num_buckets=size - fs.FIRST_CODE), fs.Missing()),
                cardinality=size,
            )
            for name, size in zip(names, sizes, strict=True)
        ),
    )


def make_job(mode: str | None) -> Job:
    """Return the job of all of Headwater's sides: defaults but for the model's shape; `mode` of tables."""
    columns = make_schema(field_sizes(1)).columns
    names = [{"name": column.name, "encoder": "vocabulary"} for column in columns]
    values: dict[str, Any] = {
        "name": "speed",
        "data": {"train": "train.parquet", "valid": "valid.parquet"},
        "features": {"label": "label", "columns": names},
        "model": {
            "type": "finalmlp",
            "embedding_dim": DIM,
            "hidden_1": WIDTHS,
            "hidden_2": WIDTHS,
            "dropout_1": 0.0,
            "dropout_2": 0.0,
            "batch_norm_1": False,
            "batch_norm_2": False,
            "num_heads": 1,
            "use_gates": False,
        },
        "train": {"batch_size": BATCH, "device": "cpu"},
    }
    if mode is not None:
        values["train"]["sparse"] = {"mode": mode}
    return parse_job(values)


def write_data(folder: Path, num_ids: int, num_rows: int, missing: float, seed: int) -> None:
    """Write the data set; `missing` is the share of values with code 0."""
    random = np.random.default_rng([seed, num_ids])
    sizes = field_sizes(num_ids)
    schema = make_schema(sizes)
    for split, rows in (("train", num_rows), ("valid", VALID_ROWS)):
        codes = _log_uniform(random, sizes, rows)
        codes[random.random(codes.shape) < missing] = 0
        label = (random.random(rows) < 0.25).astype(np.float32)
        with ShardWriter(folder / split, schema) as writer:
            writer.write(Arrays(codes, np.empty((rows, 0), np.float32), label))
        if split == "train":
            columns = {column.name: codes[:, index] for index, column in enumerate(schema.columns)}
            pl.DataFrame(columns | {"label": label}).write_parquet(folder / "train.parquet")
    write_schema(schema, folder / "schema.json")
    fields = {column.name: column.cardinality for column in schema.columns}
    (folder / "fields.json").write_text(json.dumps(fields))


def _log_uniform(random: np.random.Generator, sizes: list[int], num_rows: int) -> NDArray[np.int32]:
    """Return codes from 1, the k-th of a field with a share of about 1 / k."""
    drawn = random.random((num_rows, len(sizes)))
    return np.minimum(np.power(np.array(sizes), drawn), np.array(sizes) - 1).astype(np.int32)
