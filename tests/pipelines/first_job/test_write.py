"""`headwater init`: what it guesses from data, and that what it writes is valid as it is."""

from __future__ import annotations

import json
import random
import re
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from headwater.feature_store.errors import DataError, JobError
from headwater.pipelines.checking.validation import check_job
from headwater.pipelines.cli import main
from headwater.pipelines.commands.init import init
from headwater.pipelines.data.files import find_files
from headwater.pipelines.data.table import Table
from headwater.pipelines.first_job.guess import Guess, guess
from headwater.pipelines.first_job.profile import look_at
from headwater.pipelines.first_job.write import write_job
from headwater.pipelines.job import load_job

ROWS = 400


def clicks(rows: int = ROWS) -> pl.DataFrame:
    """Return a click log with a column of every kind."""
    draw = random.Random(0)
    start = datetime(2024, 5, 1, tzinfo=UTC)
    users = [draw.randrange(30) for _ in range(rows)]
    items = [draw.randrange(40) for _ in range(rows)]
    return pl.DataFrame(
        {
            "row_id": [f"r{i:06d}" for i in range(rows)],
            "user_id": users,
            "userAge": [18 + 2 * user % 50 for user in users],
            "item_id": items,
            "price": [round(draw.lognormvariate(2, 1), 2) for _ in range(rows)],
            "bytes_sent": [int(draw.lognormvariate(8, 3)) - 5 for _ in range(rows)],
            "genres": [
                "|".join(draw.sample(["Drama", "Comedy", "War", "Crime", "Noir"], item % 3 + 1))
                for item in items
            ],
            "country": [draw.choice(["DE", "FR", "US", None]) for _ in range(rows)],
            "version": ["v1"] * rows,
            "event_time": [start + timedelta(minutes=37 * i) for i in range(rows)],
            "purchased": [int(draw.random() < 0.1) for _ in range(rows)],
            "clicked": [draw.random() < 0.3 for _ in range(rows)],
        }
    )


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def guessed(frame: pl.DataFrame, label: str | None = None) -> Guess:
    frame.write_parquet("rows.parquet")
    return guess(look_at(Table(find_files("rows.parquet"))), label)


def encoder_of(result: Guess, name: str) -> dict[str, Any]:
    return next(encoder for encoder, _ in result.columns if encoder["name"] == name)


def test_columns_get_the_encoders_that_fit_them() -> None:
    result = guessed(clicks())
    kinds = {encoder["name"]: encoder["encoder"] for encoder, _ in result.columns}
    assert kinds == {
        "user_id": "vocabulary",
        "userAge": "quantiles",
        "item_id": "vocabulary",
        "price": "quantiles",
        "bytes_sent": "quantiles",
        "genres": "vocabulary",
        "country": "vocabulary",
        "hour": "calendar",
        "weekday": "calendar",
    }
    assert encoder_of(result, "genres")["length"] == 3
    assert encoder_of(result, "genres")["separator"] == "|"
    assert result.derive == {}
    assert (result.label, result.user, result.item) == ("clicked", "user_id", "item_id")


def test_columns_that_teach_nothing_or_tell_the_answer_are_left_out_with_the_reason() -> None:
    assert guessed(clicks()).left_out == {
        "clicked": "the label",
        "purchased": "looks like another outcome, known only afterwards",
        "row_id": "a value of its own in almost every row",
        "version": "one value only",
    }


def test_newest_rows_are_held_out_where_there_is_a_time_and_random_ones_elsewhere() -> None:
    assert guessed(clicks()).split["by"] == "time"
    assert guessed(clicks().drop("event_time")).split["by"] == "ratio"


def test_column_that_names_the_split_is_used() -> None:
    parts = ["train", "train", "dev", "test"] * (ROWS // 4)
    result = guessed(clicks().with_columns(pl.Series("split", parts)))
    assert result.split == {
        "by": "column",
        "column": "split",
        "train": "train",
        "valid": "dev",
        "test": "test",
    }


def test_columns_that_are_fixed_for_a_user_are_given_once_in_a_request() -> None:
    assert guessed(clicks()).context == ["user_id", "userAge", "event_time"]


@pytest.mark.parametrize(
    ("user", "item"),
    [
        ("shopper", "banner_no"),
        ("customerNumber", "article_nr"),
        ("visitor_id", "sku"),
        ("member_key", "ad_number"),
        ("Customer", "creative_id"),
        ("shopper_no", "listing"),
    ],
)
def test_user_and_item_are_known_by_many_names(user: str, item: str) -> None:
    result = guessed(clicks().rename({"user_id": user, "item_id": item}))
    assert (result.user, result.item) == (user, item)
    assert [encoder_of(result, name)["encoder"] for name in (user, item)] == ["vocabulary"] * 2
    assert result.context[0] == user


def test_flag_named_like_a_user_is_none() -> None:
    frame = clicks().drop("user_id").with_columns(member=pl.int_range(ROWS) // 3 % 2)
    assert guessed(frame).user is None


def test_number_before_its_noun_is_an_amount() -> None:
    frame = clicks().with_columns(number_of_views=(pl.int_range(ROWS) % 90) ** 3)
    assert encoder_of(guessed(frame), "number_of_views")["encoder"] == "quantiles"


def test_unknown_user_and_item_are_suggested_by_their_values_and_contexts_with_them() -> None:
    clicks().rename({"user_id": "plate", "item_id": "stock"}).write_parquet("clicks.parquet")
    path, _ = write_job(["clicks.parquet"])
    text = path.read_text()
    for line in (
        '# user = "stock"  # perhaps: no column is named like one, but its 40 values recur',
        '# item = "plate"  # perhaps: no column is named like one, but its 30 values recur',
        '# gate_1_context = ["stock"]',
        '# gate_2_context = ["plate"]',
        '# context = ["stock", "event_time"]',
    ):
        assert line in text.splitlines()
    # The remarks are a job as soon as the hash sign is gone.
    path.write_text(re.sub(r"^# (?=user|item|gate_|context)", "", text, flags=re.MULTILINE))
    assert check_job(load_job(path)).problems == []


def test_context_is_a_remark_where_no_column_can_be_the_user_or_item() -> None:
    clicks().drop("user_id", "item_id", "genres").write_parquet("clicks.parquet")
    path, found = write_job(["clicks.parquet"])
    assert isinstance(found, Guess)
    assert found.perhaps == {}
    lines = path.read_text().splitlines()
    assert {'# context = ["..."]', '# gate_1_context = ["..."]', '# gate_2_context = ["..."]'} < {
        *lines
    }
    assert '# user = "..."  # no column looks like one' in lines


@pytest.mark.parametrize(
    ("values", "unit"),
    [
        ([881_250_949 + 25_000 * i for i in range(ROWS)], "s"),
        ([1_700_000_000_000 + 3_600_000 * i for i in range(ROWS)], "ms"),
        ([1_700_000_000_000_000 + 3_600_000_000 * i for i in range(ROWS)], "us"),
    ],
)
def test_integer_times_are_known_by_name_and_range(values: list[int], unit: str) -> None:
    frame = clicks().drop("event_time").with_columns(pl.Series("timestamp", values))
    result = guessed(frame)
    assert encoder_of(result, "hour")["unit"] == unit
    assert result.time == "timestamp"


def test_time_as_text_is_read_by_the_encoder() -> None:
    text = pl.col("event_time").dt.strftime("%Y-%m-%d %H:%M:%S+00:00")
    result = guessed(clicks().with_columns(text))
    assert result.time == "event_time"
    assert encoder_of(result, "hour")["column"] == "event_time"
    assert result.derive == {}


def test_rating_becomes_a_label_at_four_fifths_of_its_scale() -> None:
    frame = clicks().drop("clicked", "purchased")
    result = guessed(frame.with_columns(rating=pl.int_range(ROWS) % 5 + 1))
    assert result.derive["label"] == "rating >= 4"
    assert result.left_out["rating"] == "the label comes from it"


def test_label_of_two_texts_is_derived() -> None:
    frame = clicks().drop("purchased").with_columns(clicked=pl.lit("no"))
    answers = pl.Series("clicked", ["yes", "no"] * (ROWS // 2))
    assert guessed(frame.with_columns(answers)).derive["label"] == "clicked = 'yes'"


def test_rows_without_a_label_are_filtered() -> None:
    labels = pl.Series("clicked", [1, 0, None, 0] * (ROWS // 4))
    assert guessed(clicks().with_columns(labels)).filter == "clicked IS NOT NULL"


def test_count_named_by_label_is_positive_above_zero() -> None:
    frame = clicks().drop("clicked", "purchased").with_columns(sales=pl.int_range(ROWS) % 7)
    assert guessed(frame, "sales").derive["label"] == "sales > 0"


def test_huge_cardinality_is_hashed() -> None:
    rows = 150_000
    frame = pl.DataFrame(
        {"click": [0, 1] * (rows // 2), "cookie": [f"c{i // 1.2:.0f}" for i in range(rows)]}
    )
    result = guessed(frame.with_columns(cookie=pl.col("cookie").sort()))
    assert encoder_of(result, "cookie") == {
        "name": "cookie",
        "encoder": "hashed",
        "num_buckets": 131_072,
    }


def test_vectors_structs_and_free_text_are_left_out() -> None:
    frame = clicks().with_columns(
        vector=pl.lit([0.5, 0.25]),
        place=pl.struct(city=pl.lit("Bonn")),
        story=pl.Series(["word " * 20 + str(i // 2) for i in range(ROWS)]),
        tags=pl.Series([["a", "b"][: i % 3] for i in range(ROWS)]),
    )
    result = guessed(frame)
    assert result.left_out["vector"] == "a vector of numbers"
    assert result.left_out["place"].startswith("no encoder reads Struct")
    assert result.left_out["story"] == "free text"
    assert encoder_of(result, "tags")["length"] == 2


def test_label_that_cannot_be_guessed_is_refused_with_the_candidates() -> None:
    frame = clicks().drop("clicked", "purchased").with_columns(member=pl.int_range(ROWS) % 2)
    with pytest.raises(JobError, match=r"Columns of two values: member\. Say which by --label\."):
        guessed(frame)
    assert guessed(frame, "member").label == "member"


@pytest.mark.parametrize("label", ["nope", "country", "price"])
def test_label_that_does_not_fit_is_refused(label: str) -> None:
    with pytest.raises(JobError, match=f"--label {label}: "):
        guessed(clicks(), label)


def test_label_that_is_no_column_is_refused_with_the_nearest() -> None:
    with pytest.raises(JobError, match=r"--label click: no such column\. Did you mean 'clicked'\?"):
        guessed(clicks(), "click")


Write = Callable[[pl.DataFrame, Path], object]


@pytest.mark.parametrize(
    ("suffix", "write"),
    [
        (".parquet", lambda frame, path: frame.write_parquet(path)),
        (".csv", lambda frame, path: frame.write_csv(path)),
        (".tsv", lambda frame, path: frame.write_csv(path, separator="\t")),
        (".ndjson", lambda frame, path: frame.write_ndjson(path)),
    ],
)
def test_written_job_is_valid_for_every_format(suffix: str, write: Write) -> None:
    frame = clicks().with_columns(pl.col("event_time").dt.strftime("%Y-%m-%dT%H:%M:%SZ"))
    write(frame, Path(f"clicks{suffix}"))
    path, _ = write_job([f"clicks{suffix}"])
    assert path == Path("clicks.toml")
    result = check_job(load_job(path))
    assert result.problems == []
    assert len(result.features) == 9
    assert [row["rows"] for row in result.splits] == [320, 40, 40]


def test_odd_column_names_survive(tmp_path: Path) -> None:
    odd = 'a "quoted" \u00e9\n#name\\'
    clicks().rename({"country": odd, "genres": "it's; x"}).write_parquet("odd.parquet")
    path, _ = write_job(["odd.parquet"])
    assert odd in [encoder.name for encoder in load_job(path).features.columns]
    assert check_job(load_job(path)).problems == []


def test_job_file_is_never_overwritten_without_force(capsys: pytest.CaptureFixture[str]) -> None:
    clicks().write_parquet("clicks.parquet")
    Path("clicks.toml").write_text("mine")
    assert main(["init", "clicks.parquet"]) == 2
    assert "clicks.toml: exists already." in capsys.readouterr().err
    assert Path("clicks.toml").read_text() == "mine"
    assert main(["init", "clicks.parquet", "--force"]) == 0
    assert "# A first job" in Path("clicks.toml").read_text()


def test_json_result_names_the_file_and_the_decisions(capsys: pytest.CaptureFixture[str]) -> None:
    clicks().write_parquet("clicks.parquet")
    init("clicks.parquet", out=Path("job.toml"), json=True)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["job"] == "job.toml"
    assert result["label"] == "clicked"
    assert result["left_out"]["version"] == "one value only"


def test_files_named_by_their_part_keep_it() -> None:
    Path("logs").mkdir()
    frame = clicks()
    frame.head(300).write_parquet("logs/shop_train.parquet")
    frame.slice(300, 50).write_parquet("logs/shop_val.parquet")
    frame.tail(50).write_parquet("logs/shop_test.parquet")
    path, _ = write_job(["logs"])
    data = tomllib.loads(path.read_text())["data"]
    assert path == Path("logs.toml")
    assert [Path(data[part]).name for part in ("train", "valid", "test")] == [
        "shop_train.parquet",
        "shop_val.parquet",
        "shop_test.parquet",
    ]
    assert check_job(load_job(path)).problems == []
    names = ["logs/shop_train.parquet", "logs/shop_val.parquet"]
    assert write_job(names)[0] == Path("shop.toml")


def test_test_file_without_a_validation_file_is_refused() -> None:
    clicks().write_parquet("train.parquet")
    clicks().write_parquet("test.parquet")
    with pytest.raises(JobError, match="needs one for validation too"):
        write_job(["train.parquet", "test.parquet"])


def test_files_of_two_tables_are_refused() -> None:
    clicks().write_parquet("clicks.parquet")
    clicks().select("user_id", "country").write_parquet("users.parquet")
    with pytest.raises(DataError, match="have different columns"):
        write_job(["clicks.parquet", "users.parquet"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, "no such file"),
        ("empty.csv", "", "the file is empty"),
        ("head.csv", "click,user\n", "no rows"),
        ("x.xlsx", "?", "expected a name that ends in"),
        ("one.csv", "click\n0\n1\n", "no column is left as a feature"),
    ],
)
def test_data_that_cannot_be_a_job_is_refused_and_nothing_is_written(
    name: str, content: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        Path(name).write_text(content)
    before = sorted(Path().iterdir())
    assert main(["init", name]) == 2
    assert message in capsys.readouterr().err
    assert sorted(Path().iterdir()) == before
