"""Integers beyond 2^53 keep their value on every way into shards, joins and scores."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headwater.feature_store.errors import DataError
from headwater.feature_store.schema import Lookup
from headwater.pipelines.job import Job, parse_job
from headwater.pipelines.preparing.prepare import Prepared, prepare

IDS = [2**53 + i for i in range(40)]
ROWS = [IDS[i % 40] for i in range(800)]
LABELS = [(i // 40) % 2 for i in range(800)]


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def parquet(values: Any, path: str = "a.parquet") -> None:
    labels = (LABELS * 2)[: len(values)]
    pq.write_table(pa.table({"id": values, "y": labels}), path)


def decimals(digits: int, scale: int, bits: int = 128) -> Any:
    dtype = pa.decimal128(digits, scale) if bits == 128 else pa.decimal256(digits, scale)
    return pa.array([Decimal(each) for each in ROWS], dtype)


def mixed_parquet() -> None:
    Path("data").mkdir()
    parquet(pa.array(ROWS), "data/a.parquet")
    parquet(pa.array([1.0, 2.0, None] * 20), "data/b.parquet")


def csv_with_a_fraction() -> None:
    lines = [f"{each},{label}" for each, label in zip(ROWS, LABELS, strict=True)]
    Path("a.csv").write_text("\n".join(["id,y", *lines, "1.0,1", "2.0,0"]) + "\n")


def ndjson_with_a_fraction() -> None:
    pairs = list(zip(ROWS, LABELS, strict=True))
    lines = [json.dumps({"id": each, "y": label}) for each, label in pairs]
    Path("a.ndjson").write_text("\n".join([*lines, '{"id": 1.0, "y": 1}', '{"id": 2.0, "y": 0}']))


def text_parquet() -> None:
    parquet(pa.array([str(each) for each in ROWS]))


WAYS: dict[str, tuple[Callable[[], None], str, int]] = {
    "decimal(20,0)": (lambda: parquet(decimals(20, 0)), "a.parquet", 0),
    "decimal(20,2)": (lambda: parquet(decimals(20, 2)), "a.parquet", 0),
    "decimal256": (lambda: parquet(decimals(60, 5, 256)), "a.parquet", 0),
    "uint64": (lambda: parquet(pa.array(ROWS, pa.uint64())), "a.parquet", 0),
    "text": (text_parquet, "a.parquet", 0),
    "int64 beside float64": (mixed_parquet, "data", 2),
    "one fraction in a CSV": (csv_with_a_fraction, "a.csv", 2),
    "one fraction in NDJSON": (ndjson_with_a_fraction, "a.ndjson", 2),
}


def job_of(source: str, columns: list[dict[str, Any]], **data: Any) -> Job:
    return parse_job(
        {
            "name": "ids",
            "data": {"source": source, "split": {"by": "ratio"}, **data},
            "features": {"label": "y", "columns": columns},
            "model": {"type": "fm"},
        }
    )


ID: dict[str, Any] = {"name": "id", "encoder": "vocabulary", "dtype": "int64"}


def keys(prepared: Prepared) -> set[int | str]:
    lookup = prepared.schema.columns[0].steps[0]
    assert isinstance(lookup, Lookup)
    return set(lookup.keys)


@pytest.mark.parametrize("way", WAYS)
def test_every_id_has_a_key_of_its_own(way: str) -> None:
    make, source, more = WAYS[way]
    make()
    found = keys(prepare(job_of(source, [ID])))
    assert found - {1, 2} == set(IDS)
    assert len(found) <= 40 + more


@pytest.mark.parametrize("scale", [0, 2])
def test_entries_of_lists_of_decimals_are_exact(scale: int) -> None:
    values = [[Decimal(each), None] for each in ROWS]
    parquet(pa.array(values, pa.list_(pa.decimal128(20, scale))))
    assert keys(prepare(job_of("a.parquet", [{**ID, "length": 2}]))) == set(IDS)


def test_lists_of_numbers_of_two_kinds_in_ndjson_are_exact() -> None:
    pairs = zip(ROWS, LABELS, strict=True)
    lines = [json.dumps({"id": [each, 1.0], "y": label}) for each, label in pairs]
    Path("a.ndjson").write_text("\n".join(lines))
    assert keys(prepare(job_of("a.ndjson", [{**ID, "length": 2}]))) == {1, *IDS}


@pytest.mark.parametrize("side", ["decimal", "text", "uint64", "float parts"])
@pytest.mark.parametrize("main", ["int64", "decimal", "text"])
def test_join_keys_meet_exactly(side: str, main: str) -> None:
    mains = {"int64": pa.array(ROWS), "decimal": decimals(20, 0), "text": pa.array(map(str, ROWS))}
    parquet(mains[main])
    sides = {
        "decimal": pa.array([Decimal(each) for each in IDS], pa.decimal128(25, 3)),
        "text": pa.array(map(str, IDS)),
        "uint64": pa.array(IDS, pa.uint64()),
        "float parts": pa.array(IDS),
    }
    Path("side").mkdir()
    pq.write_table(pa.table({"id": sides[side], "age": range(40)}), "side/a.parquet")
    if side == "float parts":
        more = pa.table({"id": [1.0, 2.0], "age": [41, 42]})
        pq.write_table(more, "side/b.parquet")
        with pytest.raises(
            DataError, match=r"side/a\.parquet, row 2, column 'id': found 9007199254740993"
        ):
            prepare(job_of("a.parquet", [{"name": "age", "encoder": "vocabulary"}], join=JOIN))
        return
    prepared = prepare(job_of("a.parquet", [{"name": "age", "encoder": "vocabulary"}], join=JOIN))
    assert keys(prepared) == set(range(40))
    for split in prepared.statistics.splits.values():
        assert split.columns["age"].missing == 0


JOIN = [{"path": "side", "on": "id"}]


def test_float_keys_of_the_rows_meet_integers_exactly() -> None:
    parquet(pa.array([float(each) for each in ROWS]))
    pq.write_table(pa.table({"id": IDS, "age": range(40)}), "side.parquet")
    join = [{"path": "side.parquet", "on": "id"}]
    prepared = prepare(job_of("a.parquet", [{"name": "age", "encoder": "vocabulary"}], join=join))
    # A float holds every second of these ids; the others were rounded when the file was written.
    assert keys(prepared) <= set(range(0, 41, 2))


def test_an_integer_that_the_type_of_all_files_cannot_hold_is_refused_by_row() -> None:
    mixed_parquet()
    columns = [{"name": "id", "encoder": "quantiles", "num_buckets": 4}]
    with pytest.raises(
        DataError,
        match=r"data/a\.parquet, row 2, column 'id': found 9007199254740993, which Float64",
    ):
        prepare(job_of("data", columns))
    columns[0]["dtype"] = "double"
    assert prepare(job_of("data", columns)).statistics.splits["train"].rows > 0


WIDE: dict[str, Callable[[], str]] = {
    "decimal": lambda: (
        parquet(pa.array([Decimal(7), Decimal(2**63)] * 400, pa.decimal128(30, 0))),
        "a.parquet",
    )[1],
    "decimal with a fraction": lambda: (
        parquet(pa.array([Decimal(7), Decimal("7.5")] * 400, pa.decimal128(30, 2))),
        "a.parquet",
    )[1],
    "float": lambda: (parquet(pa.array([7.0, 1e19] * 400)), "a.parquet")[1],
    "ndjson": lambda: (
        Path("a.ndjson").write_text('{"id": 7, "y": 1}\n{"id": 9223372036854775808, "y": 0}\n' * 9),
        "a.ndjson",
    )[1],
    "csv": lambda: (
        Path("a.csv").write_text("id,y\n" + "7,1\n9223372036854775808,0\n" * 9),
        "a.csv",
    )[1],
}


@pytest.mark.parametrize("case", WIDE)
def test_a_number_that_is_no_integer_of_64_bits_is_refused_by_row(case: str) -> None:
    source = WIDE[case]()
    with pytest.raises(DataError, match=rf"{source}, row 2, column 'id': found .*, expected int64"):
        prepare(job_of(source, [ID]))


def test_integers_beyond_64_bits_are_read_as_text() -> None:
    big = [10**25 + i for i in range(40)]
    values = pa.array([Decimal(big[i % 40]) for i in range(800)], pa.decimal128(38, 0))
    parquet(values)
    lines = [json.dumps({"id": big[i % 40], "y": LABELS[i]}) for i in range(800)]
    Path("a.ndjson").write_text("\n".join(lines))
    text = [{**ID, "dtype": "string"}]
    expected = set(map(str, big))
    assert keys(prepare(job_of("a.parquet", text))) == expected
    assert keys(prepare(job_of("a.ndjson", text))) == expected


def test_a_number_beside_texts_of_ndjson_keeps_its_digits() -> None:
    lines = ['{"id": 9007199254740993.0, "y": 1}', '{"id": "a", "y": 0}', '{"id": 1e3, "y": 0}']
    lines += ['{"id": 9007199254740993, "y": 1}']
    Path("a.ndjson").write_text("\n".join(lines * 50))
    found = keys(prepare(job_of("a.ndjson", [{"name": "id", "encoder": "vocabulary"}])))
    assert found == {"9007199254740993", "a", "1000"}


@pytest.mark.parametrize("kind", ["group", "user"])
def test_keys_of_users_are_exact_and_may_be_floats(kind: str) -> None:
    pq.write_table(
        pa.table({"u": [1.0, 2.0, None] * 200, "x": range(600), "y": [0, 1, 1, 0, 0, 1] * 100}),
        "a.parquet",
    )
    values = job_of("a.parquet", [{"name": "x", "encoder": "identity"}]).model_dump()
    values["features"][kind] = "u"
    prepared = prepare(parse_job(values))
    groups = prepared.dataset("train").arrays(0).group
    assert groups is not None
    assert set(groups.tolist()) == {1, 2, -(2**63)}
    pl.DataFrame({"u": [1.5] * 600, "x": range(600), "y": [0, 1] * 300}).write_parquet("a.parquet")
    with pytest.raises(
        DataError, match=r"a\.parquet, row 1, column 'u': found 1\.5, expected one integer"
    ):
        prepare(parse_job(values))
