"""What the benchmarks share: children with their cost, interleaved rounds, medians, Markdown tables.

A figure of one round means little on a shared machine. So both sides of a comparison run in turn, several
times, and the median is printed with the smallest and the largest value beside it.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Cost:
    """What one child process took, with whatever it printed as JSON on its last line."""

    wall_s: float
    cpu_s: float
    """User and system time of the child and of all that it waited for."""
    peak_mib: float
    """Peak resident memory of the largest single process among them."""
    result: dict[str, Any] = field(default_factory=dict[str, Any])


def run_child(
    command: Sequence[str | Path],
    *,
    threads: int = 1,
    env: Mapping[str, str] | None = None,
    folder: Path | None = None,
    watch: Callable[[subprocess.Popen[str]], None] | None = None,
) -> Cost:
    """Run a command to its end, inside `folder`, and return its cost.

    The last line that it prints may be one JSON object: it becomes `Cost.result`. `threads` sets the size
    of its thread pools; `watch` runs beside it, from its start. Raises `RuntimeError` with the end of its
    output where it fails.
    """
    settings = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "POLARS_MAX_THREADS": str(threads),
    }
    start_s = time.perf_counter()
    child = subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=settings | dict(env or {}),
        cwd=folder,
    )
    if watch is not None:
        threading.Thread(target=watch, args=(child,), daemon=True).start()
    assert child.stdout is not None
    output = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    wall_s = time.perf_counter() - start_s
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise RuntimeError(f"{command} ended with {child.returncode}:\n{output[-4000:]}")
    return Cost(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, _last_json(output))


def _last_json(output: str) -> dict[str, Any]:
    last = output.rstrip().rpartition("\n")[2]
    return json.loads(last) if last.startswith("{") else {}


def interleave(runs: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Return what each run gave in each round; a round runs each once, every second one in reverse."""
    results: dict[str, list[T]] = {name: [] for name in runs}
    for index in range(rounds):
        names = list(runs)
        for name in names if index % 2 == 0 else reversed(names):
            print(f"round {index + 1} of {rounds}: {name}", file=sys.stderr)
            results[name].append(runs[name]())
    return results


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, smallest and largest of several rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Return the spread of at least one value."""
        found = list(values)
        return cls(median(found), min(found), max(found))

    def text(self, digits: int = 2) -> str:
        """Return `median (low to high)`."""
        return f"{self.median:,.{digits}f} ({self.low:,.{digits}f} to {self.high:,.{digits}f})"


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Return the spread of `theirs / ours`, round by round: above 1, ours takes less."""
    return Spread.of(their / our for our, their in zip(ours, theirs, strict=True))


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def machine() -> str:
    """Return one line on the machine and the interpreter."""
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(
            (line.partition(": ")[2] for line in lines if line.startswith("model name")), processor
        )
    return f"{processor}, {os.cpu_count()} cores, Python {platform.python_version()}"


def write_figures(path: Path | None, figures: Mapping[str, Any]) -> None:
    """Write the raw figures as JSON where a path was given."""
    if path is not None:
        path.write_text(json.dumps({"machine": machine(), **figures}, indent=1) + "\n")
