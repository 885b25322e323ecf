"""Load on a server, and what it costs: requests as bytes, wrk as the client, CPU of the server from /proc."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
import polars as pl

Form = Literal["json", "binary"]
HEAD_LENGTH = "Inference-Header-Content-Length"
_TICKS = os.sysconf("SC_CLK_TCK")

# wrk cannot send a body that it reads request by request at any speed: all are formatted once.
_LUA = """
local requests, index = {}, 0
function init(args)
  local file = io.open("%(bodies)s", "rb")
  while true do
    local line = file:read("*l")
    if not line then break end
    local head, size = line:match("^(%%d+) (%%d+)$")
    local headers = {["Content-Type"] = "application/json"}
    if tonumber(head) > 0 then
      headers = {["Content-Type"] = "application/octet-stream", ["%(name)s"] = head}
    end
    requests[#requests + 1] = wrk.format("POST", "%(path)s", headers, file:read(tonumber(size)))
  end
end
function request()
  index = index %% #requests + 1
  return requests[index]
end
function done(summary, latency, _)
  local e = summary.errors
  io.write(string.format('{"requests": %%d, "seconds": %%f, "errors": %%d, "p50_ms": %%f, "p99_ms": %%f}\\n',
    summary.requests, summary.duration / 1e6, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
"""


@dataclass(frozen=True, slots=True)
class Body:
    """A request; `head` is the size of its JSON where binary tensors follow, else 0."""

    content: bytes
    head: int = 0


@dataclass(frozen=True, slots=True)
class Load:
    """What wrk saw, and the CPU time that the server took meanwhile."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    cpu_s: float

    @property
    def per_second(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds of the server for a request."""
        return 1000 * self.cpu_s / self.requests


def infer_body(frame: pl.DataFrame, form: Form) -> Body:
    """Return an Open Inference Protocol request of scalar columns, one input a column."""
    inputs: list[dict[str, object]] = []
    tail = b""
    for column in frame:
        datatype = {"Int64": "INT64", "Float64": "FP64", "String": "BYTES"}[str(column.dtype)]
        entry: dict[str, object] = {
            "name": column.name,
            "shape": [len(column), 1],
            "datatype": datatype,
        }
        if form == "json":
            entry["data"] = column.to_list()
        else:
            raw = _raw(column)
            entry["parameters"] = {"binary_data_size": len(raw)}
            tail += raw
        inputs.append(entry)
    message: dict[str, object] = {"inputs": inputs}
    if form == "binary":
        message["outputs"] = [{"name": "prob", "parameters": {"binary_data": True}}]
    head = json.dumps(message, separators=(",", ":")).encode()
    return Body(head + tail, len(head) if form == "binary" else 0)


def _raw(column: pl.Series) -> bytes:
    if column.dtype != pl.String:
        return column.to_numpy().tobytes()
    words = [text.encode() for text in column.to_list()]
    return b"".join(len(word).to_bytes(4, "little") + word for word in words)


def feeds(frame: pl.DataFrame) -> dict[str, np.ndarray]:
    """Return the tensors of scalar columns as the graph takes them, `[N, 1]`; text as ready objects."""
    return {
        column.name: np.array(
            column.to_list(), object if column.dtype == pl.String else column.to_numpy().dtype
        ).reshape(-1, 1)
        for column in frame
    }


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and its living descendants, user and system."""
    total = 0
    for entry in _tree(pid):
        fields = Path(f"/proc/{entry}/stat").read_text().rpartition(") ")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / _TICKS


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process and its descendants; shared pages count each time."""
    pages = sum(int(Path(f"/proc/{entry}/statm").read_text().split()[1]) for entry in _tree(pid))
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _tree(pid: int) -> list[int]:
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += _tree(int(child))
    return found


def post(url: str, body: Body) -> tuple[bytes, Mapping[str, str]]:
    """Return the answer to one request and its headers; raises where the status is not 200."""
    headers = {"Content-Type": "application/json"}
    if body.head:
        headers = {"Content-Type": "application/octet-stream", HEAD_LENGTH: str(body.head)}
    request = urllib.request.Request(url, body.content, headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read(), dict(answer.headers.items())


def scores(url: str, body: Body) -> np.ndarray:
    """Return the scores that a server answers with, float32 `[N]`."""
    content, headers = post(url, body)
    sizes = {name.lower(): value for name, value in headers.items()}
    head = sizes.get(HEAD_LENGTH.lower())
    if head is not None:
        return np.frombuffer(content[int(head) :], "<f4")
    return np.array(json.loads(content)["outputs"][0]["data"], np.float32)


@contextmanager
def running(
    command: Sequence[str | Path],
    ready_url: str | None = None,
    *,
    ready_path: str = "/v2/health/ready",
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 120,
) -> Generator[tuple[int, str]]:
    """Run a server in a `with` block: give its pid and its first line, end it by SIGTERM.

    Without `ready_url` the first line of its output is a JSON object with `url`, below which
    `ready_path` tells when it is ready.
    """
    settings = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    words = [str(word) for word in command]
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(
            words,
            stdout=subprocess.PIPE if ready_url is None else log,
            stderr=log,
            text=True,
            cwd=cwd,
            env=settings,
        )
        try:
            line = ""
            if ready_url is None:
                assert server.stdout is not None
                line = server.stdout.readline()
                if '"url"' in line:
                    ready_url = json.loads(line)["url"] + ready_path
            if ready_url is None or not _wait(ready_url, server, timeout_s):
                log.seek(0)
                raise RuntimeError(f"{' '.join(words)} is not ready:\n{log.read()[-4000:]}")
            yield server.pid, line
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()


def _wait(url: str, server: subprocess.Popen[str], timeout_s: float) -> bool:
    end_s = time.monotonic() + timeout_s
    while server.poll() is None and time.monotonic() < end_s:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return True
        except OSError:
            time.sleep(0.05)
    return False


class Wrk:
    """wrk with one thread and a set of requests for one path, which it sends in turn."""

    def __init__(self, base_url: str, path: str, bodies: Sequence[Body], folder: Path) -> None:
        self._url = base_url
        data = folder / f"bodies-{id(self)}.bin"
        with data.open("wb") as file:
            for body in bodies:
                file.write(b"%d %d\n" % (body.head, len(body.content)) + body.content)
        self._script = folder / f"wrk-{id(self)}.lua"
        self._script.write_text(_LUA % {"bodies": data, "name": HEAD_LENGTH, "path": path})

    def run(self, pid: int, *, connections: int, seconds: int) -> Load:
        """Load the server `pid` in a closed loop; raises `RuntimeError` where a request fails."""
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(self._script)]
        before_s = cpu_seconds(pid)
        output = subprocess.run(
            [*command, "--timeout", "30s", self._url], check=True, capture_output=True, text=True
        ).stdout
        cpu_s = cpu_seconds(pid) - before_s
        line = output.rstrip().rpartition("\n")[2]
        seen = cast("dict[str, float]", json.loads(line))
        if seen["errors"] or not seen["requests"]:
            raise RuntimeError(f"wrk on {self._url}: {line}")
        return Load(
            requests=int(seen["requests"]),
            seconds=seen["seconds"],
            p50_ms=seen["p50_ms"],
            p99_ms=seen["p99_ms"],
            cpu_s=cpu_s,
        )
