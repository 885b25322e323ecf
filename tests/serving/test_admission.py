"""How long requests may wait: in a burst, in overload, and whatever their size; the clock is the test's."""

from __future__ import annotations

import asyncio
import heapq
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from headwater.serving.admission import Admission
from headwater.serving.batching import MAX_BATCH_ROWS
from headwater.serving.errors import QueueFullError, TooLargeError
from headwater.serving.metrics import Metrics

ROW_S = 0.00004
"""Time of a row; a hundred take 4 ms."""


class _Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class _Service:
    """Runners that score what was admitted, in the time of the test."""

    admission: Admission
    clock: _Clock
    num_runners: int
    _queue: list[tuple[float, int, float]] = field(default_factory=list)
    _ends: list[Any] = field(default_factory=list)

    def run(self, at_s: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return the seconds from each request's arrival to its answer, NaN where it was refused."""
        took_s = np.full(len(at_s), np.nan)
        for index in range(len(at_s)):
            self._until(at_s[index], took_s)
            try:
                self.admission.turn()
                seconds = self.admission.admit("model", int(rows[index]))
            except QueueFullError:
                continue
            self._queue.append((index, int(rows[index]), seconds))
            self._start(at_s)
        self._until(np.inf, took_s)
        return took_s

    def _until(self, time_s: float, took_s: np.ndarray) -> None:
        while self._ends and self._ends[0][0] <= time_s:
            self.clock.now_s, _, began_s, batch, at_s = heapq.heappop(self._ends)
            for index, rows, seconds in batch:
                took_s[index] = self.clock.now_s - at_s[index]
                self.admission.finish(rows, seconds)
            rows = sum(rows for _, rows, _ in batch)
            self.admission.scored("model", rows, self.clock.now_s - began_s)
            self._start(at_s)
        if time_s < np.inf:
            self.clock.now_s = time_s

    def _start(self, at_s: np.ndarray) -> None:
        while self._queue and len(self._ends) < self.num_runners:
            batch: list[Any] = []
            while self._queue and sum(rows for _, rows, _ in batch) < MAX_BATCH_ROWS:
                batch.append(self._queue.pop(0))
            seconds = 0.0002 + ROW_S * sum(rows for _, rows, _ in batch)
            now_s = self.clock.now_s
            heapq.heappush(self._ends, (now_s + seconds, batch[0][0], now_s, batch, at_s))


def _load(share: float, *, seconds: float, runners: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return when requests came, and how long they took, at a share of capacity; sizes 1 and 100."""
    random = np.random.default_rng(3)
    rate = share * runners / (50.5 * ROW_S)
    at_s = np.cumsum(random.exponential(1 / rate, int(rate * seconds)))
    rows = random.choice([1, 100], len(at_s))
    clock = _Clock()
    admission = _admission(clock, num_runners=runners)
    took_s = _Service(admission, clock, runners).run(at_s, rows)
    assert admission.wait_s == 0
    return at_s, took_s


def _admission(clock: _Clock, **options: Any) -> Admission:
    options = {"num_runners": 1, "max_queue_rows": 8192, "metrics": Metrics(), **options}
    return Admission(clock=clock, **options)


def _refuses(admission: Admission) -> bool:
    try:
        admission.turn()
    except QueueFullError:
        return True
    return False


@pytest.mark.parametrize("runners", [1, 2])
def test_no_request_is_refused_at_70_percent_of_capacity(runners: int) -> None:
    _, took_s = _load(0.7, seconds=30, runners=runners)
    assert not np.isnan(took_s).any()
    assert np.max(took_s) > 0.02


@pytest.mark.parametrize("runners", [1, 2])
def test_at_150_percent_the_excess_is_refused_and_the_rest_is_as_quick_as_unloaded(
    runners: int,
) -> None:
    _, unloaded_s = _load(0.2, seconds=20, runners=runners)
    at_s, took_s = _load(1.5, seconds=10, runners=runners)
    later_s = took_s[at_s > 2]
    assert np.nanpercentile(later_s, 99) < 2 * np.nanpercentile(unloaded_s, 99)
    assert 0.3 < np.isnan(later_s).mean() < 0.45
    # For a moment the excess looked like a burst, which may wait for 64 requests.
    assert np.nanmax(took_s) < 0.35


def test_overload_ends_soon_after_the_demand_fell() -> None:
    clock = _Clock()
    admission = _admission(clock)
    admission.scored("model", 100, 0.004)
    usual_s = admission.limit_s
    held: list[float] = []
    for _ in range(1000):
        if not _refuses(admission):
            held.append(admission.admit("model", 100))
        clock.now_s += 0.002
    assert admission.limit_s == pytest.approx(0.008)
    for seconds in held:
        admission.finish(100, seconds)
    clock.now_s += 0.2
    assert admission.limit_s == pytest.approx(64 * 0.004)
    assert usual_s == 0.05


def test_clients_that_wait_for_their_answers_are_not_refused() -> None:
    clock = _Clock()
    admission = _admission(clock)
    admission.scored("model", 100, 0.004)
    held = [admission.admit("model", 100) for _ in range(32)]
    for _ in range(2000):
        clock.now_s += 0.0041
        admission.finish(100, held.pop(0))
        admission.scored("model", 100, 0.004)
        admission.turn()
        held.append(admission.admit("model", 100))


@pytest.mark.parametrize("error", [0.3, 1.0, 4.0])
def test_wrong_estimates_do_not_make_waiting_clients_an_overload(error: float) -> None:
    clock = _Clock()
    admission = _admission(clock)
    admission.scored("model", 100, 0.004 * error)
    held = [admission.admit("model", 100) for _ in range(32)]
    for _ in range(1000):
        clock.now_s += 0.004
        admission.finish(100, held.pop(0))
        admission.turn()
        held.append(admission.admit("model", 100))


def test_large_request_is_admitted_wherever_a_small_one_is() -> None:
    clock = _Clock()
    admission = _admission(clock, max_wait_s=0.05)
    admission.scored("model", 100, 0.004)
    for _ in range(12):
        admission.admit("model", 100)
    assert admission.wait_s == pytest.approx(0.048)
    admission.admit("model", 4000)
    with pytest.raises(QueueFullError, match="would wait for 208 ms, at most 50 ms are allowed"):
        admission.admit("model", 1)
    assert QueueFullError.headers == (("retry-after", "1"),)


def test_limit_follows_the_model_however_slow_it_is() -> None:
    clock = _Clock()
    admission = _admission(clock, timeout_s=10.0)
    assert admission.limit_s == 0.05
    admission.scored("model", 100, 0.03)
    admission.finish(100, admission.admit("model", 100))
    assert admission.limit_s == pytest.approx(1.0)
    # One that takes 2 s: one request is scored, another waits.
    slow = _admission(clock, timeout_s=10.0)
    slow.scored("model", 100, 2.0)
    slow.admit("model", 100)
    slow.admit("model", 100)
    assert not _refuses(slow)
    slow.admit("model", 100)
    assert _refuses(slow)


def test_models_have_their_own_speed() -> None:
    admission = _admission(_Clock())
    admission.scored("quick", 100, 0.001)
    admission.scored("slow", 100, 0.1)
    assert admission.admit("quick", 10) == pytest.approx(0.0001)
    assert admission.admit("slow", 10) == pytest.approx(0.01)
    assert admission.admit("new", 10) == 0


def test_one_pause_is_no_trend() -> None:
    admission = _admission(_Clock())
    for _ in range(200):
        admission.scored("model", 100, 0.004)
    admission.scored("model", 100, 5.0)
    assert admission.admit("model", 100) < 0.0045


def test_rows_are_bounded_whatever_the_model_takes() -> None:
    admission = _admission(_Clock(), max_queue_rows=100)
    with pytest.raises(TooLargeError, match="101 rows: expected at most 100"):
        admission.turn().check_size(101)
    admission.admit("new", 99)
    admission.admit("new", 100)
    with pytest.raises(QueueFullError, match="199 rows wait already, at most 100 may"):
        admission.turn()


def test_event_loop_that_is_late_counts_as_wait_where_many_requests_are_open() -> None:
    async def go() -> None:
        admission = Admission(num_runners=1, max_queue_rows=100, metrics=Metrics())
        num_open = 1000
        admission.watch_open(lambda: num_open)
        watching = asyncio.create_task(admission.watch_lag())
        await asyncio.sleep(0.05)
        # One pause is no queue.
        time.sleep(0.3)  # noqa: ASYNC251  # what is late is the loop
        await asyncio.sleep(0)
        assert admission.wait_s < 0.1
        for _ in range(8):
            time.sleep(0.1)  # noqa: ASYNC251
            await asyncio.sleep(0)
        assert admission.wait_s > 0.05
        with pytest.raises(QueueFullError, match="would wait for"):
            admission.turn()
        # For a lone client, it is the machine that is busy with other things.
        num_open = 1
        assert admission.wait_s == 0
        watching.cancel()

    asyncio.run(go())
