"""Greedy micro-batching: a runner scores whatever waited while it was busy, as one batch.

There is no timer: an idle service answers a lone request at once, and a busy one makes batches by itself.
One runner thread a core calls onnxruntime, which runs in the calling thread. The event loop only queues.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import structlog

from headwater.serving import joining
from headwater.serving.admission import Admission
from headwater.serving.kinds.scorer import Scorer, Scores
from headwater.serving.metrics import Metrics
from headwater.serving.tensors import Arrays

log = structlog.get_logger(__name__)

T = TypeVar("T")

MAX_BATCH_ROWS = 512
"""A batch takes no further request beyond this; more rows gain no speed and delay the first."""

FAIR_ROWS = 128
"""From this many rows on, a runner takes only its share of the requests that wait: more rows gain it
little, and the other runners are about to be free."""

ALONE_ROWS = 32
"""From this many candidates on, a context given once is worth more than a larger batch."""

JOIN_WIDTH = 512
"""A request with a longer list is scored alone: a batch pads all of its rows to the longest list."""


@dataclass(slots=True, eq=False)
class _Job:
    scorer: Scorer
    feeds: Arrays
    num_rows: int
    alone: bool
    answer: asyncio.Future[Scores]


@dataclass(slots=True, eq=False)
class _Call:
    """Work of another kind than scoring, which is never joined with more."""

    function: Callable[[], Any]
    model: str
    num_rows: int
    answer: asyncio.Future[Any]


class Batcher:
    """Runner threads behind one queue; all methods are the event loop's.

    `admission` bounds the queue, by what it learns here of how long batches take.
    """

    def __init__(self, *, num_runners: int, admission: Admission, metrics: Metrics) -> None:
        self._num_runners = num_runners
        self._admission = admission
        self._metrics = metrics
        self._queue: SimpleQueue[_Job | _Call | None] = SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._runners = [
            threading.Thread(target=self._work, name=f"headwater-runner-{index}", daemon=True)
            for index in range(num_runners)
        ]
        for runner in self._runners:
            runner.start()

    async def score(self, scorer: Scorer, feeds: Arrays, num_rows: int) -> Scores:
        """Return the scores of `num_rows` candidates; a cancelled caller's rows are not scored."""
        signature = scorer.signature
        alone = joining.width(signature, feeds) > JOIN_WIDTH or (
            num_rows >= ALONE_ROWS and joining.has_context_once(signature, feeds, num_rows)
        )
        job = _Job(scorer, feeds, num_rows, alone, self._loop.create_future())
        try:
            self._queue.put(job)
            return await job.answer
        finally:
            # A cancelled job stays in the queue until a runner takes it; its tensors need not.
            job.feeds = {}

    async def call(self, function: Callable[[], T], model: str, num_rows: int) -> T:
        """Return what `function` does for `num_rows` rows of a model, in a runner's thread."""
        call = _Call(function, model, num_rows, self._loop.create_future())
        self._queue.put(call)
        return await call.answer

    def close(self) -> None:
        """End the runners after what is queued."""
        for _ in self._runners:
            self._queue.put(None)
        for runner in self._runners:
            runner.join()

    def _work(self) -> None:
        while (first := self._queue.get()) is not None:
            jobs, ended = self._take(first)
            for call in [job for job in jobs if isinstance(job, _Call)]:
                self._answer_call(call)
            for group in _groups([job for job in jobs if isinstance(job, _Job)]):
                self._run(group)
            if ended:
                return

    def _take(self, first: _Job | _Call) -> tuple[list[_Job | _Call], bool]:
        jobs, rows = [first], first.num_rows
        share = (1 + self._queue.qsize()) // self._num_runners
        while rows < FAIR_ROWS or (rows < MAX_BATCH_ROWS and len(jobs) < share):
            try:
                job = self._queue.get_nowait()
            except Empty:
                break
            if job is None:
                return jobs, True
            jobs.append(job)
            rows += job.num_rows
        return jobs, False

    def _answer_call(self, call: _Call) -> None:
        if call.answer.done():
            return
        start_s = time.perf_counter()
        try:
            result = call.function()
        except Exception as error:
            result = error
        busy_s = time.perf_counter() - start_s
        self._loop.call_soon_threadsafe(
            self._answer, [(call, result)], call.model, call.num_rows, busy_s
        )

    def _run(self, jobs: list[_Job]) -> None:
        # Feeds before the answer's state: a job that is cancelled in between is done, then empty.
        taken = [(job, job.feeds) for job in jobs]
        # Whoever waited for a cancelled job has gone: its rows are left out.
        taken = [(job, feeds) for job, feeds in taken if not job.answer.done()]
        if not taken:
            return
        jobs = [job for job, _ in taken]
        scorer = jobs[0].scorer
        model = scorer.manifest.name
        taken_s = time.perf_counter()
        try:
            feeds, num_rows = joining.join(
                scorer.signature, [(f, job.num_rows) for job, f in taken]
            )
            start_s = time.perf_counter()
            scores = scorer.run(feeds, num_rows)
            seconds = time.perf_counter() - start_s
        except Exception as error:
            if len(jobs) > 1:
                # One request must not fail the others of its batch.
                for job in jobs:
                    self._run([job])
                return
            log.exception("batch failed", model=model, num_rows=jobs[0].num_rows)
            self._loop.call_soon_threadsafe(_set_answers, [(jobs[0], error)])
            return
        answers: list[tuple[_Job, Scores | Exception]] = []
        start = 0
        for job in jobs:
            answers.append((job, scores[start : start + job.num_rows]))
            start += job.num_rows
        busy_s = time.perf_counter() - taken_s
        self._loop.call_soon_threadsafe(self._answer, answers, model, num_rows, busy_s)
        num_missing = joining.count_missing(scorer.signature, feeds)
        self._metrics.batch_scored(model, num_rows, seconds, num_missing)

    def _answer(
        self,
        answers: Iterable[tuple[_Job | _Call, Any]],
        model: str,
        num_rows: int,
        busy_s: float,
    ) -> None:
        _set_answers(answers)
        self._admission.scored(model, num_rows, busy_s)


def _groups(jobs: list[_Job]) -> list[list[_Job]]:
    """Return the jobs by version, in the order of their first; those that run alone by themselves."""
    groups: dict[object, list[_Job]] = {}
    for job in jobs:
        groups.setdefault(job if job.alone else job.scorer, []).append(job)
    return list(groups.values())


def _set_answers(answers: Iterable[tuple[_Job | _Call, Any]]) -> None:
    for job, answer in answers:
        if job.answer.done():
            continue
        if isinstance(answer, Exception):
            job.answer.set_exception(answer)
        else:
            job.answer.set_result(answer)
