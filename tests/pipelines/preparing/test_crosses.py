"""Crossed columns and large vocabularies through `prepare`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from headwater.feature_store import schema_file
from headwater.feature_store.errors import ShardError
from headwater.feature_store.polars_compiler import encode_frame
from headwater.feature_store.reader import Reader
from headwater.pipelines.job import Job
from headwater.pipelines.preparing import encoding
from headwater.pipelines.preparing.prepare import Prepared, load_prepared, prepare

JobOf = Callable[..., Job]

BASE = ("user", "city", "price_q")
COLUMNS: list[dict[str, Any]] = [
    {"name": "user", "encoder": "vocabulary", "min_count": 2},
    {"name": "price", "encoder": "identity"},
    {"name": "city", "encoder": "vocabulary"},
    {"name": "price_q", "encoder": "quantiles", "column": "price", "num_buckets": 5},
    *(
        {"name": " x ".join(pair), "encoder": "crossed", "columns": list(pair), "min_count": 2}
        for pair in combinations(BASE, 2)
    ),
]


@pytest.fixture
def frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pl.DataFrame:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    cities = np.array(["rome", "oslo", "lima", None], object)[rng.integers(0, 4, 400)]
    frame = pl.DataFrame(
        {
            "user": rng.integers(0, 30, 400) ** 9,
            "city": pl.Series(cities.tolist(), dtype=pl.String),
            "price": rng.random(400).round(3),
            "ts": np.arange(400),
            "click": rng.integers(0, 2, 400),
        }
    ).with_columns(price=pl.when(pl.col("price") > 0.1).then("price"))
    frame.write_parquet("clicks.parquet")
    return frame


@pytest.fixture
def prepared(frame: pl.DataFrame, job_of: JobOf, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    assert frame.height == 400
    monkeypatch.setattr(schema_file, "INLINE_KEYS", 20)
    monkeypatch.setattr(encoding, "CROSSED_VALUES", 100)
    return prepare(job_of({"source": "clicks.parquet"}, columns=COLUMNS))


def test_codes_and_counts_of_crosses_are_those_of_the_schema(
    frame: pl.DataFrame, prepared: Prepared
) -> None:
    (batch,) = Reader(prepared.dataset("train"), 1000, seed=0, shuffle=False).epoch(0)
    encoded = encode_frame(frame.head(320).lazy(), prepared.schema).collect()
    names = [column.name for column in prepared.schema.codes]
    np.testing.assert_array_equal(batch.codes, encoded.select(names).to_numpy())
    np.testing.assert_array_equal(batch.dense, encoded.select("price").to_numpy())
    np.testing.assert_array_equal(batch.label, frame["click"].head(320).to_numpy())
    counts = prepared.statistics.splits["train"].columns
    for name in names:
        assert counts[name].missing == (encoded[name] == 0).sum()
        assert counts[name].unknown == (encoded[name] == 1).sum()
    assert counts["user x city"].unknown > 0
    assert not list(prepared.path.glob("tmp*"))


def test_large_vocabularies_lie_beside_the_schema(prepared: Prepared) -> None:
    large = [column for column in prepared.schema.codes if column.cardinality > 22]
    assert [column.name for column in large] == ["user", "user x city", "user x price_q"]
    assert len(list(prepared.path.glob("keys-*.arrow"))) == len(large)
    assert load_prepared(prepared.path).schema == prepared.schema


def test_an_absent_vocabulary_is_refused_by_name(prepared: Prepared) -> None:
    (prepared.path / "keys-00000.arrow").unlink()
    with pytest.raises(ShardError, match=r"keys-00000\.arrow: the vocabulary of feature 'user' is"):
        load_prepared(prepared.path)
