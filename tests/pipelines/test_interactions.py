"""Logs of users and items from files to arrays, against plain Python."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headwater.feature_store.errors import DataError, JobError
from headwater.pipelines.events import row_keys
from headwater.pipelines.interactions import load_baskets, load_interactions
from headwater.pipelines.job import Job, dump_job, parse_job
from headwater.pipelines.prepared import Prepared
from headwater.pipelines.preparing.prepare import prepare

SPLIT = {"by": "column", "column": "part"}
LEAVE_ONE_OUT = {"by": "leave-one-out", "user": "who", "time": "at"}

Row = tuple[str, int, int]


def log_job(folder: Path, data: dict[str, Any], **section: Any) -> Job:
    """Return a job for a log; rows of `user` are in `who`, its items in `what`."""
    asker = {} if "basket" in section else {"user": "who"}
    return parse_job(
        {
            "name": "log",
            "data": {"root": str(folder), "source": "log.parquet", **data},
            "interactions": {**asker, "item": "what", **section},
            "model": {"type": "dnn"},
        }
    )


def prepared_log(
    folder: Path, rows: pl.DataFrame, split: dict[str, Any], **section: Any
) -> Prepared:
    """Return the prepared data of some rows."""
    folder.mkdir(exist_ok=True, parents=True)
    rows.write_parquet(folder / "log.parquet")
    return prepare(log_job(folder, {"split": split}, **section), folder / "prepared")


def named(prepared: Prepared, split: Any) -> dict[Any, list[Any]]:
    """Return the items of each user of a split by their raw values; None for what training never saw."""
    found = load_interactions(prepared, split)
    users, items = ([None, None, *row_keys(column)] for column in prepared.schema.columns)
    return {
        users[user]: [items[item] for item in found.of(user)]
        for user in range(found.num_users)
        if len(found.of(user))
    }


rows = st.lists(
    st.tuples(
        st.sampled_from("abcd"),
        st.integers(0, 5),
        st.integers(0, 9),
        st.sampled_from(["train", "train", "valid", "test"]),
    ),
    min_size=1,
    max_size=40,
    unique_by=lambda row: row[:3],
)


def core(log: list[Any], least_user: int, least_item: int) -> list[Any]:
    """Return the k-core of a log, by taking out one user or item at a time."""
    while True:
        users, items = Counter(row[0] for row in log), Counter(row[1] for row in log)
        left = [row for row in log if users[row[0]] >= least_user and items[row[1]] >= least_item]
        if len(left) == len(log):
            return left
        log = left


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40
)
@given(rows, st.integers(1, 3), st.integers(1, 3))
def test_every_event_of_the_core_is_in_its_split_in_the_order_of_time(
    tmp_path_factory: pytest.TempPathFactory, log: list[Any], least_user: int, least_item: int
) -> None:
    left = core(log, least_user, least_item)
    frame = pl.DataFrame(log, schema=["who", "what", "at", "part"], orient="row")
    counts = {"min_user_count": least_user, "min_item_count": least_item}
    folder = tmp_path_factory.mktemp("log")
    if not {"train", "valid"} <= {row[3] for row in left}:
        with pytest.raises(DataError, match=r"no event is left|no rows for"):
            prepared_log(folder, frame, SPLIT, time="at", **counts)
        return
    prepared = prepared_log(folder, frame, SPLIT, time="at", **counts)
    known = (
        {row[0] for row in left if row[3] == "train"},
        {row[1] for row in left if row[3] == "train"},
    )
    for split in prepared.splits:
        wanted: dict[Any, list[Any]] = {}
        for user, item, *_ in sorted((r for r in left if r[3] == split), key=lambda r: r[2]):
            key = user if user in known[0] else None
            wanted.setdefault(key, []).append(item if item in known[1] else None)
        found = named(prepared, split)
        found[None], wanted[None] = (
            sorted(map(str, found.get(None, []))),
            sorted(map(str, wanted.get(None, []))),
        )
        assert found == wanted


def test_the_newest_event_is_for_test_and_the_one_before_for_validation(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {"who": ["a"] * 4 + ["b"] * 2, "what": [1, 2, 3, 4, 1, 2], "at": [4, 3, 2, 1, 1, 2]}
    )
    prepared = prepared_log(tmp_path, frame, LEAVE_ONE_OUT, time="at")
    # Item 1 is b's alone in training, item 2 too.
    assert named(prepared, "train") == {"a": [4, 3], "b": [1, 2]}
    assert named(prepared, "valid") == {"a": [2]}
    assert named(prepared, "test") == {"a": [1]}


def test_the_same_event_in_two_splits_is_refused_and_a_later_one_is_not(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "who": ["a", "a", "a", "b"],
            "what": ["x", "y", "x", "x"],
            "at": [1, 2, 3, 1],
            "part": ["train", "train", "valid", "train"],
        }
    )
    prepared = prepared_log(tmp_path, frame, SPLIT, time="at")
    assert named(prepared, "valid") == {"a": ["x"]}
    with pytest.raises(
        DataError, match=r"log.parquet: 1 event is both in train and in valid, as user 'a'"
    ):
        prepared_log(tmp_path, frame, SPLIT)
    again = frame.with_columns(at=pl.lit(1))
    with pytest.raises(DataError, match="with item 'x' at time 1"):
        prepared_log(tmp_path / "again", again, SPLIT, time="at")


def test_rows_without_user_or_item_are_left_out_and_unknown_ones_are_row_1(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "who": ["a", None, "a", "z", "a"],
            "what": ["x", "x", None, "x", "new"],
            "part": ["train", "train", "train", "valid", "valid"],
        }
    )
    prepared = prepared_log(tmp_path, frame, SPLIT)
    assert named(prepared, "train") == {"a": ["x"]}
    assert named(prepared, "valid") == {"a": [None], None: ["x"]}


def test_weights_follow_their_events(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "who": ["a", "a", "b", "b"],
            "what": [1, 2, 1, 2],
            "at": [2, 1, 1, 2],
            "w": [0.5, 2.0, 1.0, 3.0],
            "part": ["train", "train", "train", "valid"],
        }
    )
    prepared = prepared_log(tmp_path, frame, SPLIT, time="at", weight="w")
    found = load_interactions(prepared, "train")
    assert found.weight_E is not None
    assert sorted(found.weight_E.tolist()) == [0.5, 1.0, 2.0]
    user = next(u for u in range(found.num_users) if len(found.of(u)) == 2)
    assert found.weight_E[found.starts_U[user] : found.starts_U[user + 1]].tolist() == [2.0, 0.5]


def test_a_basket_is_of_one_split_and_some_of_its_items_are_hidden(tmp_path: Path) -> None:
    baskets = [(f"basket {b}", item) for b in range(60) for item in range(b % 3, 9, 1 + b % 2)]
    frame = pl.DataFrame(baskets, schema=["who", "what"], orient="row")
    ratio = {"by": "ratio", "valid": 0.3, "test": 0.2}
    prepared = prepared_log(tmp_path, frame, ratio, basket="who", shown=0.4)
    sizes = Counter(name for name, _ in baskets)
    found: list[int] = []
    for split in prepared.splits:
        held = load_baskets(prepared, split, shown=0.4, given=False)
        again = load_baskets(prepared, split, shown=0.4, given=False)
        assert (held.hidden_E == again.hidden_E).all()
        for basket in range(2, held.whole.num_users):
            first, end = held.whole.starts_U[basket : basket + 2]
            size, hidden = end - first, int(held.hidden_E[first:end].sum())
            found.append(int(size))
            assert size - hidden == max(1, -(-size * 4 // 10))
    assert sorted(found) == sorted(sizes.values())


def test_given_hidden_items_are_taken_as_they_are(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "who": ["a", "a", "b", "b", "b"],
            "what": ["x", "y", "y", "x", "y"],
            "hide": [0, 0, 0, 1, 1],
            "part": ["train", "train", "valid", "valid", "valid"],
        }
    )
    prepared = prepared_log(tmp_path, frame, SPLIT, basket="who", hidden="hide")
    held = load_baskets(prepared, "valid", shown=0.5, given=True)
    assert held.hidden_E.tolist() == [False, True, True]


def test_a_basket_in_two_splits_is_refused(tmp_path: Path) -> None:
    frame = pl.DataFrame({"who": ["a", "a"], "what": ["x", "y"], "part": ["train", "valid"]})
    with pytest.raises(DataError, match="1 baskets have items both in train and in valid"):
        prepared_log(tmp_path, frame, SPLIT, basket="who")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"user": "u", "basket": "b", "item": "i"}, "give `user`, or `basket`"),
        ({"item": "i"}, "give `user`, or `basket`"),
        ({"user": "i", "item": "i"}, "'i' is the column of the user too"),
        ({"user": "u", "item": "i", "hidden": "h"}, "goes with `basket`"),
        ({"user": "u", "item": "i", "top_k": []}, "top_k"),
    ],
)
def test_a_wrong_section_is_refused_by_key(section: dict[str, Any], message: str) -> None:
    values = {
        "name": "log",
        "data": {"train": "a", "valid": "b"},
        "interactions": section,
        "model": {"type": "dnn"},
    }
    with pytest.raises(JobError, match=message) as error:
        parse_job(values)
    assert "features" not in str(error.value)


def test_a_job_has_features_or_interactions(tmp_path: Path) -> None:
    values = log_job(tmp_path, {"split": SPLIT}).model_dump(mode="json", exclude_none=True)
    with pytest.raises(JobError, match=r"both \[features\] and \[interactions\]"):
        parse_job({**values, "features": {"label": "y", "columns": []}})
    del values["interactions"]
    with pytest.raises(JobError, match="features"):
        parse_job(values)


def test_a_job_is_the_same_after_it_was_written(tmp_path: Path) -> None:
    import tomllib

    job = log_job(tmp_path, {"split": SPLIT}, time="at", mask_seen="train")
    assert parse_job(tomllib.loads(dump_job(job))) == job


def test_absent_columns_are_named_by_their_keys(tmp_path: Path) -> None:
    frame = pl.DataFrame({"who": ["a"], "part": ["train"]})
    with pytest.raises(DataError, match=r"interactions\.item: column 'what' is not in the data"):
        prepared_log(tmp_path, frame, SPLIT)
