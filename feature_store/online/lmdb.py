"""The embedded store: LMDB on a folder, shared by the processes of one host.

Never with `writemap`, which on a full disk ends the process instead of raising an error. Readers that were
killed pin old pages, so they are cleared when the store is opened and once a minute.
"""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
import msgspec

from headwater.feature_store.errors import InputError, OutputError
from headwater.feature_store.online.store import (
    Bound,
    Cause,
    Entry,
    Moved,
    Partition,
    Reads,
    Stale,
    Write,
)

MAP_BYTES = 1 << 38
"""Addresses set aside for a store; what it takes on the disk grows with its rows."""
CHECK_READERS_S = 60.0
_MAX_DATABASES = 256
_MAX_READERS = 512
_MAX_KEY_BYTES = 511
_PLACE = struct.Struct(">Iq")
_CAUSE = struct.Struct(">IqII")
_OFFSET = struct.Struct(">q")


class LmdbStore:
    """The store of `job` in the LMDB folder `path`; made where it is absent, unless `create` is False."""

    def __init__(self, path: Path, job: str, *, create: bool = True) -> None:
        self._environment = _open(path.resolve(), create=create)
        self._path = path
        self._job = job.encode()
        env = self._environment.env
        self._meta = env.open_db(b"jobs")
        self._rows = env.open_db(self._job + b".rows")
        self._positions = env.open_db(self._job + b".positions")
        self._outbox = env.open_db(self._job + b".outbox")

    def get(self, table: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the rows of `keys` in their order, as of one moment; None where there is none."""
        prefix = table.encode() + b"\0"
        whole = [prefix + key for key in keys]
        if any(len(key) > _MAX_KEY_BYTES for key in whole):
            whole = [_row_key(table, key) for key in keys]
        with self._environment.env.begin(self._rows) as txn, txn.cursor() as cursor:
            found: dict[bytes, bytes] = dict(cursor.getmulti(whole))
        return [found.get(key) for key in whole]

    def scan(self, table: str, start: bytes, end: bytes, limit: int) -> list[bytes]:
        """Return at most `limit` keys with start <= key < end, in order; of tables that are named `_..`."""
        prefix = table.encode() + b"\0"
        keys: list[bytes] = []
        with self._environment.env.begin(self._rows) as txn, txn.cursor() as cursor:
            more = cursor.set_range(prefix + start)
            while more and len(keys) < limit and (key := cursor.key()) < prefix + end:
                keys.append(key[len(prefix) :])
                more = cursor.next()
        return keys

    def positions(self) -> dict[Partition, int]:
        """Return for each partition the offset of the next message to consume."""
        with self._environment.env.begin(self._positions) as txn, txn.cursor() as cursor:
            found: dict[Partition, int] = {}
            for key, value in cursor:
                topic, _, number = key.rpartition(b"\0")
                found[Partition(topic.decode(), int(number))] = _OFFSET.unpack(value)[0]
            return found

    def begin(self, positions: Mapping[Partition, int]) -> None:
        """Store the first positions of partitions; where one has a position raise Moved and store none."""
        with self._writing() as txn:
            _require(txn, self._positions, dict.fromkeys(positions))
            for partition, offset in positions.items():
                txn.put(_position_key(partition), _OFFSET.pack(offset), db=self._positions)

    def outbox(self, partition: Partition, start: int, limit: int) -> list[Entry]:
        """Return at most `limit` entries of a partition, from the offset `start` on, in order."""
        topic = partition.topic.encode() + b"\0"
        entries: list[Entry] = []
        with self._environment.env.begin(self._outbox) as txn, txn.cursor() as cursor:
            more = cursor.set_range(topic + _PLACE.pack(partition.partition, start))
            while more and len(entries) < limit:
                key, value = cursor.item()
                if not key.startswith(topic):
                    break
                cause = Cause(partition.topic, *_CAUSE.unpack(key[len(topic) :]))
                if cause.partition != partition.partition:
                    break
                entries.append(Entry(cause, value))
                more = cursor.next()
        return entries

    def commit(
        self,
        positions: Mapping[Partition, tuple[int, int]],
        writes: Sequence[Write],
        outbox: Sequence[Entry],
        *,
        reads: Reads | None = None,
        published: Mapping[Partition, int] | None = None,
    ) -> None:
        """Apply a batch durably: positions from start to end, rows, and entries of the outbox."""
        with self._writing() as txn:
            _require(txn, self._positions, {part: span[0] for part, span in positions.items()})
            for table, rows in (reads or {}).items():
                for key, value in rows.items():
                    if txn.get(_row_key(table, key), db=self._rows) != value:
                        raise Stale
            for partition, (_, end) in positions.items():
                txn.put(_position_key(partition), _OFFSET.pack(end), db=self._positions)
            for write in writes:
                key = _row_key(write.table, write.key)
                if write.value is None:
                    txn.delete(key, db=self._rows)
                else:
                    txn.put(key, write.value, db=self._rows)
            for partition, offset in (published or {}).items():
                self._forget(txn, partition, offset)
            for entry in outbox:
                txn.put(_outbox_key(entry.cause), entry.output, db=self._outbox)

    def bound(self) -> Bound | None:
        """Return the job that the store belongs to; None where it is new."""
        with self._environment.env.begin(self._meta) as txn:
            found = txn.get(self._job)
        return None if found is None else msgspec.json.decode(found, type=Bound)

    def bind(self, bound: Bound) -> None:
        """Make the store that of a job; with rows it must be that job's already."""
        with self._writing() as txn:
            txn.put(self._job, msgspec.json.encode(bound), db=self._meta)

    def clear(self) -> None:
        """Remove everything of the job."""
        with self._writing() as txn:
            for database in (self._rows, self._positions, self._outbox):
                txn.drop(database, delete=False)
            txn.delete(self._job, db=self._meta)

    def num_rows(self) -> int:
        """Return the number of rows, of all tables."""
        with self._environment.env.begin() as txn:
            return txn.stat(self._rows)["entries"]

    def num_outbox(self) -> int:
        """Return the number of entries of the outbox."""
        with self._environment.env.begin() as txn:
            return txn.stat(self._outbox)["entries"]

    def num_bytes(self) -> int:
        """Return the bytes of the pages in use, of all jobs in the folder."""
        env = self._environment.env
        return (env.info()["last_pgno"] + 1) * env.stat()["psize"]

    def close(self) -> None:
        """Close the store."""
        self._environment.close()

    @contextmanager
    def _writing(self) -> Generator[lmdb.Transaction, None, None]:
        """Give a write transaction; OutputError, and nothing is changed, where the disk is full."""
        self._environment.check_readers()
        try:
            with self._environment.env.begin(write=True) as txn:
                yield txn
        except (lmdb.DiskError, lmdb.MapFullError) as full:
            raise OutputError(
                f"{self._path}: the store cannot be written: {full}. What was committed is whole. "
                "Remedy: free space, then start again."
            ) from full

    def _forget(self, txn: lmdb.Transaction, partition: Partition, offset: int) -> None:
        """Remove the entries of a partition below an offset."""
        first = partition.topic.encode() + b"\0" + _PLACE.pack(partition.partition, 0)
        end = partition.topic.encode() + b"\0" + _PLACE.pack(partition.partition, offset)
        with txn.cursor(db=self._outbox) as cursor:
            more = cursor.set_range(first)
            while more and bytes(cursor.key()) < end:
                more = cursor.delete()


class _Environment:
    """An open LMDB folder; a process may open one but once, so its stores share it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.env = lmdb.open(
            str(path),
            map_size=MAP_BYTES,
            max_dbs=_MAX_DATABASES,
            max_readers=_MAX_READERS,
            max_spare_txns=8,
        )
        self.num_users = 0
        self.env.reader_check()
        self._checked_s = time.monotonic()

    def check_readers(self) -> None:
        """Once a minute, free what readers hold that were killed."""
        if time.monotonic() - self._checked_s > CHECK_READERS_S:
            self.env.reader_check()
            self._checked_s = time.monotonic()

    def close(self) -> None:
        """Close the folder with the last of its stores."""
        self.num_users -= 1
        if self.num_users == 0:
            del _OPEN[self.path]
            self.env.close()


_OPEN: dict[Path, _Environment] = {}


def _open(path: Path, *, create: bool) -> _Environment:
    if not create and not (path / "data.mdb").exists():
        raise InputError(
            f"{path}: no online store here. `headwater stream features STREAM.toml` makes one."
        )
    try:
        if path not in _OPEN:
            path.mkdir(parents=True, exist_ok=True)
            _OPEN[path] = _Environment(path)
    except (lmdb.Error, OSError) as error:
        raise InputError(f"{path}: cannot be opened as an online store: {error}.") from error
    _OPEN[path].num_users += 1
    return _OPEN[path]


def _require(
    txn: lmdb.Transaction, database: Any, expected: Mapping[Partition, int | None]
) -> None:
    """Raise Moved where a stored position differs from the expected one."""
    moved: dict[Partition, int | None] = {}
    for partition, offset in expected.items():
        found = txn.get(_position_key(partition), db=database)
        stored = None if found is None else _OFFSET.unpack(found)[0]
        if stored != offset:
            moved[partition] = stored
    if moved:
        raise Moved(moved)


def _row_key(table: str, key: bytes) -> bytes:
    """Return the key in LMDB, whose keys are short: of a longer one the hash."""
    whole = table.encode() + b"\0" + key
    if len(whole) <= _MAX_KEY_BYTES:
        return whole
    return table.encode() + b"\0\xff" + hashlib.sha256(key).digest()


def _position_key(partition: Partition) -> bytes:
    return b"%s\0%d" % (partition.topic.encode(), partition.partition)


def _outbox_key(cause: Cause) -> bytes:
    return cause.topic.encode() + b"\0" + _CAUSE.pack(*cause[1:])
