"""Features looked up by key and time, from what a store holds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from headwater.feature_store.errors import InputError
from headwater.feature_store.online.definition import Definition, Table, encode_key, fold_row
from headwater.feature_store.online.kinds import Count, Events, Last, Vector
from headwater.feature_store.online.lmdb import LmdbStore
from headwater.feature_store.online.lookup import Lookup
from headwater.feature_store.online.store import Bound, Partition, Write

USERS = Table(
    "users",
    "user",
    "int64",
    (
        Count("views"),
        Vector("taste", 2),
        Last("last", "page", "string"),
        Count("hour", {}, "", 3_600_000, 60_000),
    ),
)
NOW_MS = 1_800_000_000_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LmdbStore]:
    opened = LmdbStore(tmp_path / "store", "job")
    yield opened
    opened.close()


@pytest.fixture
def filled(store: LmdbStore) -> LmdbStore:
    """Give a store with the row of one user, 5, and the vector of another, 6."""
    definition = Definition("job", ("pages",), "ts_ms", "", 0, (USERS,))
    store.bind(Bound(msgspec.Raw(definition.encoded()), "earliest"))
    events = Events(
        [NOW_MS - 7_200_000, NOW_MS - 60_000, NOW_MS + 500],
        [(0, 0, 0), (0, 1, 0), (0, 2, 0)],
        {"page": ["a", "b", "c"]},
        0,
    )
    row = fold_row(None, USERS.folded, events, range(3))
    vector = np.array([0.5, -1], "<f4").tobytes()
    store.begin({Partition("pages", 0): 0})
    writes = [Write("users", encode_key(5), row), Write("users.taste", encode_key(6), vector)]
    store.commit({Partition("pages", 0): (0, 3)}, writes, [])
    return store


def test_values_come_by_feature_in_the_order_of_keys(filled: LmdbStore) -> None:
    found = Lookup(filled, source="s").look_up({"users": [6, 5, 9]}, NOW_MS + 1000)["users"]
    assert list(found.values) == ["views", "last", "hour", "taste"]
    assert found.values["views"] == [0, 3, 0]
    assert found.values["last"] == ["", "c", ""]
    assert found.values["hour"] == [0, 2, 0]
    assert found.values["taste"][0] == [0.5, -1.0]
    assert np.isnan(np.array(found.values["taste"][1:])).all()
    assert found.num_missing == {"views": 2, "last": 2, "hour": 2, "taste": 2}


def test_an_event_at_the_time_or_after_it_is_not_seen(filled: LmdbStore) -> None:
    lookup = Lookup(filled, source="s")
    assert lookup.look_up({"users": [5]}, NOW_MS + 500)["users"].values["last"] == [""]
    assert lookup.look_up({"users": [5]}, NOW_MS + 501)["users"].values["last"] == ["c"]


def test_without_a_time_all_that_is_known_counts(filled: LmdbStore) -> None:
    # The row's newest event is far ahead of this machine's clock.
    assert Lookup(filled, source="s").look_up({"users": [5]})["users"].values["hour"] == [2]


def test_an_unknown_table_is_refused_with_the_known_ones(filled: LmdbStore) -> None:
    with pytest.raises(
        InputError, match=r"no table 'user'; there are users\. Did you mean 'users'"
    ):
        Lookup(filled, source="s").look_up({"user": [5]})


def test_a_store_that_no_job_has_written_to_is_refused(store: LmdbStore) -> None:
    with pytest.raises(InputError, match="no job has written here"):
        Lookup(store, source="lmdb:x")


def test_looking_up_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'polars', 'pyarrow', 'onnx', 'onnxruntime', 'pydantic', 'kafka'}"
    code = (
        "import sys, headwater.feature_store.online.lookup, headwater.feature_store.online.lmdb; "
        f"print(*sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
