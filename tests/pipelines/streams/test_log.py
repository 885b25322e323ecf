"""Events become Parquet files by the hour, late ones too, each event once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from headwater.feature_store.errors import HeadwaterError
from headwater.feature_store.online.store import Partition
from headwater.feature_store.online.stores import open_store
from headwater.pipelines.streams.effects import Place, Rename
from headwater.pipelines.streams.files import STAGED, clear_staged, finish
from headwater.pipelines.streams.kinds import load_stream
from headwater.pipelines.streams.log import LogJob, LogSettings
from headwater.pipelines.streams.settings import parse_settings

HOUR_MS = 3_600_000
NOON_MS = 1_700_049_600_000  # 2023-11-15 12:00 UTC


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "files"


def test_events_lie_in_files_of_their_hours(streams: Any, folder: Path, tmp_path: Path) -> None:
    topic = streams.topic(2)
    values = streams.values(topic, log={"path": str(folder)})
    del values["tables"]
    settings = parse_settings(values, LogSettings)
    store = open_store(settings.store, settings.name)
    times = [NOON_MS + number * HOUR_MS // 4 for number in range(12)]
    for partition in (0, 1):
        streams.send(
            topic, [streams.event(n, ts_ms=time) for n, time in enumerate(times)], partition
        )
    streams.catch_up(settings, store, job=LogJob(), folder=folder)
    # Hours late, and so in a file of its own.
    streams.send(topic, [streams.event(99, ts_ms=NOON_MS + 1)], 0)
    streams.catch_up(settings, store, job=LogJob(), folder=folder)
    store.close()
    rows = {
        hour: [
            row
            for path in (folder / f"hour=2023-11-15T{hour}").iterdir()
            for row in pq.ParquetFile(path).read().to_pylist()
        ]
        for hour in (12, 13, 14)
    }
    assert {hour: len(found) for hour, found in rows.items()} == {12: 9, 13: 8, 14: 8}
    assert {row["ts_ms"] // HOUR_MS * HOUR_MS for row in rows[13]} == {NOON_MS + HOUR_MS}
    places = {(row["_partition"], row["_offset"]) for found in rows.values() for row in found}
    assert places == {*((p, offset) for p in (0, 1) for offset in range(12)), (0, 12)}
    assert list((folder / STAGED).iterdir()) == []


def test_a_store_that_came_back_older_writes_no_row_twice(streams: Any, folder: Path) -> None:
    topic = streams.topic()
    values = streams.values(topic, log={"path": str(folder)})
    del values["tables"]
    settings = parse_settings(values, LogSettings)
    store = open_store(settings.store, settings.name)
    streams.send(topic, map(streams.event, range(10)))
    streams.catch_up(settings, store, job=LogJob(), folder=folder)
    older = streams.store.with_name("older")
    shutil.copytree(streams.store, older)
    streams.send(topic, map(streams.event, range(10, 20)))
    streams.catch_up(settings, store, job=LogJob(), folder=folder)
    streams.send(topic, map(streams.event, range(20, 30)))
    restored = open_store(f"lmdb:{older}", settings.name)
    streams.catch_up(settings, restored, job=LogJob(), folder=folder)
    rows = [
        row["_offset"]
        for path in folder.glob("hour=*/*.parquet")
        for row in pq.ParquetFile(path).read().to_pylist()
    ]
    assert sorted(rows) == list(range(30))
    store.close()
    restored.close()


def test_a_file_tells_its_kind(tmp_path: Path) -> None:
    path = tmp_path / "stream.toml"
    path.write_text(
        'name = "log"\n[log]\npath = "files"\n[source]\ntopics = ["a"]\ntime = "t"\n'
        'columns = [{ name = "t", dtype = "int64" }]\n'
    )
    settings = load_stream(path)
    assert isinstance(settings, LogSettings)
    assert json.loads(settings.encoded()) == {"log": "files", "columns": [["t", "int64"]]}


def staged(folder: Path, name: str) -> Path:
    path = folder / STAGED / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(name)
    return path


def test_renames_may_be_done_again(folder: Path) -> None:
    staged(folder, "a-0-5-x")
    rename = Rename(Place("a", 0, 5), f"{STAGED}/a-0-5-x", "hour=1/a.parquet")
    finish(folder, [rename])
    finish(folder, [rename])
    assert (folder / "hour=1" / "a.parquet").read_text() == "a-0-5-x"


def test_content_that_is_gone_stops_with_its_place(folder: Path) -> None:
    rename = Rename(Place("a", 0, 5), f"{STAGED}/gone", "a.parquet")
    with pytest.raises(HeadwaterError, match="topic 'a', partition 0, from offset 5 are lost here"):
        finish(folder, [rename])


def test_only_what_no_transaction_can_name_is_deleted(folder: Path) -> None:
    for name in ("a-0-4-old", "a-0-4-named", "a-0-5-now", "a-1-4-other", "a-b-0-4-topic"):
        staged(folder, name)
    clear_staged(folder, Partition("a", 0), 5, {f"{STAGED}/a-0-4-named"})
    left = sorted(path.name for path in (folder / STAGED).iterdir())
    assert left == ["a-0-4-named", "a-0-5-now", "a-1-4-other", "a-b-0-4-topic"]
