"""Folders, globs and links: every data file is found, once, and a link to nothing is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from headwater.feature_store.errors import DataError
from headwater.pipelines.data.files import find_files


def write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x\n1\n")
    return path


def found(pattern: Path | str) -> list[str]:
    return [Path(file.path).name for file in find_files(str(pattern))]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in ("a/1.csv", "b/2.csv", "3.csv"):
        write(tmp_path / "data" / name)
    return tmp_path / "data"


def test_files_behind_links_are_found(tmp_path: Path, data: Path) -> None:
    write(tmp_path / "elsewhere" / "4.csv")
    write(tmp_path / "5-target.csv")
    (data / "c").symlink_to(tmp_path / "elsewhere")
    (data / "5.csv").symlink_to(tmp_path / "5-target.csv")
    assert sorted(found(data)) == ["1.csv", "2.csv", "3.csv", "4.csv", "5.csv"]
    (tmp_path / "all").symlink_to(data)
    assert sorted(found(tmp_path / "all")) == ["1.csv", "2.csv", "3.csv", "4.csv", "5.csv"]


def test_a_file_that_two_names_reach_is_read_once(data: Path) -> None:
    (data / "latest").symlink_to(data / "b")
    (data / "0.csv").symlink_to(data / "3.csv")
    assert found(data) == ["3.csv", "1.csv", "2.csv"]
    assert found(f"{data}/*.csv") == ["3.csv"]


def test_links_in_a_circle_end(data: Path) -> None:
    (data / "a" / "up").symlink_to(data)
    (data / "b" / "same").symlink_to(data / "b")
    assert sorted(found(data)) == ["1.csv", "2.csv", "3.csv"]


@pytest.mark.parametrize("pattern", ["data", "data/*.csv", "data/gone.csv"])
def test_a_link_to_nothing_is_refused_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Path, pattern: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (data / "gone.csv").symlink_to(tmp_path / "nowhere.csv")
    with pytest.raises(DataError, match=r"gone\.csv: a link to .*nowhere\.csv, which is not there"):
        find_files(pattern)


def test_a_name_that_is_not_utf_8_is_refused(data: Path) -> None:
    with open(os.fsencode(data) + b"/caf\xe9.csv", "w") as file:  # noqa: PTH123
        file.write("x\n1\n")
    with pytest.raises(DataError, match=r"caf\\udce9\.csv: the name is not UTF-8; rename the file"):
        find_files(str(data))
