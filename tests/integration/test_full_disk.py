"""A full disk: a clear error, status 1, nothing half-written to be seen, and all that was there untouched.

The disk is a small tmpfs, which only root can mount; elsewhere these tests are skipped.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from headwater.pipelines.cli import main
from headwater.pipelines.runs import newest_run

pytestmark = pytest.mark.timeout(300)

DISK_MB = 64


@dataclass(frozen=True)
class Disk:
    """A file system of its own, the current folder, with a run and a release of the shop on it."""

    path: Path

    def fill(self, *, leave: int) -> None:
        """Take all space but `leave` bytes, in whole pages."""
        free = os.statvfs(self.path).f_bavail * os.statvfs(self.path).f_frsize
        with (self.path / "filler").open("wb") as file:
            file.write(bytes(free - leave))

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


def test_prepare(disk: Disk, fails: Callable[..., dict[str, str]]) -> None:
    # Another filter, so that nothing prepared before can be used.
    disk.fill(leave=64 << 10)
    other = ("--set", "data.filter=price IS NULL OR price < 1e9")
    assert fails("prepare", "job.toml", *other, place="prepared/shop/") == {}
    assert len(list(Path("prepared/shop").iterdir())) == 1


@pytest.mark.parametrize("leave_kb", [0, 64])
def test_train(leave_kb: int, disk: Disk, fails: Callable[..., dict[str, str]]) -> None:
    before = newest_run("shop").path
    disk.fill(leave=leave_kb << 10)
    left = fails("train", "job.toml", place="runs/shop/")
    # What is left is a run that says of itself that it is not complete, and holds no checkpoint.
    assert newest_run("shop").path == before
    assert len(list(Path("runs/shop").iterdir())) == (2 if leave_kb else 1)
    assert not [name for name in left if "checkpoint" in name or name.endswith("metrics.json")]
    assert not [name for name in left if Path(name).name.startswith(".")]


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
    (disk.path / "filler").unlink()
    assert main(["train", "--resume", str(run), "--json"]) == 0
    assert newest_run("shop").path == run


def test_evaluate_and_report(
    disk: Disk, made: Callable[[str], Any], shop: Any, fails: Callable[..., dict[str, str]]
) -> None:
    run = made("finalmlp-fused").run.relative_to(shop.path)
    disk.fill(leave=0)
    assert fails("evaluate", "--run", run, place=str(run)) == {}
    assert fails("report", run, place="report.html") == {}


@pytest.mark.parametrize("leave_kb", [0, 32])
def test_export(
    leave_kb: int,
    disk: Disk,
    made: Callable[[str], Any],
    shop: Any,
    fails: Callable[..., dict[str, str]],
) -> None:
    run = made("finalmlp-fused").run.relative_to(shop.path)
    disk.fill(leave=leave_kb << 10)
    assert fails("export", "--run", run, place="releases/finalmlp-fused") == {}
    left = [each.name for each in Path("releases/finalmlp-fused").iterdir()]
    assert left == ["1"]


def test_score(disk: Disk, fails: Callable[..., dict[str, str]]) -> None:
    disk.fill(leave=4096)
    arguments = ("score", "releases/finalmlp-fused", "in.parquet", "out.parquet")
    assert fails(*arguments, place="out.parquet") == {}


def test_init(disk: Disk, fails: Callable[..., dict[str, str]]) -> None:
    disk.fill(leave=0)
    assert fails("init", "in.parquet", "--out", "new.toml", place="new.toml") == {}
