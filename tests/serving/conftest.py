"""A small genuine release, and the real server in a process of its own."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from headwater.feature_store.schema import INT64_MIN
from headwater.serving.kinds.graph import open_session
from headwater.serving.kinds.scorer import Scorer
from headwater.serving.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    MODEL_NAME,
    SCORE,
    Feature,
    Golden,
    Graph,
    Input,
    Manifest,
    Output,
)
from headwater.serving.signature import columns_to_arrays

INPUTS = (
    Input(name="user", dtype="int64", role="context"),
    Input(name="country", dtype="string", role="context"),
    Input(name="recent", dtype="int64", is_list=True, role="context"),
    Input(name="item", dtype="int64"),
    Input(name="price", dtype="double"),
    Input(name="brand", dtype="string"),
    Input(name="tags", dtype="string", is_list=True),
)
"""Every dtype, both roles, and a list of each kind."""

FEATURES = (
    Feature(name="parity", encoder="vocabulary", inputs=("item",), cardinality=4, length=1),
    Feature(name="crossed", encoder="hash", inputs=("parity", "user"), cardinality=9, length=1),
    Feature(name="user", encoder="vocabulary", inputs=("user",), cardinality=4, length=1),
)
"""Computed from an input, crossed from features, and named as its input."""

HANGS_S = 60.0
"""Seconds after which a server hangs; the busiest machine needs fewer."""

COUNTRIES = ("de", "fr", "österreich")
BRANDS = ("acme", "globex", "ünicode")
TAGS = ("new", "sale", "used")
_TYPES = {"int64": TensorProto.INT64, "double": TensorProto.DOUBLE, "string": TensorProto.STRING}


class _Graph:
    """The nodes of a graph, and names for what they give."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def constant(self, value: Any, dtype: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def lookup(self, tensor: str, keys: tuple[str, ...]) -> str:
        """Return a float of each string: 0 for '', 1 for an unknown one, from 2 by position."""
        return self.add(
            "LabelEncoder",
            tensor,
            domain="ai.onnx.ml",
            keys_strings=["", *keys],
            values_floats=[0.0, *(2.0 + index for index in range(len(keys)))],
            default_float=1.0,
        )

    def number(self, tensor: str, dtype: str) -> str:
        """Return a float of each number, 0 where it is missing."""
        if dtype == "double":
            absent = self.add("IsNaN", tensor)
            zero = self.constant(0.0, np.float64)
        else:
            absent = self.add("Equal", tensor, self.constant(INT64_MIN, np.int64))
            zero = self.constant(0, np.int64)
        return self.add("Cast", self.add("Where", absent, zero, tensor), to=TensorProto.FLOAT)

    def masked_sum(self, value: str, length: str) -> str:
        """Return the sum over the first `length` entries of each row, `[N, 1]`."""
        width = self.add("Gather", self.add("Shape", value), self.constant(1, np.int64))
        zero, one = self.constant(0, np.int64), self.constant(1, np.int64)
        inside = self.add("Less", self.add("Range", zero, width, one), length)
        kept = self.add("Where", inside, value, self.constant(0.0, np.float32))
        return self.add("ReduceSum", kept, self.constant([1], np.int64), keepdims=1)


def _build_model(bias: float) -> onnx.ModelProto:
    """Return a graph that sums a term of each input and squashes it; `bias` tells versions apart."""
    graph = _Graph()
    total = graph.constant([[bias]], np.float32)
    for column in INPUTS:
        if column.dtype == "string":
            keys = {"country": COUNTRIES, "brand": BRANDS, "tags": TAGS}[column.name]
            term = graph.lookup(column.name, keys)
        else:
            term = graph.number(column.name, column.dtype)
        if column.is_list:
            term = graph.masked_sum(term, f"{column.name}.length")
        scaled = graph.add("Mul", term, graph.constant(0.01, np.float32))
        total = graph.add("Add", total, scaled)
    shape = graph.constant([-1], np.int64)
    graph.nodes.append(helper.make_node("Reshape", [graph.add("Sigmoid", total), shape], ["prob"]))
    inputs: list[onnx.ValueInfoProto] = []
    for column in INPUTS:
        wide: list[Any] = [None, None if column.is_list else 1]
        inputs.append(helper.make_tensor_value_info(column.name, _TYPES[column.dtype], wide))
        if column.is_list:
            name = f"{column.name}.length"
            inputs.append(helper.make_tensor_value_info(name, TensorProto.INT64, [None, 1]))
    proto = helper.make_graph(
        graph.nodes,
        "shop",
        inputs,
        [helper.make_tensor_value_info("prob", TensorProto.FLOAT, [None])],
        graph.constants,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 2)]
    model = helper.make_model(proto, opset_imports=opsets, ir_version=8)
    onnx.checker.check_model(model)
    return model


def _make_rows(num_rows: int, seed: int = 0) -> dict[str, list[Any]]:
    """Return raw columns with missing, unknown and non-ASCII values among them."""
    rng = np.random.default_rng(seed)

    def pick(*values: Any) -> list[Any]:
        return [values[index] for index in rng.integers(len(values), size=num_rows)]

    return {
        "user": pick(7, 42, None, 2**53 + 1),
        "country": pick(*COUNTRIES, None, "unseen"),
        "recent": [
            None if not n else rng.integers(100, size=n).tolist()
            for n in rng.integers(0, 4, size=num_rows)
        ],
        "item": rng.integers(1000, size=num_rows).tolist(),
        "price": [None if p < 0.1 else round(p * 50, 2) for p in rng.random(num_rows).tolist()],
        "brand": pick(*BRANDS, None, "a\0b"),
        "tags": [list(TAGS[: rng.integers(0, 4)]) for _ in range(num_rows)],
    }


def _offline(release: Path, rows: dict[str, list[Any]]) -> np.ndarray[Any, Any]:
    """Return the scores of raw columns as `headwater score` computes them."""
    manifest = msgspec.json.decode((release / MANIFEST_NAME).read_bytes(), type=Manifest)
    scorer = Scorer(open_session(release / MODEL_NAME), manifest)
    return scorer.score(columns_to_arrays(scorer.graph.inputs, rows))


def _write_release(folder: Path, name: str, version: int, **changes: Any) -> Path:
    """Write a release under a temporary name, then rename it, as export does; return its path.

    `changes` replace fields of the manifest.
    """
    final = folder / name / str(version)
    draft = folder / name / f".{version}.tmp"
    draft.mkdir(parents=True)
    model = _build_model(bias=version / 10).SerializeToString()
    (draft / MODEL_NAME).write_bytes(model)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        name=name,
        version=version,
        headwater_version="0.1.0",
        created_ts_ms=1_700_000_000_000,
        model_type="test",
        kind="scorer",
        graphs={
            SCORE: Graph(
                inputs=INPUTS,
                outputs=(Output(name="prob"),),
                golden=Golden(rows={}, outputs={}, tolerance=1e-6),
            )
        },
        features=FEATURES,
        schema_hash="0" * 64,
        calibration={},
        metrics={},
        parity={},
        time_range_ms=None,
        files={MODEL_NAME: hashlib.sha256(model).hexdigest()},
    )
    scorer = Scorer(open_session(draft / MODEL_NAME), manifest)
    rows = _make_rows(16)
    scores = scorer.score(columns_to_arrays(INPUTS, rows)).tolist()
    golden = Golden(rows=rows, outputs={"prob": scores}, tolerance=1e-6)
    graph = msgspec.structs.replace(scorer.graph, golden=golden)
    manifest = msgspec.structs.replace(manifest, graphs={SCORE: graph}, **changes)
    (draft / MANIFEST_NAME).write_bytes(msgspec.json.encode(manifest))
    draft.rename(final)
    return final


@dataclass
class Server:
    """A running `headwater serve`; its log lines are in `log`."""

    process: subprocess.Popen[str]
    host: str
    port: int
    log: Path
    _connections: list[http.client.HTTPConnection] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def connect(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=HANGS_S)
        self._connections.append(connection)
        return connection

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        connection: http.client.HTTPConnection | None = None,
    ) -> tuple[int, Any]:
        """Return the status and the decoded JSON (or the text) of an answer."""
        connection = connection or self.connect()
        if isinstance(body, (dict, list)):
            body = json.dumps(body).encode()
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        data = answer.read()
        answer.close()
        is_json = answer.headers.get("content-type") == "application/json"
        return answer.status, json.loads(data) if is_json else data.decode()

    def get(self, path: str) -> tuple[int, Any]:
        return self.request("GET", path)

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        return self.request(
            "POST", path, body, {k.replace("_", "-"): v for k, v in headers.items()}
        )

    def metric(self, name: str) -> float:
        """Return the value of a sample, as `name{label="value"}`; 0 where it is not there."""
        for line in self.get("/metrics")[1].splitlines():
            if line.startswith(f"{name} "):
                return float(line.rsplit(" ", 1)[1])
        return 0.0

    def events(self, event: str) -> list[dict[str, Any]]:
        """Return the log's events of this text."""
        lines = (json.loads(line) for line in self.log.read_text().splitlines())
        return [line for line in lines if line["event"] == event]

    def stop(self) -> int:
        """Send SIGTERM, unless it has ended, and return the exit status."""
        for connection in self._connections:
            connection.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(HANGS_S)


class Raw:
    """Sockets to a server, for what a well-behaved client does not do."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def connect(self, server: Server, data: bytes = b"") -> socket.socket:
        """Return a new connection on which `data` was sent."""
        client = socket.create_connection((server.host, server.port), timeout=HANGS_S)
        self._sockets.append(client)
        client.sendall(data)
        return client

    @staticmethod
    def post(path: str, body: bytes, *headers: str, length: int | None = None) -> bytes:
        """Return a request as bytes; `length` is what its head says of the body."""
        size = len(body) if length is None else length
        lines = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {size}", *headers]
        return "\r\n".join([*lines, "", ""]).encode() + body

    @staticmethod
    def read(client: socket.socket) -> tuple[int, bytes]:
        """Return the status and the body of the answer on a connection."""
        answer = http.client.HTTPResponse(client)
        answer.begin()
        body = answer.read()
        answer.close()
        return answer.status, body

    def close(self) -> None:
        for client in self._sockets:
            client.close()


def _wait_until(condition: Callable[[], Any], seconds: float = HANGS_S) -> None:
    """Return as soon as `condition()` holds; fail after `seconds`."""
    end_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end_s, "waited in vain"
        time.sleep(0.02)


StartServer = Callable[..., Server]


@pytest.fixture(scope="session")
def make_rows() -> Callable[..., dict[str, list[Any]]]:
    """Give a function that makes raw columns."""
    return _make_rows


@pytest.fixture(scope="session")
def offline() -> Callable[[Path, dict[str, list[Any]]], np.ndarray[Any, Any]]:
    """Give a function that scores raw columns without a server."""
    return _offline


@pytest.fixture(scope="session")
def write_release() -> Callable[..., Path]:
    """Give a function that writes a release."""
    return _write_release


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    """Give a function that waits for a condition."""
    return _wait_until


@pytest.fixture
def raw() -> Iterator[Raw]:
    """Give sockets to a server that are closed after the test."""
    sockets = Raw()
    yield sockets
    sockets.close()


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """Give a function that starts a server on a folder and waits until it is ready."""
    servers: list[Server] = []

    def start(releases: Path, *, ready: bool = True, **options: Any) -> Server:
        log = tmp_path_factory.mktemp("serve") / "log.jsonl"
        arguments = {"port": 0, "runners": 2, **options}
        code = (
            "from pathlib import Path; from headwater.serving.command import serve; "
            "from headwater.serving.options import ServeOptions; "
            f"serve(Path({str(releases)!r}), options=ServeOptions(**{arguments!r}), json=True)"
        )
        with log.open("w") as stream:
            process = subprocess.Popen(
                [sys.executable, "-W", "error", "-c", code],
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, log.read_text()
        process.stdout.close()
        address = json.loads(line)
        server = Server(process, address["host"], address["port"], log)
        servers.append(server)
        if ready:
            _wait_until(lambda: server.get("/v2/health/ready")[0] == 200)
        return server

    yield start
    for server in servers:
        assert server.stop() == 0, server.log.read_text()


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a releases folder with three versions of the model `shop`."""
    folder = tmp_path_factory.mktemp("releases")
    for version in (1, 2, 3):
        _write_release(folder, "shop", version)
    return folder


@pytest.fixture(scope="session")
def server(shop: Path, start_server: StartServer) -> Server:
    """Return the server that tests share which only ask it."""
    return start_server(shop)
