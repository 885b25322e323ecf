"""CPU time of the service for a request, beside the bare call of onnxruntime on the same rows.

    .venv/bin/python tests/benchmarks/serving.py

`efficiency` = CPU time of the bare call / CPU time of the server for a request: 1.00 would be a server that
costs nothing. Both sides run the graph of one release in a process of their own, with one thread that does
not spin. The bare side calls `session.run` with ready numpy arrays (ready arrays of `str` objects for
strings) and does nothing else. The server is `headwater serve --runners 1`, all of its threads counted; wrk
asks it in a closed loop for 100 rows a request. Beside it stands `granian_raw.py`, the same HTTP server with
the least around the call. All take turns: each stretch of load is compared with the mean of the bare
stretches before and after it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from granian_raw import open_session
from load import Form, Load, Wrk, feeds, infer_body, running, scores
from measure import Spread, machine, table, write_figures
from releases import KINDS, Kind, make_release, rows

from headwater.serving.manifest import MODEL_NAME

NUM_BODIES = 32
PAUSE_S = 0.001
"""About what passes between two requests of one client."""
FORMS: tuple[Form, ...] = ("json", "binary")
CONNECTIONS = (1, 8)
TARGETS: dict[tuple[bool, Form, int], float] = {
    (False, "json", 1): 0.78,
    (False, "binary", 1): 0.82,
    (False, "json", 8): 0.85,
    (False, "binary", 8): 0.92,
    (True, "json", 1): 0.70,
    (True, "binary", 1): 0.70,
    (True, "json", 8): 0.70,
    (True, "binary", 8): 0.70,
}
"""Efficiency of Headwater to reach, by whether there are strings, form and connections."""

Cell = tuple[str, Form, int]
"""A server, the form of its requests, and connections."""

Bare = Callable[[float, float], float]
"""From seconds, and the pause before each call in seconds, to CPU ms of a bare call."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A stretch of load, with the bare CPU time of a request beside it."""

    load: Load
    bare_ms: float

    @property
    def efficiency(self) -> float:
        """Bare CPU time / CPU time of the server."""
        return self.bare_ms / self.load.cpu_ms


def serve_bare(model: Path, kind: Kind, num_rows: int) -> None:
    """Call onnxruntime as each line of standard input says, and print CPU ms a call.

    A line has seconds, and the pause before each call in seconds.
    """
    session = open_session(str(model))
    requests = [feeds(rows(kind, num_rows, seed)) for seed in range(NUM_BODIES)]
    first = session.run(["prob"], requests[0])[0]
    assert isinstance(first, np.ndarray)
    print(json.dumps(first.tolist()), flush=True)
    for line in sys.stdin:
        seconds, pause_s = map(float, line.split())
        calls, cpu_s = 0, 0.0
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            if pause_s:
                time.sleep(pause_s)
            start_s = time.thread_time()
            session.run(["prob"], requests[calls % NUM_BODIES])
            cpu_s += time.thread_time() - start_s
            calls += 1
        print(1000 * cpu_s / calls, flush=True)


@contextmanager
def bare(model: Path, kind: Kind, num_rows: int) -> Generator[tuple[Bare, list[float]]]:
    """Give a process that makes bare calls, and the scores of the first request."""
    command = [sys.executable, __file__, "--bare", str(model), "--kinds", kind]
    child = subprocess.Popen(
        [*command, "--rows", str(num_rows)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    to_child, from_child = child.stdin, child.stdout

    def run(seconds: float, pause_s: float) -> float:
        to_child.write(f"{seconds} {pause_s}\n")
        to_child.flush()
        return float(from_child.readline())

    try:
        yield run, json.loads(from_child.readline())
    finally:
        to_child.close()
        child.wait(30)


def measure_kind(
    releases: Path, kind: Kind, arguments: argparse.Namespace
) -> tuple[dict[Cell, list[Turn]], list[tuple[float, float]]]:
    """Return the turns of each server, form and number of connections, and those of `measure_pause`."""
    model = max(releases.glob(f"{kind}/[0-9]*")) / MODEL_NAME
    command = [sys.executable, "-m", "headwater.pipelines.cli", "serve", releases, "--json"]
    command += ["--port", "0", "--runners", str(arguments.runners), "--max-wait-ms", "1000"]
    commands = {
        "headwater": command,
        "granian, raw": [sys.executable, Path(__file__).with_name("granian_raw.py"), model],
    }
    path = f"/v2/models/{kind}/infer"
    turns: dict[Cell, list[Turn]] = {}
    with bare(model, kind, arguments.rows) as (call, expected), ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers: dict[str, tuple[int, str]] = {}
        for name, words in commands.items():
            started = running(words, ready_path=f"/v2/models/{kind}/ready")
            pid, line = stack.enter_context(started)
            servers[name] = pid, json.loads(line)["url"]
        for form in arguments.forms:
            bodies = [
                infer_body(rows(kind, arguments.rows, seed), form) for seed in range(NUM_BODIES)
            ]
            clients: dict[str, Callable[..., Load]] = {}
            for name, (pid, url) in servers.items():
                np.testing.assert_allclose(scores(url + path, bodies[0]), expected, atol=1e-6)
                clients[name] = partial(Wrk(url, path, bodies, folder).run, pid)
            for connections in arguments.connections:
                print(f"{kind}, {form}, {connections} connections", file=sys.stderr)
                for name, run in clients.items():
                    run(connections=connections, seconds=1)
                    turns[name, form, connections] = []
                before_ms = call(arguments.seconds, 0)
                for _ in range(arguments.rounds):
                    for name, run in clients.items():
                        load = run(connections=connections, seconds=arguments.seconds)
                        after_ms = call(arguments.seconds, 0)
                        turn = Turn(load, (before_ms + after_ms) / 2)
                        turns[name, form, connections].append(turn)
                        before_ms = after_ms
        return turns, measure_pause(call, arguments)


def measure_pause(call: Bare, arguments: argparse.Namespace) -> list[tuple[float, float]]:
    """Return CPU ms of a bare call, one after the other and each after a pause, in turn."""
    return [
        (call(arguments.seconds, 0), call(arguments.seconds, PAUSE_S))
        for _ in range(arguments.rounds)
    ]


def row(kind: Kind, cell: Cell, turns: Sequence[Turn]) -> list[str]:
    """Return a line of the table."""
    name, form, connections = cell
    target = TARGETS.get((kind == "strings", form, connections))
    return [
        kind,
        form,
        str(connections),
        name,
        "" if target is None or name != "headwater" else f"{target:.2f}",
        Spread.of(turn.efficiency for turn in turns).text(),
        Spread.of(turn.bare_ms for turn in turns).text(),
        Spread.of(turn.load.cpu_ms for turn in turns).text(),
        Spread.of(turn.load.per_second for turn in turns).text(0),
        Spread.of(turn.load.p50_ms for turn in turns).text(1),
        Spread.of(turn.load.p99_ms for turn in turns).text(1),
    ]


def pause_row(kind: Kind, pairs: Sequence[tuple[float, float]]) -> list[str]:
    """Return a line of the table of pauses."""
    ready, late = zip(*pairs, strict=True)
    ratios = Spread.of(at_once / after for at_once, after in pairs)
    return [kind, Spread.of(ready).text(), Spread.of(late).text(), ratios.text()]


HEAD = (
    "inputs", "form", "connections", "server", "target", "efficiency", "bare CPU ms",
    "server CPU ms", "requests/s", "p50 ms", "p99 ms",
)  # fmt: skip
PAUSE_HEAD = ("inputs", "bare CPU ms", "after a pause, CPU ms", "bare / after a pause")


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--releases", type=Path, help="folder that releases.py wrote; else made anew"
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    parser.add_argument("--connections", nargs="+", type=int, default=CONNECTIONS)
    parser.add_argument("--rows", type=int, default=100, help="rows of a request")
    parser.add_argument("--runners", type=int, default=1, help="threads of the service that score")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=1, help="of each stretch")
    parser.add_argument("--out", type=Path, help="write the raw figures as JSON")
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare:
        serve_bare(arguments.bare, arguments.kinds[0], arguments.rows)
        return
    figures: dict[str, Any] = {}
    lines: list[list[str]] = []
    pauses: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        releases = arguments.releases or Path(folder)
        for kind in arguments.kinds:
            if arguments.releases is None:
                make_release(releases, kind)
            cells, pairs = measure_kind(releases, kind, arguments)
            for cell, turns in cells.items():
                lines.append(row(kind, cell, turns))
                figures[" ".join(map(str, (kind, *cell)))] = [asdict(turn) for turn in turns]
            pauses.append(pause_row(kind, pairs))
            figures[f"{kind} pause"] = pairs
    print(f"{machine()}; onnxruntime {onnxruntime.__version__}, one thread, spinning off")
    print(
        f"{arguments.rows} rows a request, {arguments.runners} runner(s), {arguments.rounds} rounds"
    )
    print(table(HEAD, lines))
    print(f"\nThe bare call, each after a pause of {1000 * PAUSE_S:g} ms\n")
    print(table(PAUSE_HEAD, pauses))
    write_figures(arguments.out, figures)


if __name__ == "__main__":
    main()
