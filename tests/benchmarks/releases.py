"""Releases and rows of the serving benchmarks, by the real export path: real manifest, graph, golden rows.

    .venv/bin/python tests/benchmarks/releases.py FOLDER

writes one release of each kind into FOLDER, each a FinalMLP of 39 features and 1e6 table rows of dimension
10: two MLPs of 400, 400, 400, static gates and one bilinear head of 400 x 400. The weights are random: they
cost as much as trained ones. Values are drawn evenly over the keys, so that the lookups have no warm cache.

- `ids`: 39 int64 inputs, a vocabulary of 25,639 keys each;
- `mixed`: 13 doubles (standardized) and 26 int64 (a vocabulary of 38,460 keys each);
- `strings`: 13 doubles and 26 strings of 8 hexadecimal digits, in vocabularies of the same size.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from headwater.feature_store import schema as fs

Kind = Literal["ids", "mixed", "strings"]
KINDS: tuple[Kind, ...] = ("ids", "mixed", "strings")
NUM_FEATURES = 39
NUM_NUMBERS = 13
TABLE_ROWS = 1_000_000
DIM = 10
WIDTHS = (400, 400, 400)


def num_numbers(kind: Kind) -> int:
    """Return how many of the inputs are doubles; they come first."""
    return 0 if kind == "ids" else NUM_NUMBERS


def keys(kind: Kind, column: int, table_rows: int = TABLE_ROWS) -> np.ndarray:
    """Return the keys of a column's vocabulary: int64, or text for `strings`."""
    count = table_rows // (NUM_FEATURES - num_numbers(kind)) - fs.FIRST_CODE
    numbers = np.arange(count) + column * count
    if kind != "strings":
        return numbers
    # An odd factor permutes the 32-bit integers: distinct keys without an order.
    return np.array([f"{number * 2654435761 % 2**32:08x}" for number in numbers.tolist()], object)


def rows(kind: Kind, num_rows: int, seed: int, table_rows: int = TABLE_ROWS) -> pl.DataFrame:
    """Return raw rows without a missing value, columns `f00` to `f38`."""
    random = np.random.default_rng(seed)
    columns: dict[str, pl.Series] = {}
    for index in range(NUM_FEATURES):
        name = f"f{index:02}"
        if index < num_numbers(kind):
            columns[name] = pl.Series(name, np.round(random.lognormal(1, 1.5, num_rows), 4))
        else:
            known = keys(kind, index, table_rows)
            columns[name] = pl.Series(name, known[random.integers(0, len(known), num_rows)])
    return pl.DataFrame(columns)


def schema(kind: Kind, table_rows: int = TABLE_ROWS) -> fs.Schema:
    """Return the fitted features of a kind."""
    raw: list[fs.RawColumn] = []
    columns: list[fs.EncodedColumn] = []
    for index in range(NUM_FEATURES):
        name = f"f{index:02}"
        if index < num_numbers(kind):
            raw.append(fs.RawColumn(name=name, dtype="double"))
            steps: tuple[fs.Step, ...] = (fs.Affine(scale=0.1, offset=-0.5), fs.Missing())
            columns.append(
                fs.EncodedColumn(
                    name=name, encoder="standardized", inputs=(name,), steps=steps, cardinality=0
                )
            )
        else:
            raw.append(fs.RawColumn(name=name, dtype="string" if kind == "strings" else "int64"))
            known = tuple(keys(kind, index, table_rows).tolist())
            columns.append(
                fs.EncodedColumn(
                    name=name,
                    encoder="vocabulary",
                    inputs=(name,),
                    steps=(fs.Lookup(keys=known), fs.Missing()),
                    cardinality=len(known) + fs.FIRST_CODE,
                )
            )
    return fs.Schema(raw=tuple(raw), columns=tuple(columns))


def make_release(
    folder: Path,
    kind: Kind,
    *,
    table_rows: int = TABLE_ROWS,
    context: tuple[str, ...] = (),
    precision: Literal["float32", "int8"] = "float32",
) -> Path:
    """Write the next version of the release `kind` into `folder` and return its path.

    `context` names the inputs that a request may give once. With random labels, int8 costs AUC by chance:
    its bound is off.
    """
    # Late: these bring torch, which requests alone do not need.
    from headwater.models.network import build_network
    from headwater.pipelines.family import Trained
    from headwater.pipelines.job import parse_job, read_model
    from headwater.pipelines.release.export import write_release

    model = {
        "type": "finalmlp",
        "embedding_dim": DIM,
        "hidden_1": WIDTHS,
        "hidden_2": WIDTHS,
        "dropout_1": 0,
        "dropout_2": 0,
        "batch_norm_1": False,
        "batch_norm_2": False,
        "num_heads": 1,
    }
    job = parse_job(
        {
            "name": kind,
            "data": {"train": "train.parquet", "valid": "valid.parquet"},
            "features": {
                "label": "label",
                "columns": [{"name": "f38", "encoder": "vocabulary"}],
            },
            "model": model,
            "export": {"context": list(context), "precision": precision, "max_auc_cost": 1.0},
        }
    )
    fitted = schema(kind, table_rows)
    model_class, config = read_model(job.model.type, job.model.settings())
    network = build_network(fitted, model_class, config, "dense", seed=1)
    sample = rows(kind, 512, seed=1, table_rows=table_rows)
    sample = sample.with_columns(label=pl.Series(np.arange(len(sample)) % 2, dtype=pl.Int8))
    return write_release(Trained(network, fitted, job, sample), folder)


def main() -> None:
    """Write a release of each kind."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    for kind in KINDS:
        print(make_release(folder, kind))


if __name__ == "__main__":
    main()
