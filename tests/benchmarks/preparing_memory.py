"""Memory of `headwater prepare`: under a limit on far more data than memory, and against the number of rows.

    .venv/bin/python tests/benchmarks/preparing_memory.py --work FOLDER

- `limit`: 8 GiB of Parquet, written without compression and dictionaries so that the file is that large (some
  21 million rows like Criteo's over 900,000 values, `criteo_like.py`), is prepared by a child whose peak of
  resident memory (VmHWM) is looked at ten times a second; above 1 GiB it is killed and the benchmark fails.
- `growth`: the same values, once and four times the rows, in turn; the ratio of the peaks. The values are so
  few that the smaller file has them too: memory may grow with what there is to know, not with rows.

Resident memory counts what the process holds and the pages of files that it has mapped, not the system's
cache of files. The folder needs some 14 GiB; the data of `limit` are deleted at the end.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import criteo_like
import measure
from measure import Cost, Spread

HEADWATER = Path(sys.executable).with_name("headwater")
VALID_ROWS = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for data and output")
    parser.add_argument("--limit-rows", type=int, default=21_300_000, help="0: left out")
    parser.add_argument("--limit-mib", type=int, default=1024)
    parser.add_argument("--growth-rows", type=int, default=2_000_000, help="0: left out")
    parser.add_argument("--limit-ids", type=int, default=900_000, help="values of all categories")
    parser.add_argument("--growth-ids", type=int, default=100_000, help="the same, of growth")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the raw figures as JSON")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    print(f"{measure.machine()}; {given.threads} thread(s)\n")
    figures: dict[str, Any] = {"settings": {key: str(value) for key, value in vars(given).items()}}
    lines: list[list[str]] = []
    if given.growth_rows:
        costs = _growth(given)
        figures["growth"] = {name: [asdict(cost) for cost in all_] for name, all_ in costs.items()}
        peaks = {name: Spread.of(cost.peak_mib for cost in all_) for name, all_ in costs.items()}
        growth = peaks["4"].median / peaks["1"].median
        for name, factor in (("1", 1), ("4", 4)):
            target = f"{growth:.2f}x, at most 1.1x" if factor == 4 else ""
            lines.append([f"{factor * given.growth_rows:,}", "", peaks[name].text(0), target])
    if given.limit_rows:
        cost, num_bytes = _limit(given)
        figures["limit"] = {"cost": asdict(cost), "bytes": num_bytes}
        size = f"{num_bytes / 2**30:.2f} GiB, {cost.cpu_s:,.0f} CPU s"
        target = f"at most {given.limit_mib:,} MiB"
        lines.append([f"{given.limit_rows:,}", size, f"{cost.peak_mib:,.0f}", target])
    print(measure.table(["rows", "data", "peak MiB", "target"], lines))
    measure.write_figures(given.out, figures)


def _growth(given: argparse.Namespace) -> dict[str, list[Cost]]:
    def run(factor: int) -> Cost:
        rows = factor * given.growth_rows
        ids = given.growth_ids
        return _prepare(given, _data(given, f"train-{rows}-{ids}.parquet", rows, ids), ids)

    return measure.interleave({"1": lambda: run(1), "4": lambda: run(4)}, given.rounds)


def _limit(given: argparse.Namespace) -> tuple[Cost, int]:
    rows, ids = given.limit_rows, given.limit_ids
    train = _data(given, f"plain-{rows}-{ids}.parquet", rows, ids, "--plain")
    limit_kib = given.limit_mib * 1024

    def watch(child: subprocess.Popen[str]) -> None:
        status = Path(f"/proc/{child.pid}/status")
        while child.returncode is None:
            try:
                lines = status.read_text().splitlines()
            except OSError:
                return
            peak_kib = next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)
            if peak_kib > limit_kib:
                child.kill()
                return
            time.sleep(0.1)

    cost = _prepare(given, train, ids, watch)
    if cost.peak_mib > given.limit_mib:
        raise SystemExit(f"peak {cost.peak_mib:,.0f} MiB, allowed {given.limit_mib:,}")
    num_bytes = train.stat().st_size
    train.unlink()
    return cost, num_bytes


def _data(given: argparse.Namespace, name: str, num_rows: int, ids: int, *options: str) -> Path:
    return criteo_like.make(given.work / name, num_rows, 0, "--ids", str(ids), *options)


def _prepare(given: argparse.Namespace, train: Path, ids: int, watch: Any = None) -> Cost:
    valid = _data(given, f"valid-{ids}.parquet", VALID_ROWS, ids)
    job = given.work / f"{train.stem}.toml"
    criteo_like.write_job(job, train.absolute(), valid.absolute())
    root = given.work / "prepared"
    shutil.rmtree(root, ignore_errors=True)
    command = [HEADWATER, "prepare", job.absolute(), "--json"]
    cost = measure.run_child(command, threads=given.threads, folder=given.work, watch=watch)
    shutil.rmtree(root)
    return cost


if __name__ == "__main__":
    main()
