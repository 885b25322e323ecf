"""A file is written whole or not at all, and what killed processes left goes with the next."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from headwater.feature_store.errors import OutputError
from headwater.pipelines.output import whole_file, write_whole, writing


def test_file_has_its_name_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_bytes(b"old")
    with whole_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()


def test_error_inside_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_bytes(b"old")
    with pytest.raises(OutputError, match=r"out\.csv: cannot be written: No space"):
        write_and_fail(path, OSError(28, "No space left on device"))
    with pytest.raises(KeyboardInterrupt):
        write_and_fail(path, KeyboardInterrupt())
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["IO error: (os error 28)", "write failed. Detail: [errno 28] x"])
def test_full_disk_is_told_whatever_library_met_it(text: str) -> None:
    with (
        pytest.raises(OutputError, match="x: cannot be written: No space left"),
        writing(Path("x")),
    ):
        raise RuntimeError(text)
    with pytest.raises(RuntimeError, match="os error 2"), writing(Path("x")):
        raise RuntimeError("cannot read y: (os error 2)")


def test_part_that_a_killed_process_left_goes_and_a_living_one_stays(tmp_path: Path) -> None:
    # The name is no pattern.
    path = tmp_path / "a[b]?.json"
    dead = tmp_path / ".a[b]?.json.0123abcd.part"
    living = tmp_path / ".a[b]?.json.4567abcd.part"
    others = [tmp_path / name for name in (".a[b]?.json.part", ".b.json.0123abcd.part")]
    for each in (dead, living, *others):
        each.write_bytes(b"half")
    with living.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        write_whole(path, b"{}")
    assert set(tmp_path.iterdir()) == {path, living, *others}


def test_part_is_locked_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    with whole_file(path) as outer:
        outer.write(b"outer")
        write_whole(path, b"inner")
        assert path.read_bytes() == b"inner"
    assert path.read_bytes() == b"outer"


def write_and_fail(path: Path, error: BaseException) -> None:
    with whole_file(path) as file:
        file.write(b"new")
        raise error


def umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
