"""A full disk at each step that writes: a clear error, status 1, and all that was there untouched.

The disk is a small tmpfs, which only root can mount; elsewhere these tests are skipped. Each command runs
undisturbed first, and the space that it has taken is noted before each of its file-system calls. Then it runs
with as much space as ends within what each of these calls goes on to write.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from headwater.pipelines.cli import main
from headwater.pipelines.runs.run import newest_run

DISK_MB = 64
PAGE = 4096


@dataclass(frozen=True)
class Disk:
    """A file system of its own, the current folder, with a run and a release of the shop on it."""

    path: Path

    def used(self) -> int:
        """Return the bytes that are taken, in whole pages."""
        found = os.statvfs(self.path)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def fill(self, *, leave: int) -> None:
        """Take all space but `leave` bytes, in whole pages."""
        with (self.path / "filler").open("wb") as file:
            file.write(bytes((DISK_MB << 20) - self.used() - leave))

    def clear(self) -> None:
        """Give the space back that `fill` took."""
        (self.path / "filler").unlink()

    def files(self) -> dict[str, str]:
        """Return a hash of each file."""
        return {
            str(path.relative_to(self.path)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.path.rglob("*"))
            if path.is_file() and path.name != "filler"
        }


@pytest.fixture
def disk(
    shop: Any,
    made: Callable[[str], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Disk]:
    first = made("finalmlp-fused")
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "headwater-test", str(tmp_path)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"cannot mount a small disk here: {done.stderr.strip()}")
    try:
        for made_of_it in (first.run, first.release):
            shutil.copytree(made_of_it, tmp_path / made_of_it.relative_to(shop.path))
        shutil.copytree(shop.path / "prepared", tmp_path / "prepared")
        shutil.copy(shop.job, tmp_path)
        shop.joined.write_parquet(tmp_path / "in.parquet")
        monkeypatch.chdir(tmp_path)
        yield Disk(tmp_path)
    finally:
        monkeypatch.undo()
        # Lazily: shards that this process read may still be mapped.
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


@pytest.fixture
def fails(disk: Disk, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, str]]:
    """Give a function: the command fails for want of space; returns the files that it left."""

    def check(*arguments: str | Path, place: str) -> dict[str, str]:
        before = disk.files()
        assert main([*map(str, arguments), "--json"]) == 1
        shown = capsys.readouterr()
        message: str = json.loads(shown.out.splitlines()[-1])["error"]
        assert place in message
        assert "no space left" in message.lower()
        assert "Traceback" not in shown.err
        after = disk.files()
        assert {name: after[name] for name in before} == before
        return {name: after[name] for name in after.keys() - before.keys()}

    return check


@dataclass(frozen=True)
class Step:
    """A place in a command where the disk is full: `leave` bytes end while something is written."""

    after: str
    """The last call before: the file, or what is done before a library opens one."""
    leave: int


def steps(disk: Disk, calls: Callable[..., Any], command: Sequence[str]) -> list[Step]:
    """Run a command undisturbed, and return its steps that take space; what is new is removed."""
    before = set(disk.path.rglob("*"))
    start = disk.used()
    found = calls(lambda: main(list(command)), sample=lambda: disk.used() - start)
    taken = [*(size for _, size in found), disk.used() - start]
    for path in sorted(set(disk.path.rglob("*")) - before, reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    result: list[Step] = []
    for index, (name, size) in enumerate(found):
        grown = taken[index + 1] - size
        leave = size + grown // 2 // PAGE * PAGE
        # What is freed before leaves room for a step that takes less.
        if grown > 0 and leave >= max(taken[: index + 1]):
            result.append(Step(Path(name).name, leave))
    return result


COMMANDS: dict[str, tuple[tuple[str, ...], str]] = {
    # Another filter, so that nothing prepared before can be used.
    "prepare": (
        ("prepare", "job.toml", "--set", "data.filter=price IS NULL OR price < 1e9"),
        "prepared/",
    ),
    "evaluate": (("evaluate", "--run", "{run}"), "{run}"),
    "report": (("report", "{run}"), "report.html"),
    "export": (("export", "--run", "{run}"), "releases/finalmlp-fused"),
    "score": (("score", "releases/finalmlp-fused", "in.parquet", "out.parquet"), "out.parquet"),
    "init": (("init", "in.parquet", "--out", "new.toml"), "new.toml"),
    "make": (("datasets", "make", "planted", "planted", "--set", "rows=2000"), "planted"),
}
"""Commands, and what the message names."""


@pytest.mark.parametrize("name", COMMANDS)
def test_each_step_of_a_command(
    name: str,
    disk: Disk,
    made: Callable[[str], Any],
    shop: Any,
    calls: Callable[..., Any],
    fails: Callable[..., dict[str, str]],
) -> None:
    run = str(made("finalmlp-fused").run.relative_to(shop.path))
    command, place = COMMANDS[name]
    command = [part.format(run=run) for part in command]
    expected = steps(disk, calls, command)
    print(*expected, sep="\n")
    assert len(expected) >= {"prepare": 6, "evaluate": 4, "export": 2}.get(name, 1)
    for step in expected:
        disk.fill(leave=step.leave)
        left = fails(*command, place=place.format(run=run))
        # The number that a release would have had may be taken.
        assert left.keys() <= {"releases/finalmlp-fused/.last-version"}, step
        disk.clear()
    assert main(list(command)) == 0


def test_each_step_of_training(
    disk: Disk, calls: Callable[..., Any], fails: Callable[..., dict[str, str]]
) -> None:
    before = newest_run("shop").path
    command = ("train", "job.toml", "--set", "train.epochs=2")
    expected = steps(disk, calls, command)
    print(*expected, sep="\n")
    assert {"job.toml", "log.jsonl", "network.pt", "training.pt"} <= {
        re.sub(r"^\.|\.[0-9a-f]{8}\.part$", "", step.after) for step in expected
    }
    for step in expected:
        disk.fill(leave=step.leave)
        left = fails(*command, place="runs/shop/")
        # A run that says of itself that it is not complete, and goes on.
        assert newest_run("shop").path == before
        assert not [name for name in left if Path(name).name.startswith(".")], step
        disk.clear()
        runs = {Path(*Path(name).parts[:3]) for name in left}
        assert len(runs) <= 1
        for run in runs:
            assert main(["train", "--resume", str(run), "--json"]) == 0
            assert newest_run("shop").path == run
            for line in (run / "log.jsonl").read_text().splitlines():
                json.loads(line)
            shutil.rmtree(run)


def test_checkpoint_before_stays_when_the_next_does_not_fit(
    disk: Disk, fails: Callable[..., dict[str, str]]
) -> None:
    # Room for the scores and one checkpoint, not for two.
    index = json.loads((newest_run("shop").path / "checkpoint" / "index.json").read_text())
    folder = newest_run("shop").path / "checkpoint" / index["latest"]["folder"]
    size = sum(each.stat().st_size for each in folder.iterdir())
    disk.fill(leave=size * 3 // 2 + (64 << 10))
    left = fails("train", "job.toml", "--set", "train.epochs=40", place="checkpoint/")
    folders = {Path(name).parts[2] for name in left if name.startswith("runs/")}
    assert len(folders) == 1
    run = Path("runs", "shop", folders.pop())
    assert (run / "checkpoint" / "index.json").is_file()
    disk.clear()
    assert main(["train", "--resume", str(run), "--json"]) == 0
    assert newest_run("shop").path == run
