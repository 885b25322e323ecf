"""The store for several hosts: one primary of Redis or Valkey, that writes what it acknowledged to a log.

Rows are strings, and so is each partition's position, so that WATCH covers what a batch depends on and no
more. The outbox of a partition and the keys of tables named `_..` are sorted sets in the order of bytes.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import redis
from redis.exceptions import ConnectionError as ConnectionLostError
from redis.exceptions import RedisError, WatchError
from redis.exceptions import TimeoutError as NoAnswerError

from headwater.feature_store.errors import HeadwaterError, InputError
from headwater.feature_store.online.store import (
    Bound,
    Cause,
    Entry,
    Moved,
    Partition,
    Reads,
    Stale,
    Unavailable,
    Write,
)

PASSWORD_VARIABLE = "REDIS_PASSWORD"
CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 30.0
_SCAN_COUNT = 1000
_CAUSE = struct.Struct(">qII")
_OFFSET = struct.Struct(">q")


class RedisStore:
    """The store of `job` in the server of `url`, as `redis://HOST:6379/0`."""

    def __init__(self, url: str, job: str) -> None:
        self._url = url
        self._prefix = b"headwater:%s:" % job.encode()
        self._client: Any = redis.Redis.from_url(
            url,
            password=os.environ.get(PASSWORD_VARIABLE),
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            socket_timeout=ANSWER_TIMEOUT_S,
        )
        with self._errors():
            self._check_server()

    def get(self, table: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the rows of `keys` in their order, as of one moment; None where there is none."""
        if not keys:
            return []
        prefix = self._row_prefix(table)
        with self._errors():
            return self._client.mget([prefix + key for key in keys])

    def scan(self, table: str, start: bytes, end: bytes, limit: int) -> list[bytes]:
        """Return at most `limit` keys with start <= key < end, in order; of tables that are named `_..`."""
        with self._errors():
            return self._client.zrangebylex(
                self._index(table), b"[" + start, b"(" + end, start=0, num=limit
            )

    def positions(self) -> dict[Partition, int]:
        """Return for each partition the offset of the next message to consume."""
        with self._errors():
            names: list[bytes] = sorted(self._client.smembers(self._key(b"partitions")))
            if not names:
                return {}
            found = self._client.mget([self._key(b"position:" + name) for name in names])
        return {
            _partition(name): int(offset)
            for name, offset in zip(names, found, strict=True)
            if offset is not None
        }

    def begin(self, positions: Mapping[Partition, int]) -> None:
        """Store the first positions of partitions; where one has a position raise Moved and store none."""
        with self._changing(dict.fromkeys(positions), {}) as pipe:
            for partition, offset in positions.items():
                pipe.set(self._position(partition), offset)
                pipe.sadd(self._key(b"partitions"), _name(partition))

    def outbox(self, partition: Partition, start: int, limit: int) -> list[Entry]:
        """Return at most `limit` entries of a partition, from the offset `start` on, in order."""
        with self._errors():
            found: list[bytes] = self._client.zrangebylex(
                self._outbox(partition), b"[" + _OFFSET.pack(start), b"+", start=0, num=limit
            )
        return [
            Entry(Cause(*partition, *_CAUSE.unpack(each[: _CAUSE.size])), each[_CAUSE.size :])
            for each in found
        ]

    def commit(
        self,
        positions: Mapping[Partition, tuple[int, int]],
        writes: Sequence[Write],
        outbox: Sequence[Entry],
        *,
        reads: Reads | None = None,
        published: Mapping[Partition, int] | None = None,
    ) -> None:
        """Apply a batch: positions from start to end, rows, and entries of the outbox."""
        starts = {partition: span[0] for partition, span in positions.items()}
        with self._changing(starts, reads or {}) as pipe:
            for partition, (_, end) in positions.items():
                pipe.set(self._position(partition), end)
            for write in writes:
                self._write(pipe, write)
            for partition, offset in (published or {}).items():
                pipe.zremrangebylex(self._outbox(partition), b"-", b"(" + _OFFSET.pack(offset))
            for entry in outbox:
                member = _CAUSE.pack(*entry.cause[2:]) + entry.output
                partition = Partition(entry.cause.topic, entry.cause.partition)
                pipe.zadd(self._outbox(partition), {member: 0})

    def bound(self) -> Bound | None:
        """Return the job that the store belongs to; None where it is new."""
        with self._errors():
            found = self._client.get(self._key(b"job"))
        return None if found is None else msgspec.json.decode(found, type=Bound)

    def bind(self, bound: Bound) -> None:
        """Make the store that of a job; with rows it must be that job's already."""
        with self._errors():
            self._client.set(self._key(b"job"), msgspec.json.encode(bound))

    def clear(self) -> None:
        """Remove everything of the job."""
        with self._errors():
            batch: list[bytes] = []
            for key in self._client.scan_iter(_literal(self._prefix) + b"*", count=_SCAN_COUNT):
                batch.append(key)
                if len(batch) == _SCAN_COUNT:
                    self._client.unlink(*batch)
                    batch = []
            if batch:
                self._client.unlink(*batch)

    def num_rows(self) -> int:
        """Return the number of rows, of all tables; goes through all keys of the server."""
        with self._errors():
            pattern = _literal(self._key(b"row:")) + b"*"
            return sum(1 for _ in self._client.scan_iter(pattern, count=_SCAN_COUNT))

    def num_outbox(self) -> int:
        """Return the number of entries of the outbox."""
        with self._errors():
            names: list[bytes] = sorted(self._client.smembers(self._key(b"partitions")))
            return sum(self._client.zcard(self._key(b"outbox:" + name)) for name in names)

    def num_bytes(self) -> int:
        """Return the bytes of memory that the server takes, for all that it holds."""
        with self._errors():
            return self._client.info("memory")["used_memory"]

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _check_server(self) -> None:
        """Refuse a server that could lose what it acknowledged, or that is one of a cluster."""
        info = self._client.info()
        if info.get("cluster_enabled"):
            raise InputError(
                f"{self._url}: the server is in cluster mode, where one transaction cannot cover all keys. "
                "Name a single primary."
            )
        if info["role"] != "master":
            raise InputError(f"{self._url}: the server is a replica. Name its primary.")
        if not info["aof_enabled"]:
            raise InputError(
                f"{self._url}: the server has no append-only file, and would lose what it acknowledged. "
                "Start it with `appendonly yes`."
            )

    @contextmanager
    def _changing(
        self, positions: Mapping[Partition, int | None], reads: Reads
    ) -> Generator[_Commands, None, None]:
        """Give a list of commands that are then applied at once, if positions and rows are as expected."""
        commands = _Commands()
        yield commands
        keys = [self._position(partition) for partition in positions]
        expected = [None if offset is None else b"%d" % offset for offset in positions.values()]
        for table, rows in reads.items():
            prefix = self._row_prefix(table)
            keys += [prefix + key for key in rows]
            expected += rows.values()
        with self._errors(), self._client.pipeline(transaction=True) as pipe:
            while True:
                if keys:
                    pipe.watch(*keys)
                    self._compare(pipe.mget(keys), expected, list(positions))
                pipe.multi()
                for name, arguments in commands.queue:
                    getattr(pipe, name)(*arguments)
                try:
                    pipe.execute()
                    return
                except WatchError:
                    # Something changed after the comparison: compare again, which says what.
                    continue

    def _compare(
        self, found: list[bytes | None], expected: list[bytes | None], partitions: list[Partition]
    ) -> None:
        moved = {
            partition: None if at is None else int(at)
            for partition, at, wanted in zip(partitions, found, expected, strict=False)
            if at != wanted
        }
        if moved:
            raise Moved(moved)
        if found != expected:
            raise Stale

    def _write(self, pipe: _Commands, write: Write) -> None:
        key = self._row_prefix(write.table) + write.key
        if write.value is None:
            pipe.unlink(key)
        else:
            pipe.set(key, write.value)
        if write.table.startswith("_"):
            if write.value is None:
                pipe.zrem(self._index(write.table), write.key)
            else:
                pipe.zadd(self._index(write.table), {write.key: 0})

    @contextmanager
    def _errors(self) -> Generator[None, None, None]:
        try:
            yield
        except (ConnectionLostError, NoAnswerError) as error:
            raise Unavailable(f"{self._url}: {error}") from error
        except RedisError as error:
            raise HeadwaterError(f"{self._url}: the online store refuses: {error}.") from error

    def _key(self, name: bytes) -> bytes:
        return self._prefix + name

    def _row_prefix(self, table: str) -> bytes:
        return self._key(b"row:%s\0" % table.encode())

    def _index(self, table: str) -> bytes:
        return self._key(b"index:" + table.encode())

    def _position(self, partition: Partition) -> bytes:
        return self._key(b"position:" + _name(partition))

    def _outbox(self, partition: Partition) -> bytes:
        return self._key(b"outbox:" + _name(partition))


class _Commands:
    """Commands of the client, kept until they are sent, and sent again after a conflict."""

    def __init__(self) -> None:
        self.queue: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.queue.append((name, arguments))


def _name(partition: Partition) -> bytes:
    return b"%s\0%d" % (partition.topic.encode(), partition.partition)


def _partition(name: bytes) -> Partition:
    topic, _, number = name.rpartition(b"\0")
    return Partition(topic.decode(), int(number))


def _literal(text: bytes) -> bytes:
    """Return a pattern of SCAN that fits `text` alone."""
    return b"".join(
        b"\\" + bytes([each]) if each in b"\\*?[]^-" else bytes([each]) for each in text
    )
