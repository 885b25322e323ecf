"""Rules of `[data]` and `[features]`."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from headwater.feature_store.schema import RawColumn
from headwater.pipelines.job import Job, parse_job
from headwater.pipelines.prepared import SplitName
from headwater.pipelines.rules.data import (
    absent_columns,
    class_problems,
    column_needs,
    column_types,
    label_problems,
    wanted_columns,
)

KNOWN = ["user", "price", "at", "rating", "liked"]


def job_of(*columns: dict[str, Any], **features: Any) -> Job:
    """Return a job over columns that nothing has to hold."""
    return parse_job(
        {
            "name": "toy",
            "data": {
                "source": "rows.parquet",
                "split": {"by": "leave-one-out", "user": "user", "time": "at"},
                "derive": {"liked": "rating >= 4"},
            },
            "features": {"label": "liked", "columns": list(columns), **features},
            "model": {"type": "dnn"},
        }
    )


def vocabulary(name: str, **settings: Any) -> dict[str, Any]:
    return {"name": name, "encoder": "vocabulary", **settings}


def quantiles(name: str, **settings: Any) -> dict[str, Any]:
    return {"name": name, "encoder": "quantiles", "num_buckets": 4, **settings}


def test_a_column_is_wanted_by_every_key_that_names_it() -> None:
    job = job_of(vocabulary("user"), vocabulary("who", column="user"), user="user", time="at")
    assert wanted_columns(job) == {
        "user": ["feature 'user'", "feature 'who'", "features.user", "data.split"],
        "liked": ["features.label"],
        "at": ["features.time", "data.split"],
    }
    assert column_needs(job)["at"] == "(features.time reads it.)"


def test_every_key_of_an_absent_column_has_a_line() -> None:
    job = job_of(vocabulary("usr"), quantiles("xyzzy"), user="usr")
    assert absent_columns(job, KNOWN, "rows.parquet") == [
        "rows.parquet: feature 'usr': column 'usr' is not in the data. Did you mean 'user'?",
        "rows.parquet: features.user: column 'usr' is not in the data. Did you mean 'user'?",
        (
            "rows.parquet: feature 'xyzzy': column 'xyzzy' is not in the data. "
            "Known: user, price, at, rating, liked."
        ),
    ]


def test_features_that_read_the_label_or_its_columns_are_all_told() -> None:
    features = [vocabulary("user"), vocabulary("like", column="liked"), quantiles("rating")]
    direct, source = label_problems(job_of(*features), KNOWN)
    assert "'like' reads the label 'liked'" in direct
    assert "'rating' reads 'rating', from which the label comes (rating >= 4)" in source
    (told,) = label_problems(job_of(*features, known_before=["rating"]), KNOWN)
    assert told == direct


def test_types_of_columns_are_found_and_every_encoder_that_does_not_fit_is_told() -> None:
    job = job_of(
        vocabulary("user"),
        vocabulary("user_tags", column="user", length=2),
        quantiles("price"),
        quantiles("absent"),
        vocabulary("tags"),
        {"name": "both", "encoder": "crossed", "columns": ["user", "tags"]},
        vocabulary("kind", dtype="int64"),
        vocabulary("kind_as_text", column="kind", dtype="string"),
    )
    types = {
        "user": pl.Int64(),
        "price": pl.String(),
        "tags": pl.List(pl.String),
        "kind": pl.Int64(),
    }
    raw, problems = column_types(job.features.columns, types)
    assert raw == {
        "user": RawColumn(name="user", dtype="int64"),
        "price": RawColumn(name="price", dtype="double"),
        "kind": RawColumn(name="kind", dtype="int64"),
    }
    says = ["'user_tags'", "set `length`", "(there: user, price)", "give both the same `dtype`"]
    for problem, text in zip(problems, says, strict=True):
        assert text in problem


def test_text_that_one_encoder_reads_as_text_is_no_number_to_another() -> None:
    job = job_of(quantiles("price"), vocabulary("shown", column="price"))
    raw, (problem,) = column_types(job.features.columns, {"price": pl.String()})
    assert raw["price"].dtype == "double"
    assert "feature 'price': encoder 'quantiles' takes int64 or double, found string" in problem


def test_columns_whose_names_meet_in_a_release_are_told() -> None:
    job = job_of(vocabulary("tags", length=2), vocabulary("tags.length"))
    types = {"tags": pl.List(pl.String), "tags.length": pl.Int64()}
    (problem,) = column_types(job.features.columns, types)[1]
    assert "column 'tags.length': a release names the lengths of the list 'tags' so" in problem


@pytest.mark.parametrize(
    ("train", "valid", "says"),
    [
        ((10, 3), (5, 1), []),
        ((0, 0), (5, 5), ["no rows for train", "all 5 rows of valid have the label 1"]),
        ((1200, 0), (5, 1), ["all 1,200 rows of train have the label 0; expected both 0 and 1"]),
    ],
)
def test_train_and_valid_need_rows_of_both_classes(
    train: tuple[int, int], valid: tuple[int, int], says: list[str]
) -> None:
    counts: dict[SplitName, tuple[int, int]] = {"train": train, "valid": valid, "test": (0, 0)}
    problems = class_problems(counts, "rows.csv", job_of(vocabulary("tags")))
    for problem, text in zip(problems, says, strict=True):
        assert problem.startswith("rows.csv: ")
        assert text in problem
