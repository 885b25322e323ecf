"""More than the service can do: the excess gets 429, what waits in vain is not scored, all is counted."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headwater.serving.admission import Admission
from headwater.serving.batching import Batcher
from headwater.serving.errors import QueueFullError
from headwater.serving.kinds.scorer import Scorer, Scores
from headwater.serving.metrics import Metrics
from headwater.serving.release import load_release
from headwater.serving.signature import columns_to_arrays
from headwater.serving.tensors import Arrays

RANK = json.dumps({"model": "shop", "candidates": [{"item": 1}]}).encode()
LARGE = {"model": "shop", "candidates": {"item": list(range(4000))}}


class _Slow(Scorer):
    """A scorer of 500 rows a second."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__(scorer._session, scorer.manifest)
        self.num_rows = 0

    def run(self, feeds: Arrays, num_rows: int) -> Scores:
        self.num_rows += num_rows
        time.sleep(0.002 * num_rows)
        return super().run(feeds, num_rows)


def test_at_twice_the_capacity_half_is_refused_and_nothing_waits_long(
    shop: Path, make_rows: Callable[..., Any]
) -> None:
    async def go() -> None:
        scorer = _Slow(load_release(shop / "shop" / "1", Scorer))
        admission = Admission(num_runners=1, max_queue_rows=8192, metrics=Metrics(), max_wait_s=0.1)
        batcher = Batcher(num_runners=1, admission=admission, metrics=Metrics())
        arrays = columns_to_arrays(scorer.graph.inputs, make_rows(10))
        feeds = scorer.signature.complete(arrays, 10)
        took_s: list[float] = []
        num_refused = 0

        async def ask() -> None:
            nonlocal num_refused
            start_s = time.monotonic()
            is_taken = False
            try:
                with admission.turn() as turn:
                    turn.take("shop", 10)
                    is_taken = True
                    scores = await batcher.score(scorer, feeds, 10)
            except QueueFullError:
                num_refused += 1
                assert not is_taken  # at once: nothing was waited for
            else:
                assert len(scores) == 10
                took_s.append(time.monotonic() - start_s)

        tasks: list[asyncio.Task[None]] = []
        for index in range(300):
            tasks.append(asyncio.create_task(ask()))
            # Twice what is scored by then, however fast the machine is, while some of it waits.
            while (  # noqa: ASYNC110  # a thread counts the rows
                len(tasks) > len(took_s) + num_refused and 10 * index > 2 * scorer.num_rows
            ):
                await asyncio.sleep(0.001)
        await asyncio.gather(*tasks)
        assert num_refused > 30
        assert len(took_s) > 30
        assert len(took_s) + num_refused == 300
        # Without a bound, the last would wait for some 3 s.
        assert sorted(took_s)[-5] < 1
        assert scorer.num_rows == 10 * len(took_s)
        assert admission.wait_s == 0
        batcher.close()

    asyncio.run(go())


def _ask_at_once(server: Any, num_clients: int, num_requests: int) -> list[tuple[int, Any]]:
    """Return the answers of clients that each send large requests one after the other."""
    answers: list[tuple[int, Any]] = []

    def ask() -> None:
        connection = server.connect()
        answers.extend(
            server.request("POST", "/v1/rank", LARGE, connection=connection)
            for _ in range(num_requests)
        )

    threads = [threading.Thread(target=ask) for _ in range(num_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_queue_that_is_full_answers_429_at_once(
    shop: Path, start_server: Callable[..., Any]
) -> None:
    server = start_server(shop, max_queue_rows=4000, max_wait_ms=1e6, runners=1)
    answers = _ask_at_once(server, 16, 5)
    assert {status for status, _ in answers} == {200, 429}
    refused = next(answer for status, answer in answers if status == 429)
    assert "rows wait already, at most 4000 may; try again" in refused["error"]
    assert server.post("/v1/rank", RANK)[0] == 200
    assert server.metric("headwater_serving_queue_rows") == 0
    name = 'headwater_serving_refused_requests_total{reason="rows"}'
    assert server.metric(name) == sum(status == 429 for status, _ in answers)


def test_wait_that_would_be_too_long_is_refused_and_all_is_accounted_for(
    shop: Path, start_server: Callable[..., Any], wait_until: Callable[..., None]
) -> None:
    server = start_server(shop, max_wait_ms=1, runners=1)
    assert server.post("/v1/rank", LARGE)[0] == 200
    answers = _ask_at_once(server, 16, 10)
    num_scored = sum(status == 200 for status, _ in answers)
    num_refused = sum(status == 429 for status, _ in answers)
    assert num_scored + num_refused == 160
    assert num_scored > 0
    assert num_refused > 0
    refused = next(answer for status, answer in answers if status == 429)
    assert "at most 1 ms are allowed now; try again" in refused["error"]
    rows = 'headwater_serving_rows_total{model="shop"}'
    wait_until(lambda: server.metric(rows) == 4000 * (1 + num_scored))
    name = 'headwater_serving_refused_requests_total{reason="wait"}'
    assert server.metric(name) == num_refused
    for name in ("queue_rows", "wait_seconds"):
        assert server.metric(f"headwater_serving_{name}") == 0
    assert server.metric("headwater_serving_wait_limit_seconds") == 0.001
    # Itself alone.
    assert server.metric("headwater_serving_open_requests") == 1


def test_refusal_reads_nothing_of_the_body(
    shop: Path, start_server: Callable[..., Any], wait_until: Callable[..., None]
) -> None:
    server = start_server(shop, max_wait_ms=0.001, runners=1, max_queue_rows=10 * _HEAVY_ROWS)
    assert server.post("/v1/rank", _HEAVY)[0] == 200
    connection = server.connect()
    refusals: list[str | None] = []

    def is_refused() -> bool:
        connection.request("POST", "/v1/rank", b"no JSON", {"content-encoding": "no encoding"})
        answer = connection.getresponse()
        answer.read()
        if answer.status == 429:
            refusals.append(answer.headers["retry-after"])
        return answer.status == 429

    assert not is_refused()
    is_over = threading.Event()
    statuses: list[int] = []

    def keep_busy() -> None:
        while not is_over.is_set():
            statuses.append(server.post("/v1/rank", _HEAVY)[0])

    # One request after the other: a look may fall between two of them, but not every look.
    busy = threading.Thread(target=keep_busy)
    busy.start()
    try:
        wait_until(is_refused)
    finally:
        is_over.set()
        busy.join()
    assert refusals == ["1"]
    assert 200 in statuses
    assert server.post("/v1/rank", b"no JSON")[0] == 400


_HEAVY_ROWS = 100_000
_HEAVY = json.dumps(
    {"model": "shop", "candidates": {"brand": ["acme"] * _HEAVY_ROWS, "price": [1.0] * _HEAVY_ROWS}}
).encode()


def _send(sockets: list[socket.socket], request: bytes) -> None:
    for client in sockets:
        client.sendall(request)


def test_request_that_waits_too_long_gets_504_and_is_not_scored(
    shop: Path, start_server: Callable[..., Any], raw: Any, wait_until: Callable[..., None]
) -> None:
    server = start_server(
        shop, timeout_s=0.4, runners=1, max_queue_rows=100 * _HEAVY_ROWS, max_wait_ms=1e6
    )
    clients = [raw.connect(server) for _ in range(24)]
    request = raw.post("/v1/rank", _HEAVY)
    threads = [threading.Thread(target=_send, args=([client], request)) for client in clients]
    for thread in threads:
        thread.start()
    answers = [raw.read(client) for client in clients]
    for thread in threads:
        thread.join()
    assert {status for status, _ in answers} <= {200, 408, 504}
    assert any(b"not scored within 0.4 s" in body for status, body in answers if status == 504)
    wait_until(lambda: server.post("/v1/rank", RANK)[0] == 200)
    assert server.metric('headwater_serving_rows_total{model="shop"}') < 24 * _HEAVY_ROWS


def test_request_whose_client_has_gone_is_not_scored(
    shop: Path,
    start_server: Callable[..., Any],
    raw: Any,
    wait_until: Callable[..., None],
) -> None:
    server = start_server(
        shop, runners=1, timeout_s=30, max_queue_rows=100 * _HEAVY_ROWS, max_wait_ms=1e6
    )
    clients = [raw.connect(server) for _ in range(24)]
    _send(clients, raw.post("/v1/rank", _HEAVY))
    for client in clients:
        client.close()
    gone = 'headwater_serving_request_seconds_count{code="499",route="/v1/rank"}'
    wait_until(lambda: server.metric(gone) > 0)
    wait_until(lambda: server.metric("headwater_serving_queue_rows") == 0)
    assert server.post("/v1/rank", RANK)[0] == 200
    assert server.metric('headwater_serving_rows_total{model="shop"}') < 24 * _HEAVY_ROWS
