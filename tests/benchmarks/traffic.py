"""The service under steady load and under more than it can do, asked by an open loop.

    .venv/bin/python tests/benchmarks/traffic.py soak --minutes 10
    .venv/bin/python tests/benchmarks/traffic.py overload --seconds 60

Half of the requests have 1 candidate, half 100, in random order: the Open Inference Protocol on the release
`ids` of `releases.py` (39 int64 inputs, FinalMLP). The server runs with its defaults and shares the machine
with the client. Capacity is what `--connections` get out of the server in a closed loop: 32 make batches that
are large enough for all that it can do, 8 get some two thirds of that. Then requests leave at a given share
of it, at random (`poisson`) or even intervals, and their latency counts from when they were due (see
`open_loop.py`).

- `soak`: 70 % of capacity, which is measured anew before each minute, as the speed of a virtual machine
  drifts. p99 at most 4 times p50, over all requests; every answer is 200; resident memory is flat: its
  median in the last tenth is within 2 % of that in the second tenth (the first is warm-up).
- `overload`: 20 % ("unloaded"), 150 %, 20 % again. At 150 %, p99 of what is answered with 200 is at most
  twice the unloaded one, and the rest gets 429. The first 2 s of each stretch are left out of its figures
  and, at 150 %, shown by themselves: for a moment the excess is taken for a burst.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from load import cpu_seconds, infer_body, resident_mib, running
from measure import machine, table, write_figures
from open_loop import Outcome, Pool, http_bytes, run
from releases import make_release, rows

SIZES = (1, 100)
BODIES = 16
"""Bodies of each size."""
ONSET_S = 2.0
UNLOADED, STEADY, OVERLOAD = 0.2, 0.7, 1.5


@dataclass(frozen=True, slots=True)
class Stretch:
    """Requests at one rate, and what they took."""

    share: float
    outcome: Outcome
    memory_mib: list[float]
    """Resident memory of the server, once a second."""
    server_cores: float
    client_cores: float
    late_looks: float
    """Share of looks at which the server's event loop was more than 5 ms late."""

    def figures(self) -> dict[str, object]:
        """Return the figures of the requests after the onset."""
        part = self.outcome.between(ONSET_S, np.inf)
        p50, p99, p999 = part.latency_ms(50, 99, 99.9)
        return {
            "share": self.share,
            "offered_per_s": len(part.due_s) / part.seconds,
            "answered_per_s": part.answered_per_s(),
            "statuses": part.statuses(),
            "p50_ms": p50,
            "p99_ms": p99,
            "p999_ms": p999,
            "p99_ms_by_rows": {
                size: part.of(range(BODIES * index, BODIES * (index + 1))).latency_ms(99)[0]
                for index, size in enumerate(SIZES)
            },
            "p99_ms_of_429": part.latency_ms(99, status=429)[0],
            "client_late_p99_ms": part.lag_ms(99)[0],
            "server_cores": self.server_cores,
            "client_cores": self.client_cores,
            "late_looks": self.late_looks,
            "memory_mib": median(self.memory_mib),
        }


class Target:
    """A running server, and the requests that it gets."""

    def __init__(self, url: str, pid: int, arguments: argparse.Namespace) -> None:
        self._url = url
        self._pid = pid
        self._even = arguments.arrivals == "even"
        self._connections: int = arguments.connections
        self._random = np.random.default_rng(0)
        self._payloads = [
            http_bytes("/v2/models/ids/infer", infer_body(rows("ids", size, seed), arguments.form))
            for size in SIZES
            for seed in range(BODIES)
        ]

    def _kinds(self, count: int) -> np.ndarray:
        return self._random.integers(len(self._payloads), size=count)

    def _pool(self) -> Pool:
        host, _, port = self._url.removeprefix("http://").rpartition(":")
        return Pool(host, int(port), self._payloads)

    def capacity(self, turns: int = 3) -> float:
        """Return the requests a second of a closed loop, the median of some stretches of 2,000."""

        async def stretch() -> float:
            pool = self._pool()
            await pool.open(self._connections)
            outcome = await pool.closed_loop(self._kinds(2000))
            pool.close()
            if set(outcome.statuses()) != {200}:
                raise RuntimeError(f"a closed loop was refused: {outcome.statuses()}")
            return outcome.answered_per_s()

        run(stretch)
        return median(run(stretch) for _ in range(turns))

    def stretch(self, share: float, capacity: float, seconds: float) -> Stretch:
        """Return what happens at a share of the capacity."""
        rate = share * capacity
        count = int(rate * seconds)
        gaps_s = (
            np.full(count, 1 / rate) if self._even else self._random.exponential(1 / rate, count)
        )
        memory_mib: list[float] = []

        async def watch() -> None:
            while True:
                memory_mib.append(resident_mib(self._pid))
                await asyncio.sleep(1)

        async def main() -> Outcome:
            pool = self._pool()
            await pool.open(200)
            watching = asyncio.ensure_future(watch())
            try:
                return await pool.open_loop(self._kinds(count), np.cumsum(gaps_s))
            finally:
                watching.cancel()
                pool.close()

        looks = self._looks()
        start_s, server_s, client_s = time.monotonic(), cpu_seconds(self._pid), time.process_time()
        outcome = run(main)
        wall_s = time.monotonic() - start_s
        server_s, client_s = cpu_seconds(self._pid) - server_s, time.process_time() - client_s
        new = self._looks() - looks
        late = float(1 - new[0] / new[1])
        return Stretch(share, outcome, memory_mib, server_s / wall_s, client_s / wall_s, late)

    def _looks(self) -> np.ndarray:
        """Return how often the event loop was at most 5 ms late, and how often it was looked at."""
        with urllib.request.urlopen(f"{self._url}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        name = "headwater_serving_loop_lag_seconds"
        return np.array(
            [float(values[f'{name}_bucket{{le="0.005"}}']), float(values[f"{name}_count"])]
        )


def soak(target: Target, capacity: float, arguments: argparse.Namespace) -> list[Stretch]:
    """Load at 70 % and print figures beside targets."""
    stretches: list[Stretch] = []
    for minute in range(arguments.minutes):
        if minute:
            capacity = target.capacity(turns=1)
        stretches.append(target.stretch(STEADY, capacity, 60))
    outcome = Outcome.joined([stretch.outcome for stretch in stretches])
    memory_mib = [size for stretch in stretches for size in stretch.memory_mib]
    p50, p99 = outcome.latency_ms(50, 99)
    tenth = max(1, len(memory_mib) // 10)
    early, late = median(memory_mib[tenth : 2 * tenth]), median(memory_mib[-tenth:])
    after = memory_mib[tenth:]
    slope = float(np.polyfit(np.arange(len(after)) / 60, after, 1)[0])
    lines = [
        ("p99 / p50", "at most 4", f"{p99 / p50:.2f} ({p50:.1f}, {p99:.1f} ms)"),
        ("answers", "200 only", _counts(outcome.statuses())),
        (
            "memory, last tenth / second tenth",
            "at most 1.02",
            f"{late / early:.3f} ({early:.0f}, {late:.0f} MiB; {slope:+.2f} MiB a minute)",
        ),
    ]
    print(table(("70 % of capacity", "target", "measured"), lines))
    return stretches


def overload(target: Target, capacity: float, arguments: argparse.Namespace) -> list[Stretch]:
    """Load at 20 %, 150 % and 20 %, and print figures beside targets."""
    shares = (UNLOADED, OVERLOAD, UNLOADED)
    stretches = [target.stretch(share, capacity, arguments.seconds) for share in shares]
    before, over, after = (stretch.outcome.between(ONSET_S, np.inf) for stretch in stretches)
    onset = stretches[1].outcome.between(0, ONSET_S)
    unloaded = before.latency_ms(50, 99)
    loaded = over.latency_ms(50, 99)
    refused = over.latency_ms(50, 99, status=429)
    again = after.latency_ms(99)[0]
    lines = [
        ("p99 at 20 % of capacity, before and after", "", f"{unloaded[1]:.1f}, {again:.1f} ms"),
        ("p99 of the answered", "at most 2x", f"{loaded[1]:.1f} ms, {loaded[1] / unloaded[1]:.2f}x"),
        ("answers", "200 and 429", _counts(over.statuses())),
        ("answered / capacity", "", f"{over.answered_per_s() / capacity:.2f}"),
        ("429 after", "", f"p50 {refused[0]:.1f}, p99 {refused[1]:.1f} ms"),
        (f"first {ONSET_S:g} s", "", f"p99 {onset.latency_ms(99)[0]:.0f} ms; {_counts(onset.statuses())}"),
    ]  # fmt: skip
    print(table(("150 % of capacity", "target", "measured"), lines))
    return stretches


def _counts(statuses: dict[int, int]) -> str:
    return ", ".join(f"{status or 'none'}: {count:,}" for status, count in statuses.items())


def main(words: Sequence[str]) -> None:
    """Start a server, measure its capacity, load it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("soak", "overload"))
    parser.add_argument("--minutes", type=int, default=10, help="of soak")
    parser.add_argument("--seconds", type=float, default=60, help="of each stretch of overload")
    parser.add_argument("--arrivals", choices=("poisson", "even"), default="poisson")
    parser.add_argument(
        "--connections", type=int, default=32, help="of the closed loop that measures capacity"
    )
    parser.add_argument("--form", choices=("json", "binary"), default="json")
    parser.add_argument("--release", type=Path, help="releases folder with `ids`; default: made")
    parser.add_argument("--out", type=Path, help="JSON file for the raw figures")
    arguments = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        releases: Path = arguments.release or Path(folder)
        if arguments.release is None:
            make_release(releases, "ids")
        command = [Path(sys.executable).with_name("headwater"), "serve", releases, "--json"]
        with running([*command, "--port", "0"]) as (pid, line):
            target = Target(json.loads(line)["url"], pid, arguments)
            capacity = target.capacity()
            print(
                f"{machine()}; {arguments.form}, {arguments.arrivals} arrivals; capacity with "
                f"{arguments.connections} connections {capacity:.0f} requests/s at first\n"
            )
            load = soak if arguments.what == "soak" else overload
            stretches = [stretch.figures() for stretch in load(target, capacity, arguments)]
    cells = [
        (
            f"{stretch['share']:.0%}",
            f"{stretch['offered_per_s']:.0f}",
            f"{stretch['p50_ms']:.1f}",
            f"{stretch['p99_ms']:.1f}",
            f"{stretch['client_late_p99_ms']:.1f} ms",
            f"{stretch['client_cores']:.2f}",
            f"{stretch['server_cores']:.2f}",
            f"{stretch['late_looks']:.1%}",
            f"{stretch['memory_mib']:.1f}",
        )
        for stretch in stretches
    ]
    head = (
        "load",
        "requests/s",
        "p50 ms",
        "p99 ms",
        "client late, p99",
        "client cores",
        "server cores",
        "event loop > 5 ms late",
        "memory MiB",
    )
    print(f"\n{table(head, cells)}")
    settings = {name: str(value) for name, value in vars(arguments).items()}
    write_figures(
        arguments.out, {"settings": settings, "capacity_per_s": capacity, "stretches": stretches}
    )


if __name__ == "__main__":
    main(sys.argv[1:])
