"""Parquet that is read in place gives what a staged copy gives, and is left to staging where it must be."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headwater.feature_store.errors import DataError
from headwater.pipelines.job import Job, parse_job
from headwater.pipelines.preparing.in_place import in_place
from headwater.pipelines.preparing.prepare import prepare
from headwater.pipelines.preparing.staging import Source

FEATURES: list[dict[str, Any]] = [
    {"name": "user", "encoder": "vocabulary", "min_count": 2},
    {"name": "user_text", "encoder": "hashed", "column": "user", "num_buckets": 7},
    {"name": "city", "encoder": "vocabulary"},
    {"name": "price", "encoder": "standardized"},
    {"name": "price_q", "encoder": "quantiles", "column": "price", "num_buckets": 4},
    {"name": "hour", "encoder": "calendar", "column": "ts", "part": "hour"},
    {"name": "tags", "encoder": "vocabulary", "length": 3},
    {"name": "user_city", "encoder": "crossed", "columns": ["user", "city"]},
]


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def clicks(num_rows: int, seed: int = 0) -> pl.DataFrame:
    """Return rows in types that have to become others: small integers, categories, datetimes in ns."""
    rng = np.random.default_rng(seed)
    cities = np.array(["rome", "oslo", "", None], object)[rng.integers(0, 4, num_rows)]
    start = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=seed)
    return pl.DataFrame(
        {
            "user": pl.Series(rng.integers(0, 40, num_rows), dtype=pl.Int32),
            "city": pl.Series(cities.tolist(), dtype=pl.Categorical),
            "price": pl.Series(rng.random(num_rows).round(3), dtype=pl.Float32),
            "tags": [[f"t{i % 5}", None, "x"][: i % 4] for i in range(num_rows)],
            "ts": pl.Series([start + timedelta(minutes=i) for i in range(num_rows)]).cast(
                pl.Datetime("ns", "UTC")
            ),
            "part": (["train"] * 6 + ["valid", "test"]) * (num_rows // 8),
            "click": rng.integers(0, 2, num_rows).astype(bool),
        }
    )


def write(num_rows: int = 1600) -> None:
    Path("data").mkdir()
    for seed in range(2):
        frame = clicks(num_rows, seed)
        frame.write_parquet(f"data/{seed}.parquet", row_group_size=130 + 40 * seed)


def job_of(columns: list[dict[str, Any]] = FEATURES, label: str = "click", **data: Any) -> Job:
    return parse_job(
        {
            "name": "clicks",
            "data": {"source": "data", "split": {"by": "ratio"}} | data,
            "features": {"label": label, "user": "user", "time": "ts", "columns": columns},
            "model": {"type": "fm"},
        }
    )


def everything(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


SPLITS: list[dict[str, Any]] = [
    {"split": {"by": "ratio", "seed": 3}},
    {"split": {"by": "time", "column": "ts"}},
    {"split": {"by": "leave-one-out", "user": "user", "time": "ts"}},
    {"split": {"by": "column", "column": "part"}},
    {"split": {"by": "column", "column": "part", "valid": ["valid", "test"], "test": []}},
    {"source": None, "split": None, "train": "data/0.parquet", "valid": "data/1.parquet"},
]


@pytest.mark.parametrize("data", SPLITS)
def test_rows_in_place_and_staged_give_the_same_bytes(
    data: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write()
    job = job_of(**data)
    monkeypatch.setattr("headwater.pipelines.preparing.staging.PART_ROWS", 300)
    assert in_place(Source(job)) is not None
    read = prepare(job, Path("a"))
    # By its module: `headwater.pipelines.preparing.prepare` is the function.
    monkeypatch.setattr(
        sys.modules["headwater.pipelines.preparing.prepare"], "in_place", lambda _: None
    )
    assert everything(Path("a")) == everything(prepare(job, Path("b")).path.parent)
    assert read.statistics.splits["train"].columns["city"].missing > 0


def checksums() -> None:
    pq.write_table(clicks(80).to_arrow(), "data/0.parquet", write_page_checksum=True)


def plain_checksums() -> None:
    pq.write_table(
        clicks(80).to_arrow(), "data/0.parquet", write_page_checksum=True, use_dictionary=False
    )


def unsigned() -> None:
    clicks(80).with_columns(pl.col("user").cast(pl.UInt64)).write_parquet("data/0.parquet")


def text() -> None:
    clicks(80).with_columns(pl.col("price").cast(pl.String)).write_parquet("data/0.parquet")


INT_USER = [{"name": "user", "encoder": "vocabulary", "dtype": "int64"}]
INT_PRICE = [{"name": "price", "encoder": "identity", "dtype": "int64"}]
PRICE = [{"name": "price", "encoder": "identity"}]
STAGED: dict[str, tuple[Callable[[], None], dict[str, Any]]] = {
    "derived column": (lambda: None, {"derive": {"x": "user + 1"}}),
    "filter": (lambda: None, {"filter": "user > 1"}),
    "checksums": (checksums, {"source": "data/0.parquet"}),
    "checksums without dictionaries": (plain_checksums, {"source": "data/0.parquet"}),
    "integers beyond int64": (unsigned, {"source": "data/0.parquet", "columns": INT_USER}),
    "fractions as integers": (lambda: None, {"columns": INT_PRICE}),
    "text as numbers": (text, {"source": "data/0.parquet", "columns": PRICE}),
}


@pytest.mark.parametrize("case", STAGED)
def test_what_may_have_to_be_refused_is_staged(case: str) -> None:
    write(80)
    spoil, changes = STAGED[case]
    spoil()
    source = Source(job_of(**changes))
    assert in_place(source) is None


def test_a_large_row_group_is_staged(monkeypatch: pytest.MonkeyPatch) -> None:
    write(80)
    monkeypatch.setattr("headwater.pipelines.preparing.in_place.GROUP_ROWS", 79)
    assert in_place(Source(job_of())) is None
    monkeypatch.setattr("headwater.pipelines.preparing.in_place.GROUP_ROWS", 80)
    assert in_place(Source(job_of())) is not None
    monkeypatch.setattr("headwater.pipelines.preparing.in_place.COLUMN_BYTES", 20)
    assert in_place(Source(job_of())) is None


def test_many_small_files_are_staged() -> None:
    write(80)
    for seed in range(2, 17):
        assert in_place(Source(job_of())) is not None
        clicks(8, seed).write_parquet(f"data/{seed}.parquet")
    assert in_place(Source(job_of())) is None


@pytest.mark.parametrize("column", ["click", "ts", "part"])
def test_a_row_that_is_refused_is_named(column: str) -> None:
    write(80)
    number = pl.int_range(pl.len())
    wrong = {
        "click": pl.when(number == 41).then(2).otherwise(pl.col("click").cast(pl.Int64)),
        "ts": pl.when(number != 41).then("ts"),
        "part": pl.when(number == 41).then(pl.lit("later")).otherwise("part"),
    }[column]
    clicks(80, 1).with_columns(wrong.alias(column)).write_parquet("data/1.parquet")
    by = "column" if column == "part" else "time"
    split = {"by": by, "column": "part" if column == "part" else "ts"}
    with pytest.raises(DataError, match=rf"data/1\.parquet, row 42, column '{column}': found"):
        prepare(job_of(split=split))


def test_a_damaged_page_is_named_by_its_file(capfd: pytest.CaptureFixture[str]) -> None:
    write(1600)
    path = Path("data/1.parquet")
    content = bytearray(path.read_bytes())
    chunk = pq.read_metadata(path).row_group(3).column(2)
    start = chunk.data_page_offset
    content[start : start + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"data/1\.parquet: not a readable Parquet file"):
        prepare(job_of())
    assert not list(Path("prepared").glob("**/*"))
    assert "not readable in place" in capfd.readouterr().err


def test_what_only_the_careful_reader_can_read_is_staged(monkeypatch: pytest.MonkeyPatch) -> None:
    write()
    expected = everything(prepare(job_of(), Path("a")).path)

    module = sys.modules["headwater.pipelines.preparing.prepare"]
    monkeypatch.setattr(module, "in_place", lambda source: Broken(in_place(source)))
    assert everything(prepare(job_of(), Path("b")).path) == expected


class Broken:
    """Staged rows whose files cannot be read."""

    def __init__(self, staged: Any) -> None:
        self.parts = staged.parts

    @property
    def files(self) -> Any:
        raise pl.exceptions.ComputeError("not supported")


def test_a_source_that_changes_while_it_is_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    write()
    module: Any = sys.modules["headwater.pipelines.preparing.prepare"]
    encode = module.encode_splits

    def meanwhile(*arguments: Any, **named: Any) -> Any:
        clicks(800).write_parquet("data/1.parquet")
        return encode(*arguments, **named)

    monkeypatch.setattr(module, "encode_splits", meanwhile)
    with pytest.raises(DataError, match=r"changed while it was read"):
        prepare(job_of())
    assert not Path("prepared").exists()


def test_a_file_without_rows_is_passed_over() -> None:
    write()
    clicks(8).clear().write_parquet("data/00.parquet")
    assert in_place(Source(job_of())) is not None
    assert sum(split.rows for split in prepare(job_of()).statistics.splits.values()) == 3200
    for path in Path("data").iterdir():
        clicks(8).clear().write_parquet(path)
    with pytest.raises(DataError, match="no rows; expected at least one"):
        prepare(job_of())


def test_arrow_dictionaries_are_read_or_staged() -> None:
    Path("data").mkdir()
    frame = clicks(160)
    table = frame.with_columns(pl.col("city").cast(pl.String)).to_arrow()
    index = table.schema.get_field_index("city")
    coded = table.column("city").cast(pa.string()).dictionary_encode()
    pq.write_table(table.set_column(index, "city", coded), "data/0.parquet")
    found = prepare(job_of()).statistics.splits
    missing = frame["city"].is_null() | (frame["city"].cast(pl.String) == "").fill_null(value=True)
    assert sum(each.columns["city"].missing for each in found.values()) == missing.sum()
