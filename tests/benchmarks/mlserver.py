"""Requests a second and p99 of the service beside MLServer's, with the same ONNX file.

    .venv/bin/python tests/benchmarks/mlserver.py --rival-python RIVALS/mlserver/bin/python

MLServer runs in three ways: as it does by default (one worker process beside the one that reads
requests), with two workers, and with two workers and its adaptive batching. It has a runtime of ours
that goes the shortest way from its lists to onnxruntime, and no access log; `rivals/mlserver.txt` pins
its environment. Headwater runs with its defaults: a scoring thread for each core. Both call onnxruntime
with one thread that does not spin. All servers stay up, and wrk loads one after the other in turns, in
a closed loop, from the same machine.

`ratio` = requests a second of Headwater / those of MLServer, the best of its set-ups in that round.
MLServer always gets JSON: it refuses binary tensors over HTTP.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from load import Form, Load, Wrk, infer_body, running, scores
from measure import Spread, interleave, machine, table, write_figures
from releases import KINDS, Kind, make_release, rows

from headwater.serving.manifest import MODEL_NAME

NUM_BODIES = 32
TARGETS = {(100, 1): 1.6, (100, 8): 1.8, (100, 32): 2.2, (1, 8): 3.0, (1, 32): 10.0}
"""Ratio to reach, by rows of a request and connections."""
RIVALS: dict[str, tuple[int, dict[str, float]]] = {
    "MLServer, 1 worker": (1, {}),
    "MLServer, 2 workers": (2, {}),
    "MLServer, 2 workers, batching": (2, {"max_batch_size": 32, "max_batch_time": 0.002}),
}
"""Worker processes, and settings of its adaptive batching, which is off by default."""
OURS = "Headwater, JSON"
FORMS: dict[str, Form] = {OURS: "json", "Headwater, binary": "binary"}


def write_settings(folder: Path, model: Path, kind: Kind, name: str, threads: int) -> str:
    """Write the two files of an MLServer into `folder` and return the address that it will listen at."""
    folder.mkdir()
    workers, batching = RIVALS[name]
    ports = [_free_port() for _ in range(3)]
    names = ("http_port", "grpc_port", "metrics_port")
    settings = {"debug": False, "host": "127.0.0.1", "parallel_workers": workers}
    (folder / "settings.json").write_text(
        json.dumps(settings | dict(zip(names, ports, strict=True)))
    )
    parameters = {"uri": str(model), "extra": {"threads": threads}}
    implementation = "mlserver_runtime.OnnxModel"
    described = {"name": kind, "implementation": implementation, "parameters": parameters}
    (folder / "model-settings.json").write_text(json.dumps(described | batching))
    return f"http://127.0.0.1:{ports[0]}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


Sides = dict[str, tuple[str, int, Form]]


def start(stack: ExitStack, releases: Path, folder: Path, arguments: argparse.Namespace) -> Sides:
    """Start all servers; return address, pid and form of each side."""
    kind: Kind = arguments.kind
    model = max(releases.glob(f"{kind}/[0-9]*")) / MODEL_NAME
    rival = Path(arguments.rival_python)
    env = {"PYTHONPATH": str(Path(__file__).parent / "rivals")}
    sides: Sides = {}
    for index, name in enumerate(RIVALS):
        settings = folder / f"mlserver-{index}"
        url = write_settings(settings, model.resolve(), kind, name, arguments.rival_threads)
        command = [rival.with_name("mlserver"), "start", settings]
        ready = f"{url}/v2/models/{kind}/ready"
        pid, _ = stack.enter_context(running(command, ready, cwd=settings, env=env))
        sides[name] = (url, pid, "json")
    command = [sys.executable, "-m", "headwater.pipelines.cli", "serve", releases, "--json"]
    ready = f"/v2/models/{kind}/ready"
    pid, line = stack.enter_context(running([*command, "--port", "0"], ready_path=ready))
    for name, form in FORMS.items():
        sides[name] = (json.loads(line)["url"], pid, form)
    return sides


def measure_rows(
    sides: Sides, num_rows: int, folder: Path, arguments: argparse.Namespace
) -> dict[int, dict[str, list[Load]]]:
    """Return the loads of each side by connections, after a check that all answer the same."""
    path = f"/v2/models/{arguments.kind}/infer"
    frames = [rows(arguments.kind, num_rows, seed) for seed in range(NUM_BODIES)]
    clients: dict[str, Callable[..., Load]] = {}
    answers: list[np.ndarray] = []
    for name, (url, pid, form) in sides.items():
        bodies = [infer_body(frame, form) for frame in frames]
        answers.append(scores(url + path, bodies[0]))
        clients[name] = partial(Wrk(url, path, bodies, folder).run, pid)
    for answer in answers:
        np.testing.assert_allclose(answer, answers[0], atol=1e-6)
    found: dict[int, dict[str, list[Load]]] = {}
    for connections in arguments.connections:
        print(f"{num_rows} rows, {connections} connections", file=sys.stderr)
        for run in clients.values():
            run(connections=connections, seconds=1)
        runs = {
            name: partial(run, connections=connections, seconds=arguments.seconds)
            for name, run in clients.items()
        }
        found[connections] = interleave(runs, arguments.rounds)
    return found


def lines(num_rows: int, found: Mapping[int, Mapping[str, Sequence[Load]]]) -> list[list[str]]:
    """Return the lines of the table: a cell of rows and connections, a side a line."""
    made: list[list[str]] = []
    for connections, sides in found.items():
        best = [
            max(load.per_second for load in turn)
            for turn in zip(*(sides[n] for n in RIVALS), strict=True)
        ]
        for name, loads in sides.items():
            ratio = Spread.of(
                load.per_second / rival for load, rival in zip(loads, best, strict=True)
            )
            target = TARGETS.get((num_rows, connections)) if name == OURS else None
            made.append(
                [
                    str(num_rows),
                    str(connections),
                    name,
                    Spread.of(load.per_second for load in loads).text(0),
                    Spread.of(load.p50_ms for load in loads).text(1),
                    Spread.of(load.p99_ms for load in loads).text(1),
                    Spread.of(load.cpu_ms for load in loads).text(2),
                    "" if name in RIVALS else ratio.text(1),
                    "" if target is None else f"{target:.1f}",
                ]
            )
    return made


HEAD = (
    "rows",
    "connections",
    "server",
    "requests/s",
    "p50 ms",
    "p99 ms",
    "CPU ms",
    "ratio",
    "target",
)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--rival-python", required=True, help="interpreter with rivals/mlserver.txt"
    )
    parser.add_argument(
        "--rival-threads", type=int, default=1, help="threads of one call of MLServer's runtime"
    )
    parser.add_argument(
        "--releases", type=Path, help="folder that releases.py wrote; else made anew"
    )
    parser.add_argument("--kind", choices=KINDS, default="ids")
    parser.add_argument("--rows", nargs="+", type=int, default=(100, 1), help="rows of a request")
    parser.add_argument("--connections", nargs="+", type=int, default=(1, 8, 32))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="of each load")
    parser.add_argument("--out", type=Path, help="write the raw figures as JSON")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    made: list[list[str]] = []
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        releases: Path = arguments.releases or folder / "releases"
        if arguments.releases is None:
            make_release(releases, arguments.kind)
        sides = start(stack, releases, folder, arguments)
        for num_rows in arguments.rows:
            found = measure_rows(sides, num_rows, folder, arguments)
            made += lines(num_rows, found)
            for connections, loads in found.items():
                figures[f"{num_rows} rows, {connections} connections"] = {
                    side: [asdict(load) for load in turns] for side, turns in loads.items()
                }
    print(
        f"{machine()}; {arguments.rounds} rounds of {arguments.seconds} s; inputs: {arguments.kind}"
    )
    print(table(HEAD, made))
    write_figures(arguments.out, figures)


if __name__ == "__main__":
    main()
