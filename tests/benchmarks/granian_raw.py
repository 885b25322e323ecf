"""The least that a Python server can do: granian's raw interface, and onnxruntime called in its event loop.

`serving.py` starts it beside `headwater serve`: `granian_raw.py model.onnx`. It takes what well-formed
Open Inference Protocol requests need and nothing else: no check, no limit, no batch, no metric, one model.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import onnxruntime
from granian.constants import HTTPModes
from granian.server.embed import Server

if TYPE_CHECKING:
    from granian.rsgi import HTTPProtocol, Scope

HEAD_LENGTH = "inference-header-content-length"
DTYPES = {"INT64": np.dtype("<i8"), "FP64": np.dtype("<f8"), "BYTES": np.dtype(object)}


def open_session(model: str) -> onnxruntime.InferenceSession:
    """Return the graph as one thread runs it that does not spin."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def tensor(entry: dict[str, Any], body: bytes, start: int) -> np.ndarray:
    """Return an input, from JSON or from the bytes of the body from `start` on."""
    dtype, shape = DTYPES[entry["datatype"]], entry["shape"]
    if "data" in entry:
        return np.array(entry["data"], dtype).reshape(shape)
    if entry["datatype"] != "BYTES":
        return np.frombuffer(body, dtype, shape[0], start).reshape(shape)
    words: list[str] = []
    for _ in range(shape[0]):
        stop = start + 4 + int.from_bytes(body[start : start + 4], "little")
        words.append(body[start + 4 : stop].decode())
        start = stop
    return np.array(words, object).reshape(shape)


async def serve(session: onnxruntime.InferenceSession) -> None:
    """Listen at a free port, print its address as JSON, answer until the process is ended."""

    async def answer(scope: Scope, protocol: HTTPProtocol) -> None:
        body = await protocol()
        if scope.method == "GET":
            protocol.response_empty(200, [])
            return
        head = scope.headers.get(HEAD_LENGTH)
        start = len(body) if head is None else int(head)
        feeds: dict[str, np.ndarray] = {}
        for entry in msgspec.json.decode(body[:start])["inputs"]:
            feeds[entry["name"]] = tensor(entry, body, start)
            start += entry.get("parameters", {}).get("binary_data_size", 0)
        prob: Any = session.run(["prob"], feeds)[0]
        output: dict[str, Any] = {"name": "prob", "datatype": "FP32", "shape": [len(prob)]}
        if head is None:
            output["data"] = prob.tolist()
            content = msgspec.json.encode({"outputs": [output]})
            protocol.response_bytes(200, [("content-type", "application/json")], content)
        else:
            output["parameters"] = {"binary_data_size": prob.nbytes}
            content = msgspec.json.encode({"outputs": [output]})
            headers = [(HEAD_LENGTH, str(len(content)))]
            protocol.response_bytes(200, headers, content + prob.tobytes())

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    server = Server(
        answer,
        "127.0.0.1",
        port,
        log_enabled=False,
        http=HTTPModes.http1,
        websockets=False,
        backlog=1024,
    )
    serving = asyncio.create_task(server.serve())
    # granian's threads are not to be waited for: the benchmark is over.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, os._exit, 0)
    print(json.dumps({"url": f"http://127.0.0.1:{port}"}), flush=True)
    await serving


if __name__ == "__main__":
    asyncio.run(serve(open_session(sys.argv[1])))
