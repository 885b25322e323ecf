"""Routes, bounds, slow and vanishing clients, and the drain: over real sockets."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import validate

from headwater.feature_store.errors import InputError
from headwater.serving.command import serve
from headwater.serving.options import ServeOptions

RANK = json.dumps({"model": "shop", "candidates": [{"item": 1}]}).encode()


@pytest.fixture(scope="module")
def strict(shop: Path, start_server: Callable[..., Any]) -> Any:
    """Return a server with short time and small bounds."""
    return start_server(shop, timeout_s=1.0, max_body_bytes=2000, max_queue_rows=20)


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/", 404, "no route '/'"),
        ("GET", "/v2/", 404, "no route '/v2/'"),
        ("GET", "/v2//health/live", 404, "no route"),
        ("GET", "/v3", 404, "no route '/v3'; /openapi.json lists them"),
        ("POST", "/v1/rankk", 404, "no route"),
        ("GET", f"/{'x' * 5000}", 404, "no route '/xxx"),
        ("GET", "/v2/models/nope", 404, "model: unknown model 'nope'. Known: shop."),
        ("GET", "/v2/models/Shop/ready", 404, "Did you mean 'shop'?"),
        ("GET", "/v2/models/..%2f..%2fetc/ready", 404, "no route"),
        ("GET", "/v2/models/shop/versions/9", 404, "version 9 is not loaded; loaded: 3, 2"),
        ("GET", "/v2/models/shop/versions/03", 404, "version: expected an integer, found '03'"),
        ("GET", f"/v2/models/shop/versions/{'9' * 5000}", 404, "version: expected an integer"),
        ("POST", "/v2/models/shop/versions/x/infer", 404, "version: expected an integer"),
        ("GET", "/v1/rank", 405, "/v1/rank: expected POST, found GET"),
        ("DELETE", "/v2/models/shop", 405, "expected GET, HEAD, found DELETE"),
        ("POST", "/v2/health/live", 405, "expected GET, HEAD, found POST"),
    ],
)
def test_unknown_route_model_or_method(
    server: Any, method: str, path: str, status: int, message: str
) -> None:
    answer = server.request(method, path)
    assert answer[0] == status
    assert message in answer[1]["error"]
    assert len(answer[1]["error"]) < 500


def test_method_error_names_the_allowed_ones(server: Any) -> None:
    connection = server.connect()
    connection.request("PUT", "/v1/rank", b"{}")
    answer = connection.getresponse()
    answer.read()
    assert (answer.status, answer.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v2/health/live", 200),
        ("/v2/health/ready", 200),
        ("/v2", 200),
        ("/v2/models/shop", 200),
        ("/v2/models/shop/versions/2/ready", 200),
        ("/openapi.json", 200),
        ("/metrics", 200),
        ("/v2/models/nothing/ready", 404),
        ("/nothing", 404),
    ],
)
def test_head_is_answered_as_get_without_a_body(
    server: Any, raw: Any, path: str, status: int
) -> None:
    def ask(method: str) -> tuple[list[str], bytes]:
        request = f"{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        data = raw.connect(server, request.encode()).makefile("rb").read()
        head, _, body = data.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        # The text of the metrics grows with each answer. A length of 0 may be left out, and is.
        other = ("date:", "content-length: 0", *["content-length:"] * (path == "/metrics"))
        return [line for line in lines if not line.startswith(other)], body

    head, nothing = ask("HEAD")
    assert nothing == b""
    assert head[0].split()[1] == str(status)
    assert ask("GET")[0] == head


def test_head_of_a_route_that_is_posted_to_is_refused(server: Any) -> None:
    connection = server.connect()
    connection.request("HEAD", "/v1/rank")
    answer = connection.getresponse()
    assert (answer.status, answer.headers["allow"], answer.read()) == (405, "POST", b"")


def test_head_is_measured_under_its_route_and_is_not_on_the_page(server: Any) -> None:
    count = 'headwater_serving_request_seconds_count{code="200",route="/v2/health/live"}'
    before = server.metric(count)
    assert server.request("HEAD", "/v2/health/live") == (200, "")
    assert server.metric(count) == before + 1
    paths = server.get("/openapi.json")[1]["paths"]
    assert {method for operations in paths.values() for method in operations} == {"get", "post"}


def test_openapi_page_is_valid_and_lists_every_route(server: Any) -> None:
    status, page = server.get("/openapi.json")
    assert status == 200
    validate(page)
    assert page["openapi"].startswith("3.1")
    assert {"/v1/rank", "/v2/models/{model}/versions/{version}/infer"} <= page["paths"].keys()
    assert {"400", "413", "429", "504"} <= page["paths"]["/v1/rank"]["post"]["responses"].keys()


def test_metrics_have_the_bound_names(server: Any, wait_until: Callable[..., None]) -> None:
    assert server.post("/v1/rank", RANK)[0] == 200
    # A batch is counted after its answers are on their way.
    rows = 'headwater_serving_rows_total{model="shop"}'
    wait_until(lambda: rows in server.get("/metrics")[1])
    text = server.get("/metrics")[1]
    assert 'headwater_serving_request_seconds_count{code="200",route="/v1/rank"}' in text
    assert 'headwater_serving_model_info{model="shop",version="3"} 1.0' in text
    assert 'headwater_serving_model_version{model="shop"} 3.0' in text


def test_unknown_paths_share_one_metric(server: Any) -> None:
    server.get("/some/path")
    text = server.get("/metrics")[1]
    assert 'route="unknown"' in text
    assert "/some/path" not in text


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v1/rank", "/v1/rank"),
        ("/v2/models/shop/infer", "/v2/models/{model}/infer"),
        ("/v2/models/any/versions/x/infer", "/v2/models/{model}/versions/{version}/infer"),
        ("/v2/health/live", "/v2/health/live"),
        ("/no/route", "unknown"),
    ],
)
def test_what_is_refused_before_its_body_is_whole_is_measured_under_its_route(
    strict: Any, raw: Any, path: str, route: str
) -> None:
    def count(code: int) -> float:
        labels = f'code="{code}",route="{route}"'
        return strict.metric(f"headwater_serving_request_seconds_count{{{labels}}}")

    before = {code: count(code) for code in (400, 408, 413)}
    assert strict.post(path, b" " * 2001)[0] == 413
    assert strict.request("POST", path, iter([b" " * 1500] * 2))[0] == 413
    slow = raw.connect(strict, raw.post(path, b"{", length=50))
    cut = raw.connect(strict, raw.post(path, b"{", length=50))
    cut.shutdown(socket.SHUT_WR)
    assert raw.read(cut)[0] == 400
    assert raw.read(slow)[0] == 408
    assert {code: count(code) - before[code] for code in before} == {408: 1, 413: 2, 400: 0}
    gone = f'headwater_serving_request_seconds_count{{code="499",route="{route}"}}'
    assert strict.metric(gone) == 1


def test_body_of_an_unknown_route_or_method_is_read_before_the_answer(
    strict: Any, raw: Any
) -> None:
    wrong_method = 'headwater_serving_request_seconds_count{code="405",route="/v2"}'
    before = strict.metric(wrong_method)
    for path, status in (("/no/route", 404), ("/v2", 405)):
        body = b" " * 1500
        client = raw.connect(strict, raw.post(path, body[:10], length=len(body)))
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(60)
        client.sendall(body[10:])
        assert raw.read(client)[0] == status
        # The connection can be used on.
        client.sendall(b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n")
        assert raw.read(client)[0] == 200
    assert strict.metric(wrong_method) == before + 1


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"POST /v1/rank HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n", 400),
        (
            b"POST /v1/rank HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
            400,
        ),
        (b"POST /v1/rank HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST /v1/rank HTTP/1.1\r\nhost: x\r\ncontent-encoding: \xff\r\n\r\n", 400),
        (
            b"POST /v2/models/shop/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n"
            + "inference-header-content-length: \xb2\r\n\r\n{}".encode(),
            400,
        ),
        (b"GET /v2/models/%ff/ready HTTP/1.1\r\nhost: x\r\n\r\n", 404),
        (b"GET /v2/models/%00/ready HTTP/1.1\r\nhost: x\r\n\r\n", 404),
        (b"GET /v2/health/live?x=\xff HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (b"GET http://x/v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n", 200),
        (b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n", 404),
        (b"GET /v2/health/live HTTP/1.1\r\n" + b"a: b\r\n" * 500 + b"\r\n", 431),
    ],
)
def test_malformed_http_is_answered(server: Any, raw: Any, data: bytes, status: int) -> None:
    found = raw.read(raw.connect(server, data))
    assert found[0] == status, found
    assert server.get("/v2/health/live")[0] == 200


def test_body_at_the_bound_passes_and_one_byte_more_does_not(strict: Any) -> None:
    assert strict.post("/v1/rank", RANK.ljust(2000))[0] == 200
    status, answer = strict.post("/v1/rank", RANK.ljust(2001))
    assert status == 413
    assert "body: expected at most 2000 bytes, found 2001" in answer["error"]


def test_chunked_body_is_bounded_too(strict: Any) -> None:
    def ask(*chunks: bytes) -> int:
        return strict.request("POST", "/v1/rank", iter(chunks))[0]

    assert ask(RANK[:20], RANK[20:]) == 200
    assert ask(*[b" " * 1000] * 3) == 413


def test_huge_body_is_cut_off(strict: Any, raw: Any) -> None:
    client = raw.connect(strict, raw.post("/v1/rank", b"", length=10**12))

    def send_for_ever() -> None:
        for _ in range(10_000):
            client.sendall(b" " * 65536)

    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        send_for_ever()
    assert strict.get("/v2/health/live")[0] == 200


def test_more_rows_than_the_queue_holds_get_413(strict: Any) -> None:
    body = {"model": "shop", "candidates": {"item": list(range(21))}}
    status, answer = strict.post("/v1/rank", body)
    assert status == 413
    assert "21 rows: expected at most 20" in answer["error"]


OPEN = "headwater_serving_open_requests"


def test_drain_answers_open_requests_refuses_new_ones_and_exits_0(
    shop: Path, start_server: Callable[..., Any], raw: Any, wait_until: Callable[..., None]
) -> None:
    # A drain that waited for the idle connections would last for this long.
    server = start_server(shop, timeout_s=1000.0)
    idle = server.connect()
    assert server.request("GET", "/v2", connection=idle)[0] == 200
    silent = raw.connect(server)
    head, tail = RANK[:10], RANK[10:]
    opened = raw.connect(server, raw.post("/v1/rank", head, length=len(RANK)))
    wait_until(lambda: server.metric(OPEN) == 2)  # the scrape itself is one
    server.process.send_signal(signal.SIGTERM)
    assert idle.sock.recv(10) == b""
    assert silent.recv(10) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((server.host, server.port))
    opened.sendall(tail)
    status, data = raw.read(opened)
    assert (status, b'"scores"' in data) == (200, True)
    assert server.process.wait(60) == 0
    assert [event["event"] for event in server.events("stopped")] == ["stopped"]


def test_drain_is_bounded_by_the_timeout(
    shop: Path, start_server: Callable[..., Any], raw: Any, wait_until: Callable[..., None]
) -> None:
    server = start_server(shop, timeout_s=1.0)
    stuck = raw.connect(server, raw.post("/v1/rank", b"{", length=50))
    wait_until(lambda: server.metric(OPEN) == 2)
    server.process.send_signal(signal.SIGTERM)
    assert raw.read(stuck)[0] == 408
    assert server.process.wait(60) == 0


def _python(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def test_second_server_on_the_same_port_is_refused(server: Any, shop: Path) -> None:
    done = _python(
        "import sys\nfrom pathlib import Path\nfrom headwater.serving.command import serve\n"
        "from headwater.feature_store.errors import InputError\n"
        "from headwater.serving.options import ServeOptions\n"
        f"try: serve(Path({str(shop)!r}), options=ServeOptions(port={server.port}))\n"
        "except InputError as error: sys.exit(str(error))"
    )
    assert "cannot listen there" in done.stderr
    assert server.get("/v2/health/ready")[0] == 200


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout_s": 0}, "--timeout-s: expected more than 0, found 0"),
        ({"runners": 0}, "--runners: expected more than 0, found 0"),
        ({"keep_versions": -1}, "--keep-versions: expected more than 0, found -1"),
        ({"port": 99999}, "--port: expected 0 to 65535, found 99999"),
        ({"host": "no.such.host.invalid"}, "cannot listen there"),
    ],
)
def test_bad_option_is_refused(shop: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        serve(shop, options=ServeOptions(**options))


def test_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a folder of releases.*found nothing"):
        serve(tmp_path / "releases")


def test_command_ends_with_status_2_and_names_the_folder(tmp_path: Path) -> None:
    done = _python(
        "import sys\nfrom headwater.pipelines.cli import main\n"
        f"sys.argv = ['headwater', 'serve', {str(tmp_path / 'nowhere')!r}]\nsys.exit(main())"
    )
    assert done.returncode == 2
    assert "nowhere: expected a folder of releases" in done.stderr


def test_process_holds_no_training_library() -> None:
    done = _python(
        "import sys, headwater.serving.command, headwater.serving.protocols.http, granian.server.embed\n"
        "banned = {'torch', 'polars', 'onnx', 'pyarrow', 'pydantic', 'torchrec', 'pandas'}\n"
        "print(sorted(banned & {name.partition('.')[0] for name in sys.modules}))"
    )
    assert done.stdout == "[]\n", done.stderr


def test_command_imports_nothing_heavy() -> None:
    done = _python(
        "import sys, headwater.serving.command\n"
        "heavy = {'onnxruntime', 'granian', 'numpy', 'simdjson', 'prometheus_client'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert done.stdout == "[]\n", done.stderr
