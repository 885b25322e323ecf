"""Start-up, memory and hot swaps of `headwater serve` against the number of vocabulary keys.

    .venv/bin/python tests/benchmarks/startup.py

Releases of one FinalMLP whose features have 1e4, 1e5 and 1e6 keys in all, as integers (39 features) or
strings of 8 characters (26 features, beside 13 numbers). The service starts on an empty folder and on each
release, in turn: what lies between is the cost of the release.

- `ready s`: from the start of the process to `/v2/models/{model}/ready`, wall and CPU;
- `resident`: memory of the process when it is ready; `peak`: the most that it ever had;
- then version 2, of the same size, appears beside version 1: `swap peak` is the most resident memory from
  then to 3 s after it serves, `after` what stays. With `--keep-versions 1` version 1 is dropped; by default
  it stays, so that `after` holds both.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from load import cpu_seconds, running
from measure import Spread, interleave, machine, table, write_figures
from releases import Kind, make_release

from headwater.serving.manifest import MANIFEST_NAME

KEYS = (10_000, 100_000, 1_000_000)
SETTLE_S = 3.0


@dataclass(frozen=True, slots=True)
class Start:
    """One start of the service, and one swap where there is a release."""

    wall_s: float
    cpu_s: float
    resident_mib: float
    peak_mib: float
    swap_peak_mib: float = 0.0
    after_mib: float = 0.0


def memory(pid: int, field: str) -> float:
    """Return a size from /proc/PID/status in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024


def start(release: Path | None, keep_versions: int) -> Start:
    """Start the service on a release, or on an empty folder, and swap to version 2 of it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = "none" if release is None else release.parent.name
        if release is not None:
            add_version(release, folder / model, 1)
        command = [sys.executable, "-m", "headwater.pipelines.cli", "serve", folder, "--json"]
        command += ["--port", "0", "--keep-versions", str(keep_versions)]
        path = "/v2/health/live" if release is None else f"/v2/models/{model}/ready"
        start_s = time.monotonic()
        with running(command, ready_path=path) as (pid, line):
            wall_s, cpu_s = time.monotonic() - start_s, cpu_seconds(pid)
            peak_mib = memory(pid, "VmHWM")
            time.sleep(SETTLE_S)
            resident_mib = memory(pid, "VmRSS")
            if release is None:
                return Start(wall_s, cpu_s, resident_mib, peak_mib)
            url = json.loads(line)["url"]
            # 5 resets VmHWM to what is resident now.
            Path(f"/proc/{pid}/clear_refs").write_text("5")
            add_version(release, folder / model, 2)
            while newest(url, model) != 2:
                time.sleep(0.05)
            time.sleep(SETTLE_S)
            return Start(
                wall_s,
                cpu_s,
                resident_mib,
                peak_mib,
                memory(pid, "VmHWM"),
                memory(pid, "VmRSS"),
            )


def add_version(release: Path, model: Path, version: int) -> None:
    """Copy a release as another version of a model, which appears by a rename."""
    part = model / ".part"
    shutil.copytree(release, part)
    manifest = json.loads((part / MANIFEST_NAME).read_bytes())
    (part / MANIFEST_NAME).write_text(json.dumps(manifest | {"version": version}))
    part.rename(model / str(version))


def newest(url: str, model: str) -> int:
    """Return the highest version that the service has loaded."""
    with urllib.request.urlopen(f"{url}/v2/models/{model}", timeout=30) as answer:
        return max(map(int, json.load(answer)["versions"]))


HEAD = (
    "inputs", "keys", "model.onnx MiB", "ready s", "CPU s", "resident MiB", "peak MiB",
    "swap peak MiB, keep 1", "after", "swap peak MiB, keep 2", "after",
)  # fmt: skip


def row(
    label: Sequence[object], file_mib: float, keep_1: list[Start], keep_2: list[Start]
) -> list[str]:
    """Return a line of the table."""

    def text(starts: list[Start], field: str, digits: int = 0) -> str:
        return Spread.of(getattr(each, field) for each in starts).text(digits)

    line = [*map(str, label), f"{file_mib:,.0f}" if file_mib else "-"]
    line += [text(keep_1 + keep_2, "wall_s", 2), text(keep_1 + keep_2, "cpu_s", 2)]
    line += [text(keep_1 + keep_2, "resident_mib"), text(keep_1 + keep_2, "peak_mib")]
    if not file_mib:
        return [*line, "-", "-", "-", "-"]
    for starts in (keep_1, keep_2):
        line += [text(starts, "swap_peak_mib"), text(starts, "after_mib")]
    return line


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--keys", nargs="+", type=int, default=KEYS)
    parser.add_argument(
        "--kinds", nargs="+", choices=("ids", "strings"), default=("ids", "strings")
    )
    parser.add_argument(
        "--releases", type=Path, help="folder of releases, made where they are absent"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the raw figures as JSON")
    arguments = parser.parse_args()
    kinds: list[Kind] = arguments.kinds
    with tempfile.TemporaryDirectory() as name:
        releases: dict[tuple[str, int], Path] = {}
        for kind in kinds:
            for keys in arguments.keys:
                folder = (arguments.releases or Path(name)) / str(keys)
                releases[kind, keys] = folder / kind / "1"
                if not releases[kind, keys].exists():
                    make_release(folder, kind, table_rows=keys)
        cases: list[tuple[str, int, int]] = [("none", 0, 1)]
        cases += [(kind, keys, keep) for kind, keys in releases for keep in (1, 2)]
        runs = {
            f"{kind} {keys} {keep}": (
                lambda kind=kind, keys=keys, keep=keep: start(releases.get((kind, keys)), keep)
            )
            for kind, keys, keep in cases
        }
        found = interleave(runs, arguments.rounds)
        sizes = {
            key: sum(file.stat().st_size for file in release.iterdir()) / 2**20
            for key, release in releases.items()
        }
    lines = [row(("none", "-"), 0, found["none 0 1"], [])]
    for (kind, keys), size in sizes.items():
        keep_1, keep_2 = found[f"{kind} {keys} 1"], found[f"{kind} {keys} 2"]
        lines.append(row((kind, f"{keys:,}"), size, keep_1, keep_2))
    print(f"{machine()}; {arguments.rounds} rounds; median (smallest to largest)\n")
    print(table(HEAD, lines))
    figures = {case: [asdict(each) for each in starts] for case, starts in found.items()}
    write_figures(arguments.out, {"starts": figures})


if __name__ == "__main__":
    main()
