"""SIGKILL at any file-system call of a command: what looks complete is so, and the next run succeeds.

A command is first run undisturbed in this process, where its calls are counted. Then, in processes of their
own, it is killed just before calls that a seed draws: `KILL_SEED=7 pytest tests/integration/test_kill.py`
repeats a failure.
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from headwater.pipelines.cli import main
from headwater.pipelines.prepared import SPLITS, load_prepared
from headwater.serving.release import load_release

Calls = Callable[..., list[tuple[str, int]]]
Killed = Callable[..., None]


@dataclass(frozen=True)
class Case:
    """A command, run in a folder of its own, and what is there before it."""

    command: tuple[str, ...]
    given: tuple[str, ...] = ()
    """Of `run`, `releases`, `in.parquet` and `old`, an earlier result."""


CASES = {
    "prepare": Case(("prepare", "job.toml")),
    "evaluate": Case(("evaluate", "--run", "run"), ("run",)),
    "report": Case(("report", "run"), ("run",)),
    "export": Case(("export", "--run", "run"), ("run", "releases")),
    "score": Case(
        ("score", "releases/finalmlp-fused", "in.parquet", "out.parquet"),
        ("releases", "in.parquet", "old"),
    ),
    "init": Case(("init", "in.parquet", "--out", "new.toml"), ("in.parquet",)),
    "make": Case(("datasets", "make", "planted", "planted", "--set", "rows=2000")),
}


@pytest.fixture
def given(shop: Any, made: Callable[[str], Any]) -> Callable[[Case, Path], Path]:
    """Give a function that makes the folder of a case, as it is before the command."""

    def make(case: Case, folder: Path) -> Path:
        folder.mkdir()
        first = made("finalmlp-fused")
        shutil.copy(shop.job, folder)
        if "run" in case.given:
            shutil.copytree(first.run, folder / "run")
        if "releases" in case.given:
            shutil.copytree(first.release.parent, folder / "releases" / first.release.parent.name)
        if "in.parquet" in case.given:
            shop.joined.write_parquet(folder / "in.parquet")
        if "old" in case.given:
            (folder / "out.parquet").write_bytes(b"old")
        return folder

    return make


def visible(names: Iterable[str]) -> set[str]:
    """Return what is not under a temporary name."""
    return {name for name in names if not any(part[0] == "." for part in Path(name).parts)}


def same_version(names: Iterable[str]) -> set[str]:
    """Return names with release 3 as release 2: a number that was taken is not given again."""
    return {re.sub(r"^(releases/[^/]+)/3(?=/|$)", r"\1/2", name) for name in names}


def require_whole(folder: Path) -> None:
    """Fail where prepared data or a release has its final name and cannot be used."""
    for path in folder.glob("prepared/[!.]*"):
        prepared = load_prepared(path)
        for split in SPLITS:
            prepared.dataset(split)
    for path in folder.glob("releases/*/[!.]*"):
        load_release(path)


@pytest.mark.parametrize(
    "kills", [1, pytest.param(12, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
@pytest.mark.parametrize("name", CASES)
def test_killed_command_leaves_nothing_that_looks_complete_and_the_next_run_succeeds(
    name: str,
    kills: int,
    given: Callable[[Case, Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    snapshot: Callable[[Path], dict[str, str]],
    chance: random.Random,
    calls: Calls,
    killed: Killed,
) -> None:
    case = CASES[name]
    undisturbed = given(case, tmp_path / "undisturbed")
    monkeypatch.chdir(undisturbed)
    total = len(calls(lambda: main(list(case.command))))
    after = snapshot(undisturbed)
    drawn = sorted(chance.sample(range(1, total + 1), min(kills, total)))
    print(f"{name}: of {total} calls, killed before {drawn}")
    for call in drawn:
        folder = given(case, tmp_path / str(call))
        before = snapshot(folder)
        monkeypatch.chdir(folder)
        killed(*case.command, before_call=call)
        left = snapshot(folder)
        # What was there is as before, or wholly new; what is new has come by a rename, and can be used.
        changed = {path for path, content in before.items() if left.get(path) != content}
        assert {path: left.get(path) for path in changed} == {path: after[path] for path in changed}
        assert visible(left) <= visible(after)
        require_whole(folder)
        assert main(list(case.command)) == 0, f"after a kill before call {call}"
        require_whole(folder)
        assert same_version(snapshot(folder)) == after.keys()
