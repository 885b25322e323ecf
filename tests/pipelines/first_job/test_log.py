"""`headwater init` of a log of interactions: when it is one, and that the job is valid as it is."""

from __future__ import annotations

import json
import random
import tomllib
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from headwater.pipelines.checking.validation import check_job
from headwater.pipelines.cli import main
from headwater.pipelines.first_job.guess import Guess
from headwater.pipelines.first_job.log import Log
from headwater.pipelines.first_job.write import write_job
from headwater.pipelines.job import load_job

USERS, EVENTS = 40, 6


def log() -> pl.DataFrame:
    """Return six events of each user, with a rating."""
    draw = random.Random(0)
    rows = [
        (user, f"f{item}", draw.randrange(1, 6), 1_700_000_000 + 3_600 * at + user)
        for user in range(USERS)
        for at, item in enumerate(draw.sample(range(30), EVENTS))
    ]
    return pl.DataFrame(rows, ["user_id", "movie", "rating", "timestamp"], orient="row")


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written(frame: pl.DataFrame, **settings: Any) -> tuple[Path, Log | Guess]:
    frame.write_parquet("log.parquet")
    return write_job(["log.parquet"], force=True, **settings)


@pytest.mark.parametrize("without", [[], ["rating"], ["timestamp"], ["rating", "timestamp"]])
def test_users_and_items_without_a_label_are_a_log_whose_job_is_valid(without: list[str]) -> None:
    path, found = written(log().drop(without))
    assert isinstance(found, Log)
    job = load_job(path)
    assert job.interactions is not None
    assert (job.interactions.user, job.interactions.item) == ("user_id", "movie")
    assert job.interactions.time == (None if "timestamp" in without else "timestamp")
    assert ("rating" in found.left_out) == ("rating" not in without)
    result = check_job(job)
    assert result.problems == []
    assert sum(split["rows"] for split in result.splits) == USERS * EVENTS


def test_each_users_newest_items_are_held_out_where_there_is_a_time() -> None:
    path, _ = written(log())
    assert tomllib.loads(path.read_text())["data"]["split"] == {
        "by": "leave-one-out",
        "user": "user_id",
        "time": "timestamp",
    }
    assert [split["rows"] for split in check_job(load_job(path)).splits] == [160, 40, 40]


def test_newest_rows_are_held_out_where_users_have_no_rows_to_spare() -> None:
    path, _ = written(log().with_columns(user_id=pl.int_range(USERS * EVENTS) // 2))
    assert tomllib.loads(path.read_text())["data"]["split"]["by"] == "time"
    assert check_job(load_job(path)).problems == []


def test_text_times_are_a_time_of_a_log_too() -> None:
    at = pl.from_epoch("timestamp").dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    path, _ = written(log().with_columns(timestamp=at))
    assert check_job(load_job(path)).problems == []


def test_column_or_files_that_name_the_split_are_used() -> None:
    parts = ["train", "train", "train", "train", "dev", "test"] * USERS
    path, found = written(log().with_columns(pl.Series("split", parts)))
    assert tomllib.loads(path.read_text())["data"]["split"]["by"] == "column"
    assert found.left_out["split"] == "the split"
    for part, rows in (("train", 160), ("valid", 40), ("test", 40)):
        log().head(rows).write_parquet(f"shop_{part}.parquet")
    path, found = write_job([f"shop_{part}.parquet" for part in ("train", "valid", "test")])
    assert isinstance(found, Log)
    assert "split" not in tomllib.loads(path.read_text())["data"]


def test_ratings_are_a_label_where_other_columns_can_be_features() -> None:
    _, found = written(log().with_columns(country=pl.lit("DE")))
    assert isinstance(found, Guess)
    assert found.derive == {"label": "rating >= 4"}


def test_a_column_of_two_answers_is_a_label() -> None:
    frame = log().drop("rating").with_columns(clicked=pl.int_range(USERS * EVENTS) % 2)
    _, found = written(frame)
    assert isinstance(found, Guess)
    assert found.label == "clicked"


def test_columns_that_a_log_does_not_read_are_left_out_with_the_reason() -> None:
    frame = log().drop("rating").with_columns(gender=pl.Series(["M", "F"] * (USERS * EVENTS // 2)))
    _, found = written(frame)
    assert isinstance(found, Log)
    assert found.left_out == {"gender": "a log has user, item and time alone"}


def test_label_forces_a_click_job() -> None:
    path, found = written(log(), label="rating")
    assert isinstance(found, Guess)
    assert load_job(path).interactions is None


def test_repeated_events_are_told_in_the_job() -> None:
    path, found = written(pl.concat([log(), log().head(3)]))
    assert isinstance(found, Log)
    assert found.repeated == 3
    assert "# Note: 3 rows repeat the user, item and time of another one." in path.read_text()
    assert "Note" not in written(log())[0].read_text()


def test_high_ratings_are_kept_as_soon_as_the_hash_sign_is_gone() -> None:
    path, _ = written(log())
    path.write_text(path.read_text().replace("# filter", "filter"))
    assert load_job(path).data.filter == "rating >= 4"
    assert check_job(load_job(path)).problems == []


def test_json_result_names_the_columns(capsys: pytest.CaptureFixture[str]) -> None:
    log().write_parquet("log.parquet")
    assert main(["init", "log.parquet", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["job"] == "log.toml"
    assert (result["user"], result["item"], result["time"]) == ("user_id", "movie", "timestamp")
    assert "label" not in result
