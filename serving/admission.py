"""Admission control: the queue is bounded by the time that a request would wait, and in rows for memory.

The **service rate** of a model is measured: rows a second of a runner, the recent batches most. The **queue
length** is the work in hand: its rows over that rate, in seconds of a runner. A request that comes now waits
for the work over the number of runners (Little's law, the other way round: length over rate is time), and
for as long as open requests make the event loop late. Its own size does not count: a large request is
refused no more often than a small one, and a refusal needs nothing of the body.

**Utilisation** is the arrival rate of work over what all runners can serve. Below 1, queues come from chance
and go again: at a utilisation of 0.7, requests that arrive at random find ten and more before them now and
then, and a closed pool of 32 clients is welcome. Such a burst may wait long. Above 1 the queue grows for as
long as that lasts, and the excess has to be refused in any case: all that a long queue then does is to make
those late that are served. So the work that arrived beyond what was served is summed up; where the sum is
more than a burst, this is overload, and the limit is short.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from headwater.serving.errors import QueueFullError, TooLargeError
from headwater.serving.metrics import Metrics

BURST_REQUESTS = 64
"""In a burst, the queue may be as long as so many requests of the usual size."""

LEAST_BURST_S = 0.05

OVERLOAD_REQUESTS = 2
"""In overload, it may be so long: one that is being scored, and one that keeps the runner busy."""

LEAST_OVERLOAD_S = 0.005

HEADROOM = 1.05
"""Work served makes up for so much that arrived, so that a burst is forgotten at a utilisation near 1."""

LOOP_S = 0.001
"""Of the event loop's lag, another open request explains so much; the rest comes from a machine that is busy
with other things, and no refusal would help."""

LAG_EVERY_S = 0.02
LAG_TICKS = 3
"""The event loop is late where it was at each of the last so many looks: a pause of it is no queue."""

_COST_MEMORY = 0.99
_SIZE_MEMORY = 0.999
_MOST_GROWTH = 4.0
"""A batch counts as at most this many times its estimate, so that one pause of the machine is no trend."""


@dataclass(slots=True)
class _Speed:
    """Service rate of a model, as time and rows of its batches, the recent ones most."""

    seconds: float = 0.0
    rows: float = 0.0


class Turn:
    """A request that was let in, from then until it is answered: all that it asks of admission.

    A request is let in or refused before its body is looked at; its rows are taken in hand when they are
    known, and given back at the end, whether it is answered or nobody waits for it.
    """

    __slots__ = ("_admission", "_max_rows", "_taken")

    def __init__(self, admission: Admission, *, max_rows: int) -> None:
        self._admission = admission
        self._max_rows = max_rows
        self._taken: list[tuple[int, float]] = []

    def check_size(self, num_rows: int) -> None:
        """Raise `TooLargeError` where a request has more rows than the service holds at all."""
        if num_rows > self._max_rows:
            raise TooLargeError(
                f"{num_rows} rows: expected at most {self._max_rows} in a request; split it"
            )

    def take(self, model: str, num_rows: int) -> None:
        """Take rows in hand.

        Raises `QueueFullError` where they would wait too long after all: a large body is decoded in a thread,
        and others may have been let in meanwhile.
        """
        self._taken.append((num_rows, self._admission.admit(model, num_rows)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for num_rows, seconds in self._taken:
            self._admission.finish(num_rows, seconds)


class Admission:
    """The queue length, the wait that follows from it, and its limit; all methods are the event loop's.

    `max_wait_s` bounds the estimated wait; None: as long as `BURST_REQUESTS` of the usual size take, between
    50 ms and a tenth of `timeout_s`, after which a request is given up. `max_queue_rows` bounds memory.
    """

    def __init__(
        self,
        *,
        num_runners: int,
        max_queue_rows: int,
        metrics: Metrics,
        max_wait_s: float | None = None,
        timeout_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._num_runners = num_runners
        self._max_queue_rows = max_queue_rows
        self._max_wait_s = max_wait_s
        self._timeout_s = timeout_s
        self._clock = clock
        self._metrics = metrics
        self._speeds: dict[str, _Speed] = {}
        self._rows = 0
        self._work_s = 0.0
        self._lag_s = 0.0
        self._num_open: Callable[[], int] = lambda: 0
        # Work that arrived beyond what was served, in seconds of all runners, and when it was brought up to
        # date: admitted or refused, less what has been served since. Served work counts, not time: clients
        # that wait for their answers never ask for more than is served, however wrong the estimates.
        self._excess_s = 0.0
        self._at_s = clock()
        # Requests, their seconds and squared seconds, the recent ones most.
        self._count = self._seconds = self._squares = 0.0
        metrics.watch_admission(
            rows=lambda: self._rows,
            wait_s=lambda: self.wait_s,
            limit_s=lambda: self.limit_s,
        )

    def watch_open(self, num_open: Callable[[], int]) -> None:
        """Let `num_open` say how many requests were begun and are not answered."""
        self._num_open = num_open
        self._metrics.watch_open(num_open)

    @property
    def wait_s(self) -> float:
        """Estimated wait of a request that came now, in seconds."""
        others = max(0, self._num_open() - 1)
        lag_s = min(self._lag_s, LOOP_S * others)
        return self._work_s / self._num_runners + lag_s

    @property
    def usual_s(self) -> float:
        """Seconds of the request that a second of work belongs to, on average; 0 before the first.

        Large requests weigh by their work: what a small one waits for is a large one.
        """
        return self._squares / self._seconds if self._seconds else 0.0

    @property
    def limit_s(self) -> float:
        """Longest wait that is admitted now, in seconds."""
        burst_s = self._burst_s
        is_overload = self._excess(self._clock()) > burst_s
        return min(burst_s, self._overload_s) if is_overload else burst_s

    @property
    def _overload_s(self) -> float:
        return max(LEAST_OVERLOAD_S, OVERLOAD_REQUESTS * self.usual_s)

    @property
    def _burst_s(self) -> float:
        if self._max_wait_s is not None:
            return self._max_wait_s
        burst_s = max(LEAST_BURST_S, BURST_REQUESTS * self.usual_s)
        # Never below what keeps a runner busy, however slow the model.
        return max(self._overload_s, min(burst_s, self._timeout_s / 10))

    def turn(self) -> Turn:
        """Let in a request, of which nothing is known yet; `QueueFullError` where it would wait too long."""
        self._check(self._seconds / self._count if self._count else 0.0)
        return Turn(self, max_rows=self._max_queue_rows)

    def admit(self, model: str, num_rows: int) -> float:
        """Take rows in hand and return the seconds that they will take; `finish` gives them back.

        Raises `QueueFullError` where they would wait too long.
        """
        speed = self._speeds.get(model)
        seconds = num_rows * speed.seconds / speed.rows if speed else 0.0
        self._check(seconds)
        self._count_arrival(seconds)
        self._count = self._count * _SIZE_MEMORY + 1
        self._seconds = self._seconds * _SIZE_MEMORY + seconds
        self._squares = self._squares * _SIZE_MEMORY + seconds * seconds
        self._rows += num_rows
        self._work_s += seconds
        return seconds

    def finish(self, num_rows: int, seconds: float) -> None:
        """Give back what `admit` took: the request is answered, or nobody waits for it."""
        self._excess_s = max(0.0, self._excess_s - HEADROOM * seconds / self._num_runners)
        self._at_s = self._clock()
        self._rows -= num_rows
        self._work_s = self._work_s - seconds if self._rows else 0.0

    def scored(self, model: str, num_rows: int, seconds: float) -> None:
        """Learn from a batch how long a row of its model takes."""
        speed = self._speeds.setdefault(model, _Speed())
        if speed.rows:
            seconds = min(seconds, _MOST_GROWTH * num_rows * speed.seconds / speed.rows)
        speed.seconds = speed.seconds * _COST_MEMORY + seconds
        speed.rows = speed.rows * _COST_MEMORY + num_rows

    async def watch_lag(self) -> None:
        """Measure how late the event loop is, until cancelled: what waits in it waits before the queue."""
        lags_s = [0.0] * LAG_TICKS
        while True:
            due_s = self._clock() + LAG_EVERY_S
            await asyncio.sleep(LAG_EVERY_S)
            # A sleep ends up to a millisecond late by itself.
            lags_s = [*lags_s[1:], max(0.0, self._clock() - due_s - 0.001)]
            self._lag_s = min(lags_s)
            self._metrics.loop_lagged(lags_s[-1])

    def _check(self, seconds: float) -> None:
        # Of rows too, only what is before it counts: the rows in hand are twice the bound at most.
        if self._rows >= self._max_queue_rows:
            self._count_arrival(seconds)
            self._metrics.request_refused("rows")
            raise QueueFullError(
                f"{self._rows} rows wait already, at most {self._max_queue_rows} may; try again"
            )
        wait_s, limit_s = self.wait_s, self.limit_s
        if wait_s > limit_s:
            self._count_arrival(seconds)
            self._metrics.request_refused("wait")
            raise QueueFullError(
                f"this request would wait for {1000 * wait_s:.0f} ms, at most {1000 * limit_s:.0f} ms are "
                "allowed now; try again"
            )

    def _count_arrival(self, seconds: float) -> None:
        """Count the work of a request, admitted or not, as arrived."""
        now_s = self._clock()
        # Bounded, so that overload ends soon after the demand fell.
        self._excess_s = min(self._excess(now_s) + seconds / self._num_runners, 1.5 * self._burst_s)
        self._at_s = now_s

    def _excess(self, now_s: float) -> float:
        idle_s = 0.0 if self._rows else now_s - self._at_s
        return max(0.0, self._excess_s - HEADROOM * idle_s)
