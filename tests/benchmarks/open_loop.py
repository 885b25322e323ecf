"""A lean client for load tests: requests leave when they are due, whether or not earlier ones are answered.

A closed loop waits for the answers of a slow server, and so asks it less when it is slow. Here each
request has a time at which it is due, and its latency counts from then: a late client or a lack of free
connections makes it longer, never invisible (`Outcome.lag_ms` says how late requests left).

Bodies are ready bytes, one connection holds one request at a time, and the loop wakes by `select`, whose
time-out is not rounded to milliseconds as that of `epoll` is.
"""

from __future__ import annotations

import asyncio
import gc
import re
import selectors
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np
from load import HEAD_LENGTH, Body

T = TypeVar("T")

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_LEFT = 0
"""Status of a request whose connection ended before its answer."""


def http_bytes(path: str, body: Body) -> bytes:
    """Return a POST request as bytes."""
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body.content)}"]
    if body.head:
        lines.append(f"{HEAD_LENGTH}: {body.head}")
    return "\r\n".join([*lines, "", ""]).encode() + body.content


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of each request, in the order in which they were due; times in seconds."""

    kind: np.ndarray
    """Which of the requests it was."""
    due_s: np.ndarray
    sent_s: np.ndarray
    done_s: np.ndarray
    status: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence[Outcome]) -> Outcome:
        """Return the requests of several loops, one after the other."""
        names = [field.name for field in fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    @property
    def seconds(self) -> float:
        """From the first request to the last answer."""
        return float(self.done_s.max() - self.due_s.min())

    def statuses(self) -> dict[int, int]:
        """Return how often each status came; 0: none came."""
        return dict(sorted(Counter(self.status.tolist()).items()))

    def answered_per_s(self) -> float:
        """Return the requests a second that were answered with 200."""
        return float((self.status == 200).sum() / self.seconds)

    def latency_ms(self, *percents: float, status: int = 200) -> list[float]:
        """Return percentiles of the time from due to answered, of the requests with this status."""
        taken = (self.done_s - self.due_s)[self.status == status] * 1000
        return np.percentile(taken, percents).tolist() if len(taken) else [np.nan] * len(percents)

    def lag_ms(self, *percents: float) -> list[float]:
        """Return percentiles of the time from due to sent."""
        return np.percentile((self.sent_s - self.due_s) * 1000, percents).tolist()

    def between(self, start_s: float, end_s: float) -> Outcome:
        """Return the requests that were due in this part, counted from the first one."""
        at_s = self.due_s - self.due_s[0]
        return self._part((at_s >= start_s) & (at_s < end_s))

    def of(self, kinds: Iterable[int]) -> Outcome:
        """Return the requests of these kinds."""
        return self._part(np.isin(self.kind, list(kinds)))

    def _part(self, chosen: np.ndarray) -> Outcome:
        columns = (self.kind, self.due_s, self.sent_s, self.done_s, self.status)
        return Outcome(*(column[chosen] for column in columns))


class _Connection(asyncio.Protocol):
    """One connection; `done(status)` is called with each answer."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._data = b""
        self._wanted = 0
        self.request = -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def send(self, request: int, data: bytes) -> None:
        self.request = request
        self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        data = self._data = self._data + data if self._data else data
        if not self._wanted:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                return
            found = _LENGTH.search(data, 0, end)
            assert found is not None, data
            self._wanted = end + 4 + int(found.group(1))
        if len(data) >= self._wanted:
            status = int(data[9:12])
            self._data, self._wanted = b"", 0
            self._pool.answered(self, status)

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.lost(self)

    def close(self) -> None:
        self._transport.abort()


class Pool:
    """Connections to one server, and the requests that are sent over them."""

    def __init__(self, host: str, port: int, payloads: Sequence[bytes]) -> None:
        self._address = host, port
        self._payloads = payloads
        self._idle: list[_Connection] = []
        self._waiting: deque[int] = deque()

    async def open(self, num_connections: int) -> None:
        """Open connections."""
        for _ in range(num_connections):
            await self._connect()

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: _Connection(self), *self._address)
        self._idle.append(connection)

    def close(self) -> None:
        """Close the connections, none of which may have an open request."""
        connections, self._idle = self._idle, []
        for connection in connections:
            connection.close()

    async def open_loop(self, kinds: np.ndarray, due_s: np.ndarray) -> Outcome:
        """Send payload `kinds[i]` at `due_s[i]` (from now, ascending), wait for all answers."""
        self._start(kinds, due_s)
        self._next = 0
        self._tick()
        await self._all_answered
        return self._outcome()

    async def closed_loop(self, kinds: np.ndarray) -> Outcome:
        """Send the payloads in turn, each as soon as a connection is free."""
        self._start(kinds, np.zeros(len(kinds)))
        for request in range(len(kinds)):
            self._due_s[request] = np.nan
            self._waiting.append(request)
        self._feed()
        await self._all_answered
        self._due_s = self._sent_s
        return self._outcome()

    def _start(self, kinds: np.ndarray, due_s: np.ndarray) -> None:
        self._loop = asyncio.get_running_loop()
        self._kinds: list[int] = kinds.tolist()
        self._due_s: list[float] = (due_s + self._loop.time() + 0.01).tolist()
        self._sent_s = [np.nan] * len(kinds)
        self._done_s = [np.nan] * len(kinds)
        self._status = [_LEFT] * len(kinds)
        self._left = len(kinds)
        self._all_answered: asyncio.Future[None] = self._loop.create_future()

    def _outcome(self) -> Outcome:
        return Outcome(
            np.array(self._kinds),
            np.array(self._due_s),
            np.array(self._sent_s),
            np.array(self._done_s),
            np.array(self._status),
        )

    def _tick(self) -> None:
        due_s, count = self._due_s, len(self._due_s)
        while self._next < count and due_s[self._next] <= self._loop.time():
            self._waiting.append(self._next)
            self._next += 1
            self._feed()
        if self._next < count:
            self._loop.call_at(due_s[self._next], self._tick)

    def _feed(self) -> None:
        while self._waiting and self._idle:
            request = self._waiting.popleft()
            self._sent_s[request] = self._loop.time()
            self._idle.pop().send(request, self._payloads[self._kinds[request]])

    def answered(self, connection: _Connection, status: int) -> None:
        """Take note of an answer, and the connection for the next request."""
        request, connection.request = connection.request, -1
        self._idle.append(connection)
        self._ended(request, status)
        self._feed()

    def lost(self, connection: _Connection) -> None:
        """Take note of a connection that has gone, and open another if it had a request."""
        if connection in self._idle:
            self._idle.remove(connection)
        if connection.request >= 0:
            self._ended(connection.request, _LEFT)
            self._again = asyncio.ensure_future(self._connect())

    def _ended(self, request: int, status: int) -> None:
        self._done_s[request] = self._loop.time()
        self._status[request] = status
        self._left -= 1
        if not self._left:
            self._all_answered.set_result(None)


def run(main: Callable[[], Coroutine[None, None, T]]) -> T:
    """Return what a coroutine returns, in a loop whose timers are not rounded, without garbage collection."""
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    gc.collect()
    gc.disable()
    try:
        return loop.run_until_complete(main())
    finally:
        gc.enable()
        loop.close()
