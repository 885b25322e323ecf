"""Clients that are slow, vanish or close half of a connection: no 500, nothing left, nobody held up."""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

RANK = json.dumps({"model": "shop", "candidates": [{"item": 1}]}).encode()
LARGE = json.dumps({"model": "shop", "candidates": {"item": list(range(8000))}}).encode()


@pytest.fixture(scope="module")
def strict(shop: Path, start_server: Callable[..., Any]) -> Any:
    """Return a server that waits for a second only."""
    return start_server(shop, timeout_s=1.0)


@pytest.fixture(autouse=True)
def nothing_left(server: Any, strict: Any, wait_until: Callable[..., None]) -> Any:
    """Check after each test that both servers hold nothing more, failed at nothing, and answer."""
    yield
    for each in (server, strict):
        # The scrape itself is open.
        wait_until(lambda each=each: each.metric("headwater_serving_open_requests") == 1)
        # What a client that left had asked for is still scored.
        wait_until(lambda each=each: each.metric("headwater_serving_queue_rows") == 0)
        assert 'code="500"' not in each.get("/metrics")[1]
        assert each.events("request failed") == []
        assert each.post("/v1/rank", RANK)[0] == 200


def test_slow_body_gets_408_and_blocks_nobody(
    shop: Path, start_server: Callable[..., Any], raw: Any
) -> None:
    # So long that a busy machine is done before: nobody waits for the slow ones to be given up.
    server = start_server(shop, timeout_s=4.0)
    slow = [raw.connect(server, raw.post("/v1/rank", b"{", length=50)) for _ in range(50)]
    half_heads = [raw.connect(server, b"POST /v1/rank HT") for _ in range(50)]
    assert server.post("/v1/rank", RANK)[0] == 200
    assert select.select(slow, [], [], 0)[0] == []
    for client in slow:
        status, data = raw.read(client)
        assert status == 408
        assert b"body: expected within 4 s" in data
    assert len(half_heads) == 50


def test_clients_that_leave_midway_block_nobody(
    strict: Any, raw: Any, wait_until: Callable[..., None]
) -> None:
    for _ in range(20):
        raw.connect(strict, raw.post("/v1/rank", b"{", length=50)).close()
        half_closed = raw.connect(strict, raw.post("/v1/rank", b"{", length=50))
        half_closed.shutdown(socket.SHUT_WR)
    gone = 'headwater_serving_request_seconds_count{code="499",route="/v1/rank"}'
    wait_until(lambda: strict.metric(gone) >= 40)
    assert strict.post("/v1/rank", RANK)[0] == 200


def test_pipelined_requests_are_answered_in_order(server: Any, raw: Any) -> None:
    client = raw.connect(server, b"GET /v2 HTTP/1.1\r\nhost: x\r\n\r\n" * 3)
    data = b""
    while data.count(b"binary_tensor_data") < 3:
        data += client.recv(65536)
    assert data.count(b"HTTP/1.1 200") == 3


def test_client_that_sends_a_byte_at_a_time_is_answered_if_it_ends_in_time(
    server: Any, strict: Any, raw: Any
) -> None:
    def send(client: socket.socket, data: bytes, every_s: float) -> None:
        # The server may have closed the connection, after it answered 408.
        with suppress(ConnectionError):
            for index in range(len(data)):
                client.sendall(data[index : index + 1])
                time.sleep(every_s)

    request = raw.post("/v1/rank", RANK)
    quick = raw.connect(server)
    send(quick, request, 0)
    assert raw.read(quick)[0] == 200
    head, body = request[:-20], request[-20:]
    slow = raw.connect(strict, head)
    sending = threading.Thread(target=send, args=(slow, body[:15], 0.1))
    sending.start()
    for _ in range(20):
        assert strict.post("/v1/rank", RANK)[0] == 200
    status, answer = raw.read(slow)
    assert status == 408
    assert b"body: expected within 1 s" in answer
    sending.join()


def test_body_that_is_cut_short_gets_400_and_no_500(server: Any, raw: Any) -> None:
    client = raw.connect(server, raw.post("/v1/rank", b"{", length=50))
    time.sleep(0.05)
    client.shutdown(socket.SHUT_WR)
    status, answer = raw.read(client)
    assert status == 400
    assert b"body: expected whole, found it cut short" in answer


def test_client_that_closes_its_sending_side_after_the_request_counts_as_gone(
    server: Any, raw: Any
) -> None:
    for data in (raw.post("/v1/rank", RANK), raw.post("/v1/rank", RANK) * 3):
        client = raw.connect(server, data)
        client.shutdown(socket.SHUT_WR)
        answer = client.makefile("rb").read()
        assert answer == b"" or answer.startswith(b"HTTP/1.1 200")


def test_clients_that_leave_while_their_answer_is_made_or_sent(server: Any, raw: Any) -> None:
    for _ in range(10):
        raw.connect(server, raw.post("/v1/rank", LARGE)).close()
        reset = raw.connect(server, raw.post("/v1/rank", LARGE))
        # No linger: closing sends a reset.
        reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        reset.close()
        midway = raw.connect(server, raw.post("/v1/rank", LARGE))
        assert midway.recv(20).startswith(b"HTTP/1.1 ")
        midway.close()


def test_client_that_never_reads_its_answers_blocks_nobody(server: Any, raw: Any) -> None:
    deaf = [raw.connect(server) for _ in range(4)]
    for client in deaf:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(0.2)
        try:
            for _ in range(20):
                client.sendall(raw.post("/v1/rank", LARGE))
        except TimeoutError:
            pass
    assert server.post("/v1/rank", RANK)[0] in (200, 429)
    for client in deaf:
        client.close()


def test_pipelined_requests_to_score_are_answered_in_order(server: Any, raw: Any) -> None:
    sizes = [1, 3, 2, 5, 1]
    bodies = [
        json.dumps({"model": "shop", "candidates": [{"item": i} for i in range(n)]}).encode()
        for n in sizes
    ]
    client = raw.connect(server, b"".join(raw.post("/v1/rank", body) for body in bodies))
    data = b""
    while data.count(b"]}") < len(sizes):
        data += client.recv(65536)
    answers = [part.partition(b"\r\n\r\n")[2] for part in data.split(b"HTTP/1.1 200 OK")[1:]]
    assert [len(json.loads(answer)["scores"]) for answer in answers] == sizes


def test_200_idle_connections_hold_up_nobody_and_can_be_used_later(server: Any, raw: Any) -> None:
    idle = [raw.connect(server) for _ in range(200)]
    connection = server.connect()
    for _ in range(50):
        assert server.request("POST", "/v1/rank", RANK, connection=connection)[0] == 200
    for client in idle[::20]:
        client.sendall(raw.post("/v1/rank", RANK))
        assert raw.read(client)[0] == 200
    for client in idle:
        client.close()
