"""A column may have any name: none of Headwater's own can meet it, and Polars takes none for a pattern."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from headwater.pipelines import evaluate, export, prepare, score, train
from headwater.pipelines.checking.validation import check_job
from headwater.pipelines.job import Job, parse_job

OURS = [
    *("__weight", "__group", "__split", "__label", "__row", "__time", "__split_key"),
    *("weight", "group", "split", "label", "row", "time", "split_key", "split_user"),
    *("raw.x", "x.missing", "x missing", "train", "valid", "value", "key", "rows"),
]
ODD = [
    "*",
    "^a$",
    "^.*$",
    'say "x"',
    "a b",
    "encode/0",
    "emb_BFD",
    "inner/emb_BFD",
    "raw/x",
    "\u00fc",
]


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def rows(names: list[str], num_rows: int = 400) -> pl.DataFrame:
    random = np.random.default_rng(0)
    columns: dict[str, Any] = {name: random.normal(size=num_rows) for name in names}
    return pl.DataFrame(
        {"x": random.normal(size=num_rows), **columns, "y": [0, 1] * (num_rows // 2)}
    )


def job_of(names: list[str], **data: Any) -> Job:
    columns: list[dict[str, Any]] = [
        {"name": name, "encoder": "identity"}
        if place % 2
        else {"name": name, "encoder": "quantiles", "num_buckets": 4}
        for place, name in enumerate(["x", *names])
    ]
    return parse_job(
        {
            "name": "odd",
            "data": {"source": "a.parquet", "split": {"by": "ratio"}, **data},
            "features": {"label": "y", "columns": columns},
            "model": {"type": "fm", "embedding_dim": 4},
            "train": {"epochs": 1},
        }
    )


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("staged", [False, True])
def test_a_column_named_like_one_of_ours_is_a_feature_and_no_more(
    name: str, *, staged: bool
) -> None:
    rows([name]).write_parquet("a.parquet")
    job = job_of([name], **({"filter": "x < 99"} if staged else {}))
    prepared = prepare(job)
    manifest = prepared.dataset("train").manifest
    assert not manifest.has_weight
    assert not manifest.has_group
    rows([name]).rename({name: "plain"}).write_parquet("a.parquet")
    plain = prepare(job_of(["plain"], **({"filter": "x < 99"} if staged else {})))
    for split in ("train", "valid", "test"):
        ours, theirs = prepared.dataset(split).arrays(0), plain.dataset(split).arrays(0)
        np.testing.assert_array_equal(ours.codes, theirs.codes)
        np.testing.assert_array_equal(ours.dense, theirs.dense)
        np.testing.assert_array_equal(ours.label, theirs.label)
    assert not check_job(job_of(["plain"])).problems


def test_columns_of_any_name_go_the_whole_way() -> None:
    rows(ODD).write_parquet("a.parquet")
    job = job_of(ODD, filter='"*" < 99 AND "say ""x""" < 99', derive={"twice": '"^a$" * 2'})
    assert not check_job(job).problems
    run = train(job, prepare(job))
    evaluate(run)
    release = export(run)
    result = score(release, "a.parquet", Path("scored.parquet"))
    assert result["rows"] == 400
    scored = pl.read_parquet("scored.parquet")
    assert scored.columns == [*rows(ODD).columns, "prob"]
    assert scored.get_column("prob").n_unique() > 1


def test_odd_names_are_keys_of_joins_and_splits() -> None:
    frame = rows([]).with_columns(
        pl.Series("*", np.arange(400) % 7), pl.Series("^t$", np.arange(400))
    )
    frame.write_parquet("a.parquet")
    pl.DataFrame({"*": range(7), "age": range(7)}).write_parquet("side.parquet")
    job = job_of(
        ["age"],
        join=[{"path": "side.parquet", "on": "*"}],
        split={"by": "time", "column": "^t$"},
    )
    values = job.model_dump(mode="json")
    values["features"] |= {"user": "*", "time": "^t$"}
    prepared = prepare(parse_job(values))
    assert prepared.dataset("train").manifest.has_group
    assert prepared.statistics.splits["train"].columns["age"].missing == 0
    assert prepared.statistics.time_range_ms == (0, 319_000)
