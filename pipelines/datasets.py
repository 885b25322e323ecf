"""Real data for the examples, fetched by checksum since we may not ship it.

MovieLens-100K forbids redistribution by us. It also lies inside the wheel of RecBole, so that a
machine that reaches nothing but a package index can have it; GroupLens is the other source.
Whatever the source, the same tidy Parquet files come out, and the ratings must have one known hash.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from headwater.feature_store.errors import DataError, HeadwaterError
from headwater.feature_store.files import file_sha256

Source = Literal["index", "grouplens"]
Tables = dict[str, pl.DataFrame]

RECBOLE = "recbole==1.2.1"
RECBOLE_WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
RECBOLE_FOLDER = "recbole/dataset_example/ml-100k/"
GROUPLENS_URL = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
GROUPLENS_FOLDER = "ml-100k/"
RATINGS_SHA256 = "0f9ba901a197d4caa4ae824888c4e31fdfd5c4eff5549c9e42647f2027ac1bce"
"""Of the text `user,item,rating,seconds` a line, sorted: equal for both sources."""

_GENRES = [
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
]
_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Dataset:
    """A data set: its description, licence and files, and the function that fetches it."""

    name: str
    title: str
    files: tuple[str, ...]
    licence: str
    fetch: Callable[[Source, Path], Tables]
    """Download into an empty folder and return the tables, by file name without its ending."""


def get(name: str, cache: Path | None = None, *, source: Source = "index") -> Path:
    """Return the folder of a data set's Parquet files, fetching it first if it is not there.

    Raises `DataError` if the name is unknown, `HeadwaterError` if nothing could be downloaded or it
    is not what was expected; the cache is then as before.
    """
    if name not in DATASETS:
        raise DataError(f"data set '{name}' is not known; there are: {', '.join(DATASETS)}.")
    dataset = DATASETS[name]
    target = (cache or cache_folder()) / name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the last step is a rename: a half-written data set is never seen.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as scratch:
        download, tidy = Path(scratch, "download"), Path(scratch, "tidy")
        download.mkdir()
        tidy.mkdir()
        for stem, table in dataset.fetch(source, download).items():
            table.write_parquet(tidy / f"{stem}.parquet")
        try:
            tidy.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was first, with the same files
                raise
    return target


def cache_folder() -> Path:
    """Return where data sets are kept: headwater/datasets in $XDG_CACHE_HOME or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "headwater" / "datasets"


def _movielens_100k(source: Source, folder: Path) -> Tables:
    if source == "index":
        tables = read_atomic_files(_recbole_files(folder))
    else:
        tables = read_grouplens_files(_grouplens_files(folder))
    found = ratings_sha256(tables["ratings"])
    if found != RATINGS_SHA256:
        raise HeadwaterError(
            f"ml-100k from {source}: the ratings have sha256 {found}, expected {RATINGS_SHA256}. "
            "The source has changed: use the other one (--from)."
        )
    return tables


def _recbole_files(folder: Path) -> Path:
    """Return the folder of RecBole's files, from its wheel; nothing of the package is installed."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    done = subprocess.run(
        [*command, "--disable-pip-version-check", "--dest", str(folder), RECBOLE],
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        raise HeadwaterError(
            f"ml-100k: pip could not download {RECBOLE}: {_last_line(done.stderr)} "
            "Remedy: check the package index and the network, or use --from grouplens."
        )
    check_sha256(wheels[0], RECBOLE_WHEEL_SHA256)
    return unpack(wheels[0], RECBOLE_FOLDER, folder / "files")


def _grouplens_files(folder: Path) -> Path:
    archive = folder / "ml-100k.zip"
    try:
        with urllib.request.urlopen(GROUPLENS_URL, timeout=_TIMEOUT_S) as answer:
            # Whole (5 MB): piece by piece, an answer that breaks off is no error.
            content = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise HeadwaterError(
            f"ml-100k: {GROUPLENS_URL} could not be read: {error}. Remedy: use --from index."
        ) from error
    archive.write_bytes(content)
    return unpack(archive, GROUPLENS_FOLDER, folder / "files")


def check_sha256(path: Path, expected: str) -> None:
    """Refuse a download whose content is not the expected one."""
    found = file_sha256(path)
    if found != expected:
        raise HeadwaterError(
            f"{path.name}: sha256 is {found}, expected {expected}: the download is corrupt or was "
            "changed, and is thrown away. Remedy: try again, or use another source (--from)."
        )


def unpack(archive: Path, prefix: str, folder: Path) -> Path:
    """Write the files right under `prefix` of a zip archive into a new folder, and return it."""
    folder.mkdir()
    try:
        with zipfile.ZipFile(archive) as opened:
            for entry in opened.namelist():
                name = entry.removeprefix(prefix)
                if entry.startswith(prefix) and name and "/" not in name:
                    (folder / name).write_bytes(opened.read(entry))
    except zipfile.BadZipFile as error:
        raise HeadwaterError(f"{archive.name}: not a zip archive ({error}). Try again.") from error
    return folder


def read_atomic_files(folder: Path) -> Tables:
    """Return ratings, users and items from RecBole's `ml-100k.inter`, `.user` and `.item`.

    Those are separated by tabs, with a header of `name:type`. Columns: user_id, item_id, rating,
    timestamp (int64, UTC seconds); age, gender, occupation, zip_code; movie_title, release_year
    (null where unknown), genres (list of strings).
    """
    ratings, users, items = (
        _read_text(folder / f"ml-100k.{ending}", separator="\t")
        for ending in ("inter", "user", "item")
    )
    return _tidy(
        ratings.rename(lambda name: name.partition(":")[0]),
        users.rename(lambda name: name.partition(":")[0]),
        items.rename(lambda name: name.partition(":")[0]).with_columns(
            genres=pl.col("class").fill_null("").str.split(" ")
        ),
    )


def read_grouplens_files(folder: Path) -> Tables:
    """Return the same tables from GroupLens' own `u.data`, `u.user` and `u.item`.

    Titles differ from those of `read_atomic_files` in their details: RecBole mended some.
    """
    ratings = _read_text(
        folder / "u.data", separator="\t", names=("user_id", "item_id", "rating", "timestamp")
    )
    users = _read_text(
        folder / "u.user",
        separator="|",
        names=("user_id", "age", "gender", "occupation", "zip_code"),
    )
    items = _read_text(
        folder / "u.item",
        separator="|",
        names=("item_id", "movie_title", "released", "released_on_video", "url", *_GENRES),
        encoding="iso-8859-1",
    )
    flags = [pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in _GENRES]
    return _tidy(
        ratings,
        users,
        items.with_columns(
            movie_title=pl.col("movie_title").str.replace(r" \(\d{4}\)$", ""),
            release_year=pl.col("released").str.tail(4),
            genres=pl.concat_list(flags).list.drop_nulls(),
        ),
    )


def _read_text(
    path: Path, *, separator: str, names: tuple[str, ...] = (), encoding: str = "utf8"
) -> pl.DataFrame:
    """Read every column as text: what is a number is decided once, in `_tidy`."""
    if not path.is_file():
        raise HeadwaterError(f"{path.name}: missing from the download, which has changed its form.")
    return pl.read_csv(
        path,
        separator=separator,
        has_header=not names,
        new_columns=list(names) or None,
        infer_schema=False,
        quote_char=None,
        encoding=encoding,
    )


def _tidy(ratings: pl.DataFrame, users: pl.DataFrame, items: pl.DataFrame) -> Tables:
    number = pl.Int64
    return {
        "ratings": ratings.select(
            pl.col("user_id", "item_id").cast(number),
            pl.col("rating", "timestamp").cast(pl.Float64).cast(number),
        ),
        "users": users.select(
            pl.col("user_id", "age").cast(number), "gender", "occupation", "zip_code"
        ),
        "items": items.select(
            pl.col("item_id").cast(number),
            "movie_title",
            # Two films have no year: one says 'V', the other 'unkonwn'.
            pl.col("release_year").cast(number, strict=False),
            "genres",
        ),
    }


def ratings_sha256(ratings: pl.DataFrame) -> str:
    """Return the hash of what was rated, whatever the order of rows and the file's format."""
    lines = ratings.select(
        pl.concat_str("user_id", "item_id", "rating", "timestamp", separator=",").sort()
    )
    return hashlib.sha256("\n".join(lines.to_series()).encode()).hexdigest()


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "no message."


DATASETS: dict[str, Dataset] = {
    "ml-100k": Dataset(
        name="ml-100k",
        title="MovieLens 100K: 100,000 ratings of 1,682 films by 943 people, with their attributes",
        files=("ratings.parquet", "users.parquet", "items.parquet"),
        licence=(
            "Licence of MovieLens 100K (GroupLens, University of Minnesota): research use; no "
            "commercial use and no redistribution without permission; cite Harper and Konstan, "
            "The MovieLens Datasets, ACM TiiS 5(4), 2015."
        ),
        fetch=_movielens_100k,
    ),
}
