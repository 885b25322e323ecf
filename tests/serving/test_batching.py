"""Requests that wait together are scored together, and each gets its own scores."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headwater.serving import joining
from headwater.serving.admission import Admission
from headwater.serving.batching import Batcher
from headwater.serving.errors import QueueFullError
from headwater.serving.kinds.scorer import Scorer, Scores
from headwater.serving.metrics import Metrics
from headwater.serving.release import load_release
from headwater.serving.signature import columns_to_arrays
from headwater.serving.tensors import Arrays


class _Gate(Scorer):
    """A scorer that waits for the test, and remembers the rows of each run."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__(scorer._session, scorer.manifest)
        self.loop = asyncio.get_running_loop()
        self.entered = asyncio.Event()
        self.release = asyncio.Event()
        self.runs: list[int] = []
        self.fail_at = -1

    def run(self, feeds: Arrays, num_rows: int) -> Scores:
        self.runs.append(num_rows)
        if len(self.runs) == 1:
            self.loop.call_soon_threadsafe(self.entered.set)
            asyncio.run_coroutine_threadsafe(self.release.wait(), self.loop).result()
        if self.fail_at in feeds["item"]:
            raise RuntimeError("no score for this one")
        return super().run(feeds, num_rows)


@pytest.fixture(scope="module")
def scorers(shop: Path) -> tuple[Scorer, Scorer]:
    return load_release(shop / "shop" / "1", Scorer), load_release(shop / "shop" / "2", Scorer)


def _batcher(max_queue_rows: int) -> Batcher:
    """Return a batcher of one runner whose queue is bounded in rows alone."""
    metrics = Metrics()
    admission = Admission(
        num_runners=1, max_queue_rows=max_queue_rows, metrics=metrics, max_wait_s=1e9
    )
    return Batcher(num_runners=1, admission=admission, metrics=metrics)


def _feeds(scorer: Scorer, columns: dict[str, list[Any]]) -> tuple[Arrays, int]:
    arrays = columns_to_arrays(scorer.graph.inputs, columns)
    num_rows = scorer.signature.num_rows(arrays)
    return scorer.signature.complete(arrays, num_rows), num_rows


async def _score(batcher: Batcher, scorer: Scorer, feeds: Arrays, num_rows: int) -> Scores:
    """Return the scores of a request in its turn."""
    with batcher._admission.turn() as turn:
        turn.take("shop", num_rows)
        return await batcher.score(scorer, feeds, num_rows)


def _once(feeds: Arrays) -> Arrays:
    """Return the feeds with the context of the first row given once."""
    context = ("user", "country", "recent", "recent.length")
    return {name: array[:1] if name in context else array for name, array in feeds.items()}


def test_waiting_requests_become_one_batch_and_get_their_own_scores(
    scorers: tuple[Scorer, Scorer], make_rows: Callable[..., Any]
) -> None:
    async def go() -> None:
        first, other = scorers
        gate = _Gate(first)
        batcher = _batcher(1000)
        requests = [_feeds(gate, make_rows(1 + seed, seed=seed)) for seed in range(6)]
        requests[2] = (_once(requests[2][0]), 3)
        blocker = asyncio.create_task(batcher.score(gate, *requests[0]))
        await gate.entered.wait()
        waiting = [asyncio.create_task(batcher.score(gate, *part)) for part in requests[1:]]
        odd = asyncio.create_task(batcher.score(other, *requests[1]))
        await asyncio.sleep(0)
        gate.release.set()
        answers = await asyncio.gather(*waiting)
        for answer, (feeds, num_rows) in zip(answers, requests[1:], strict=True):
            assert answer.shape == (num_rows,)
            np.testing.assert_allclose(answer, first.run(feeds, num_rows), atol=1e-7)
        np.testing.assert_allclose(await odd, other.run(*requests[1]), atol=1e-7)
        await blocker
        # One run for the first, one for all the others of that version.
        assert gate.runs == [1, 2 + 3 + 4 + 5 + 6]
        batcher.close()

    asyncio.run(go())


def test_many_candidates_of_one_context_are_scored_alone(
    scorers: tuple[Scorer, Scorer], make_rows: Callable[..., Any]
) -> None:
    async def go() -> None:
        gate = _Gate(scorers[0])
        batcher = _batcher(1000)
        small = _feeds(gate, make_rows(2))
        large = _feeds(gate, make_rows(100))
        large = (_once(large[0]), 100)
        blocker = asyncio.create_task(batcher.score(gate, *small))
        await gate.entered.wait()
        waiting = [asyncio.create_task(batcher.score(gate, *p)) for p in (small, large, small)]
        await asyncio.sleep(0)
        gate.release.set()
        await asyncio.gather(blocker, *waiting)
        assert sorted(gate.runs) == [2, 4, 100]
        batcher.close()

    asyncio.run(go())


def test_cancelled_request_is_not_scored_and_frees_its_place(
    scorers: tuple[Scorer, Scorer], make_rows: Callable[..., Any]
) -> None:
    async def go() -> None:
        gate = _Gate(scorers[0])
        batcher = _batcher(10)
        one, nine = _feeds(gate, make_rows(1)), _feeds(gate, make_rows(9))
        blocker = asyncio.create_task(_score(batcher, gate, *one))
        await gate.entered.wait()
        dropped = asyncio.create_task(_score(batcher, gate, *nine))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError, match="10 rows wait already, at most 10 may"):
            await _score(batcher, gate, *one)
        dropped.cancel()
        await asyncio.sleep(0)
        kept = asyncio.create_task(_score(batcher, gate, *one))
        await asyncio.sleep(0)
        gate.release.set()
        await asyncio.gather(blocker, kept)
        assert gate.runs == [1, 1]
        batcher.close()

    asyncio.run(go())


def test_cancelled_request_frees_its_tensors_while_the_runner_is_busy(
    scorers: tuple[Scorer, Scorer], make_rows: Callable[..., Any]
) -> None:
    async def go() -> None:
        gate = _Gate(scorers[0])
        batcher = _batcher(10)
        blocker = asyncio.create_task(batcher.score(gate, *_feeds(gate, make_rows(1))))
        await gate.entered.wait()
        feeds, num_rows = _feeds(gate, make_rows(9))
        item = weakref.ref(feeds["item"])
        dropped = asyncio.create_task(batcher.score(gate, feeds, num_rows))
        del feeds
        await asyncio.sleep(0)
        assert item() is not None
        dropped.cancel()
        await asyncio.wait((dropped,))
        del dropped
        gc.collect()
        assert item() is None
        gate.release.set()
        await blocker
        batcher.close()
        assert gate.runs == [1]

    asyncio.run(go())


def test_request_that_cannot_be_scored_fails_alone(
    scorers: tuple[Scorer, Scorer], make_rows: Callable[..., Any]
) -> None:
    async def go() -> None:
        gate = _Gate(scorers[0])
        gate.fail_at = 12345
        batcher = _batcher(100)
        good = _feeds(gate, make_rows(3))
        bad = _feeds(gate, {"item": [12345]})
        blocker = asyncio.create_task(batcher.score(gate, *good))
        await gate.entered.wait()
        tasks = [asyncio.create_task(batcher.score(gate, *part)) for part in (good, bad, good)]
        await asyncio.sleep(0)
        gate.release.set()
        answers = await asyncio.gather(blocker, *tasks, return_exceptions=True)
        assert [isinstance(answer, RuntimeError) for answer in answers] == [
            False,
            False,
            True,
            False,
        ]
        batcher.close()

    asyncio.run(go())


def test_lists_of_different_widths_share_a_batch(scorers: tuple[Scorer, Scorer]) -> None:
    scorer = scorers[0]
    parts = [_feeds(scorer, {"tags": [["new"] * width], "item": [width]}) for width in (0, 1, 5)]
    feeds, num_rows = joining.join(scorer.signature, parts)
    assert feeds["tags"].shape == (3, 5)
    alone = np.concatenate([scorer.run(*part) for part in parts])
    np.testing.assert_allclose(scorer.run(feeds, num_rows), alone, atol=1e-7)
