"""`headwater validate`: every problem at once, and what a sound job is shown as."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from headwater.pipelines.checking.validation import Validation, check_job
from headwater.pipelines.cli import main
from headwater.pipelines.job import parse_job

ROWS = 200
Change = Callable[[dict[str, Any]], object]


def frame() -> pl.DataFrame:
    numbers = pl.int_range(ROWS, eager=True)
    return pl.DataFrame(
        {
            "user": numbers % 20,
            "item": numbers % 30,
            "price": numbers / 7,
            "tags": [["a", "b"][: i % 3] for i in range(ROWS)],
            "at": 1_700_000_000 + numbers * 60,
            "rating": numbers % 5 + 1,
        }
    )


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    frame().write_parquet("rows.parquet")
    pl.DataFrame({"item": range(30), "brand": ["x", "y", "z"] * 10}).write_csv("items.csv")


def values() -> dict[str, Any]:
    return {
        "name": "toy",
        "data": {
            "source": "rows.parquet",
            "split": {"by": "time", "column": "at", "valid": 0.2, "test": 0.2},
            "derive": {"liked": "rating >= 4", "cents": "price * 100"},
            "join": [{"path": "items.csv", "on": "item"}],
        },
        "features": {
            "label": "liked",
            "user": "user",
            "columns": [
                {"name": "user", "encoder": "vocabulary", "min_count": 2},
                {"name": "item", "encoder": "hashed", "num_buckets": 16},
                {"name": "cents", "encoder": "quantiles", "num_buckets": 4},
                {"name": "tags", "encoder": "vocabulary", "length": 2},
                {"name": "brand", "encoder": "vocabulary"},
                {
                    "name": "hour",
                    "column": "at",
                    "encoder": "calendar",
                    "part": "hour",
                    "unit": "s",
                },
                {
                    "name": "day",
                    "column": "at",
                    "encoder": "calendar",
                    "part": "weekday",
                    "unit": "s",
                },
                {"name": "both", "encoder": "crossed", "columns": ["user", "brand"]},
            ],
        },
        "model": {
            "type": "finalmlp",
            "embedding_dim": 8,
            "hidden_1": [8],
            "hidden_2": [8],
            "num_heads": 2,
            "gate_1_context": ["user"],
        },
        "export": {"context": ["user", "at"]},
    }


def checked(change: Change | None = None) -> Validation:
    declared = values()
    if change is not None:
        change(declared)
    return check_job(parse_job(declared))


def column(declared: dict[str, Any], name: str) -> dict[str, Any]:
    return next(each for each in declared["features"]["columns"] if each["name"] == name)


def test_sound_job_shows_features_inputs_splits_and_model() -> None:
    result = checked()
    assert result.problems == []
    features = {row["feature"]: row for row in result.features}
    assert list(features) == ["user", "item", "cents", "tags", "brand", "hour", "day", "both"]
    assert features["hour"] == {
        "feature": "hour",
        "reads": "at",
        "dtype": "int64",
        "encoder": "calendar",
        "length": "",
        "settings": "part hour, unit s",
    }
    assert (features["tags"]["length"], features["tags"]["dtype"]) == (2, "string")
    assert features["both"]["reads"] == "user x brand"
    inputs = {row["input"]: (row["dtype"], row["role"], row["from"]) for row in result.inputs}
    assert inputs == {
        "user": ("int64", "context", "data"),
        "item": ("int64", "candidate", "data"),
        "cents": ("double", "candidate", "derived"),
        "tags": ("string", "candidate", "data"),
        "brand": ("string", "candidate", "join"),
        "at": ("int64", "context", "data"),
    }
    assert [(row["split"], row["rows"]) for row in result.splits] == [
        ("train", 120),
        ("valid", 40),
        ("test", 40),
    ]
    assert result.splits[0]["rate"] == 0.4
    assert result.model["num_heads"] == 2
    assert result.model["dropout_1"] == 0.2


def test_splits_show_the_time_that_they_cover() -> None:
    result = checked(lambda job: job["features"].update(time="at"))
    times = [(row["first (UTC)"], row["last (UTC)"]) for row in result.splits]
    assert times[0] == ("2023-11-14 22:13:20", "2023-11-15 00:12:20")
    assert times[1][0] == "2023-11-15 00:13:20"
    assert "2023-11-15 00:12:20" in result.text(Path("toy.toml"))
    timeless = checked(lambda job: job["data"].update(split={"by": "ratio"}))
    assert timeless.splits[0]["first (UTC)"] == ""
    assert "first (UTC)" not in timeless.text(Path("toy.toml"))


def test_derived_column_that_is_a_feature_is_said_to_be_an_input_of_the_release() -> None:
    (note,) = checked().notes
    assert note.startswith("'cents' is derived and a feature")


def drop(declared: dict[str, Any]) -> None:
    declared["features"]["label"] = "like"
    declared["features"]["user"] = "usr"
    column(declared, "item")["column"] = "itm"
    declared["model"]["gate_1_context"] = ["usr"]
    declared["export"]["context"] = ["usr"]


def test_all_absent_columns_are_reported_at_once() -> None:
    problems = "\n".join(checked(drop).problems)
    for text in (
        "features.label: column 'like' is not in the data. Did you mean 'liked'?",
        "features.user: column 'usr' is not in the data. Did you mean 'user'?",
        "feature 'item': column 'itm' is not in the data. Did you mean 'item'?",
        "model.gate_1_context: 'usr' is not a feature. Did you mean 'user'?",
        "export.context: 'usr' is no raw column of a feature. Did you mean 'user'?",
    ):
        assert text in problems


def test_all_encoders_that_do_not_fit_are_reported_at_once() -> None:
    def change(declared: dict[str, Any]) -> None:
        column(declared, "user").update(encoder="vocabulary", length=3)
        column(declared, "tags").pop("length")
        column(declared, "both")["columns"] = ["tags", "brand"]
        declared["features"]["columns"].append(
            {"name": "price", "encoder": "vocabulary", "min_count": 2}
        )

    problems = checked(change).problems
    assert len(problems) == 4
    for name, problem in zip(("user", "tags", "both", "price"), problems, strict=True):
        assert f"feature {name!r}" in problem


def test_all_absent_files_are_reported_at_once() -> None:
    def change(declared: dict[str, Any]) -> None:
        declared["data"]["source"] = ["none.parquet", "no*.csv"]
        declared["data"]["join"][0]["path"] = "gone.csv"

    problems = checked(change).problems
    assert [problem.partition(":")[0] for problem in problems] == [
        "none.parquet",
        "no*.csv",
        "gone.csv",
    ]


def test_wrong_model_settings_are_reported_beside_wrong_data() -> None:
    def change(declared: dict[str, Any]) -> None:
        declared["model"].update(num_heads=3, hiden_1=[4])
        declared["data"]["source"] = "none.parquet"

    problems = "\n".join(checked(change).problems)
    assert "model.hiden_1: unknown key. Did you mean 'hidden_1'?" in problems
    assert "none.parquet: no such file." in problems


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda job: job["model"].update(type="finalmpl"), "Did you mean 'finalmlp'?"),
        (lambda job: job["model"].update(num_heads=3), "model: num_heads = 3 does not divide 8"),
        (
            lambda job: job["export"].update(context=["xyzzy"]),
            "Known: user, item, cents, tags, brand, at.",
        ),
        (
            lambda job: job.update(
                model=job["model"] | {"embedding_dim": 6}, train={"sparse": {"mode": "fused"}}
            ),
            "Set 8, or train.sparse.mode = 'lazy'",
        ),
        (
            lambda job: job["data"]["derive"].update(liked="raing >= 4"),
            "'raing' is not in the data",
        ),
        (lambda job: job["data"].update(filter="rating >"), "data.filter"),
        (lambda job: job["data"].update(filter="rating > 9"), "no rows that the filter keeps"),
        (lambda job: job["data"]["derive"].update(liked="rating >= 1"), "have the label 1"),
        (
            lambda job: job["data"]["derive"].update(liked="rating"),
            "row 2, column 'liked': found 2",
        ),
        (
            lambda job: (
                column(job, "brand").update(separator="|", length=2),
                job["export"].update(opset=18),
            ),
            "export.opset: 18 is below 20, which feature 'brand' needs",
        ),
        (lambda job: job["features"].update(weight="none"), "features.weight: column 'none'"),
        (lambda job: job["data"]["split"].update(column="when"), "data.split: column 'when'"),
    ],
)
def test_wrong_job_is_refused(change: Change, message: str) -> None:
    assert message in "\n".join(checked(change).problems)


def test_first_wrong_value_of_every_column_is_reported() -> None:
    good = "".join(f"{i % 2},{i},{i}\n" for i in range(50))
    Path("rows.csv").write_text(f"click,a,b\n{good}2,x,1\n1,3,y\n")
    declared = {
        "name": "toy",
        "data": {"source": "rows.csv", "split": {"by": "ratio"}},
        "features": {
            "label": "click",
            "columns": [
                {"name": "a", "encoder": "quantiles", "num_buckets": 4},
                {"name": "b", "encoder": "standardized"},
            ],
        },
        "model": {"type": "dnn"},
    }
    problems = check_job(parse_job(declared)).problems
    assert len(problems) == 3
    assert any("row 51, column 'a': found 'x'" in problem for problem in problems)
    assert any("row 52, column 'b': found 'y'" in problem for problem in problems)
    assert any("row 51, column 'click': found 2" in problem for problem in problems)


def test_split_at_dates_is_made_as_the_page_shows_it() -> None:
    page = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
    (example,) = (
        block for block in re.findall(r"```toml\n(.*?)```", page, re.DOTALL) if "CASE" in block
    )
    filtered = re.search(r"filter = \"(shown_at .*?)\"`", page)
    assert filtered is not None
    days = pl.datetime_range(
        datetime(2025, 12, 30, tzinfo=UTC), datetime(2026, 3, 14, tzinfo=UTC), "12h", eager=True
    )
    clicks = pl.DataFrame({"shown_at": days, "click": pl.int_range(len(days), eager=True) % 2})
    clicks.write_csv("clicks.csv", datetime_format="%Y-%m-%dT%H:%M:%S")
    hour = {"name": "hour", "column": "shown_at", "encoder": "calendar", "part": "hour"}
    declared = {
        "name": "toy",
        "data": tomllib.loads(example)["data"] | {"filter": filtered.group(1)},
        "features": {"label": "click", "columns": [hour]},
        "model": {"type": "dnn"},
    }
    result = check_job(parse_job(declared))
    assert result.problems == []
    assert [row["rows"] for row in result.splits] == [139, 3, 3]


def write(path: Path, declared: dict[str, Any]) -> None:
    import tomli_w

    path.write_text(tomli_w.dumps(declared))


def test_command_prints_tables_and_leaves_nothing_behind(
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(Path("toy.toml"), values())
    before = sorted(Path().iterdir())
    assert main(["validate", "toy.toml"]) == 0
    out = capsys.readouterr().out
    for title in ("toy.toml: valid", "Features", "What the release takes in", "Splits", "Model"):
        assert title in out.splitlines()
    assert sorted(Path().iterdir()) == before


def test_command_takes_settings_and_gives_json(capsys: pytest.CaptureFixture[str]) -> None:
    write(Path("toy.toml"), values())
    assert main(["validate", "toy.toml", "--set", "data.split.test=0.1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["splits"][2]["rows"] == 20
    assert result["inputs"][0]["input"] == "user"


def test_command_lists_problems_and_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    declared = values()
    drop(declared)
    write(Path("toy.toml"), declared)
    assert main(["validate", "toy.toml"]) == 2
    lines = capsys.readouterr().err.splitlines()
    told = [line for line in lines if line.startswith("headwater: toy.toml: ")]
    assert lines[-5:] == told


def test_log_is_shown_by_its_users_and_items_after_the_k_core() -> None:
    job: dict[str, Any] = {
        "name": "log",
        "data": {
            "source": "rows.parquet",
            "split": {"by": "leave-one-out", "user": "user", "time": "at"},
        },
        "interactions": {"user": "user", "item": "item", "time": "at", "min_item_count": 7},
        "model": {"type": "popularity"},
    }
    result = check_job(parse_job(job))
    assert result.problems == []
    # 200 rows of 30 items: those below 20 come seven times, the others six times.
    assert [(split["rows"], split["users"]) for split in result.splits] == [
        (100, 20),
        (20, 20),
        (20, 20),
    ]
    assert result.splits[0].keys() == {
        "split",
        "rows",
        "users",
        "items",
        "first (UTC)",
        "last (UTC)",
    }
    assert "release" not in result.text(Path("job.toml"))
    job["interactions"]["min_item_count"] = 8
    assert "no event is left" in check_job(parse_job(job)).problems[0]
