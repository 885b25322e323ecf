"""Writing of data with planted truth: rows, job file and the truth.

The rows are made and written a chunk at a time: of all rows only the test rows' labels and scores are kept.
"""

from __future__ import annotations

import tomllib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import tomli_w
from numpy.typing import NDArray

from headwater.feature_store.errors import InputError
from headwater.pipelines.console import Progress
from headwater.pipelines.evaluation.metrics import auc
from headwater.pipelines.output import publish
from headwater.pipelines.planted.config import PlantedConfig
from headwater.pipelines.planted.truth import Counts, Effects, Floats, Pair, Truth, plant

CHUNK = 1 << 18
"""Rows made at a time; a row group of the files."""
USEFUL_SIZE = 1.0
"""A useful id adds at least so much to the logit, as root mean square over its rows .."""
USEFUL_COUNT = 75
""".. and is seen so often in training."""


CELLS = {
    "first": pl.String,
    "second": pl.String,
    "first_value": pl.Int64,
    "second_value": pl.Int64,
    "effect": pl.Float64,
    "count": pl.Int64,
}
"""Columns of `cells.parquet`."""
VECTORS = {
    "first": pl.String,
    "second": pl.String,
    "column": pl.String,
    "value": pl.Int64,
    "vector": pl.List(pl.Float64),
}
"""Columns of `vectors.parquet`."""


@dataclass(frozen=True, slots=True)
class Planted:
    """Files of data with planted truth, and the AUC that can be reached on its test rows."""

    folder: Path
    job: Path
    auc: dict[str, float]
    """`bayes`: of the true probability. `planted`: of what training rows can teach a model that has the right
    method for each pair. `ids`: of the effects of values alone, without any pair."""


def write_planted(folder: Path | str, config: PlantedConfig | None = None) -> Planted:
    """Write data with planted truth into a folder, whole or not at all; at once if it is there.

    InputError where something else is there, OutputError where the folder cannot be written.
    """
    folder, config = Path(folder), config or PlantedConfig()
    if folder.exists():
        return _written(folder, config)
    truth = plant(config)
    with publish(folder) as part:
        counts = truth.counts()
        reached = _write_rows(truth, counts, part)
        _ids(truth, counts).write_parquet(part / "ids.parquet")
        _cells(truth, counts).write_parquet(part / "cells.parquet")
        _vectors(truth).write_parquet(part / "vectors.parquet")
        description = _description(truth, reached, part / "train.parquet")
        (part / "truth.toml").write_text(tomli_w.dumps(description), encoding="utf-8")
        (part / "job.toml").write_text(_job_text(truth, folder), encoding="utf-8")
    return Planted(folder, folder / "job.toml", reached)


def _written(folder: Path, config: PlantedConfig) -> Planted:
    """Return what was written before with the same settings, and so is the same."""
    path = folder / "truth.toml"
    found = tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if found.get("settings") != config.model_dump(mode="json"):
        raise InputError(
            f"{folder}: exists already, and is no data with these settings. Name another folder."
        )
    return Planted(folder, folder / "job.toml", found["auc"])


def _write_rows(truth: Truth, counts: Counts, folder: Path) -> dict[str, float]:
    """Write the rows, count those of training, and return the AUC that those of test allow."""
    schema = pa.schema([("label", pa.int8()), *((name, pa.int64()) for name in truth.fields)])
    scorers: dict[str, Effects] = {}
    scores: dict[str, list[Floats]] = {}
    labels: list[NDArray[np.uint8]] = []
    with ExitStack() as opened:
        writers = {
            part: opened.enter_context(
                pq.ParquetWriter(folder / f"{part}.parquet", schema, compression="zstd")
            )
            for part in truth.config.split
        }
        bar = opened.enter_context(Progress("planted", total=truth.config.rows, unit="rows"))
        for part, values, label_N in truth.rows(CHUNK):
            writers[part].write_table(pa.table({"label": label_N, **values}, schema))
            if part == "train":
                counts.add(values)
            elif part == "test":
                # The training rows come first, so that their counts are complete.
                scorers = scorers or _scorers(truth, counts)
                labels.append(label_N.astype(np.uint8))
                for name, effects in scorers.items():
                    scores.setdefault(name, []).append(effects.logit(values))
            bar.advance(len(label_N))
    label_N = np.concatenate(labels)
    return {name: auc(label_N, np.concatenate(each)) for name, each in scores.items()}


def _scorers(truth: Truth, counts: Counts) -> dict[str, Effects]:
    # Noise, as it is symmetric, leaves the order of the true probabilities that of the logits.
    return {
        "bayes": truth.effects,
        "planted": truth.effects.seen(counts, truth.config.min_count),
        "ids": truth.effects.of_ids(),
    }


def _ids(truth: Truth, counts: Counts) -> pl.DataFrame:
    """Return each value's own effect, the size of all it adds, and whether it is useful; null: in between."""
    size, count = pl.col("size"), pl.col("count")
    return pl.concat(
        pl.DataFrame(
            {
                "column": np.full(len(effect_V), name),
                "value": np.arange(len(effect_V)),
                "effect": effect_V,
                "size": truth.sizes(name),
                "count": counts.values[name],
            }
        )
        for name, effect_V in truth.effects.ids.items()
    ).with_columns(
        useful=pl.when(size == 0)
        .then(False)
        .when((size >= USEFUL_SIZE) & (count >= USEFUL_COUNT))
        .then(True)
    )


def _cells(truth: Truth, counts: Counts) -> pl.DataFrame:
    """Return the effect and count of each combination of the memorised pairs."""
    tables = [
        pl.DataFrame(
            {
                "first": np.full(effect_VV.size, first),
                "second": np.full(effect_VV.size, second),
                "first_value": np.repeat(np.arange(effect_VV.shape[0]), effect_VV.shape[1]),
                "second_value": np.tile(np.arange(effect_VV.shape[1]), effect_VV.shape[0]),
                "effect": effect_VV.ravel(),
                "count": counts.cells[first, second].ravel(),
            }
        )
        for (first, second), effect_VV in truth.effects.cells.items()
    ]
    return pl.concat([pl.DataFrame(schema=CELLS), *tables])


def _vectors(truth: Truth) -> pl.DataFrame:
    """Return the vectors whose inner products are the effects of the factorised pairs."""
    tables = [
        pl.DataFrame(
            {
                "first": np.full(len(vector_VK), pair[0]),
                "second": np.full(len(vector_VK), pair[1]),
                "column": np.full(len(vector_VK), name),
                "value": np.arange(len(vector_VK)),
                "vector": vector_VK,
            }
        ).cast({"vector": pl.List(pl.Float64)})
        for pair, both in truth.effects.products.items()
        for name, vector_VK in zip(pair, both, strict=True)
    ]
    return pl.concat([pl.DataFrame(schema=VECTORS), *tables])


def _description(truth: Truth, reached: dict[str, float], train: Path) -> dict[str, Any]:
    """Return what `truth.toml` holds."""
    methods = [
        *((pair, "memorise") for pair in truth.effects.cells),
        *((pair, "factorise") for pair in truth.effects.products),
    ]
    return {
        "auc": reached,
        "settings": truth.config.model_dump(mode="json"),
        "fields": [
            {
                "name": field.name,
                "kind": field.kind,
                "ids": len(field.useful_V),
                "useless_ids": int((~field.useful_V).sum()),
            }
            for field in truth.fields.values()
        ],
        "pairs": [
            {"fields": pair, "method": method, "frequent": _frequent(truth, pair, train)}
            for pair, method in methods
        ],
    }


def _frequent(truth: Truth, pair: Pair, train: Path) -> float:
    """Return the share of training rows whose combination of values is seen `min_count` times."""
    count = pl.col("len")
    rows = pl.scan_parquet(train).group_by(pair).len().filter(count >= truth.config.min_count)
    return rows.select(count.sum()).collect().item() / truth.config.split["train"]


def _job_text(truth: Truth, folder: Path) -> str:
    """Return a job file for the rows."""
    files = {part: f"{part}.parquet" for part in truth.config.split}
    data = tomli_w.dumps({"data": {"root": str(folder.absolute()), **files}})
    columns = "".join(
        f'    {{ name = "{name}", encoder = "vocabulary" }},\n' for name in truth.fields
    )
    return (
        "# Data with planted truth: truth.toml has the pairs that decide the label and the AUC that can be\n"
        '# reached. Another model: --set model.type=".."\n'
        f'name = "planted"\n\n{data}\n[features]\nlabel = "label"\ncolumns = [\n{columns}]\n\n'
        '[model]\ntype = "dnn"\n'
    )
