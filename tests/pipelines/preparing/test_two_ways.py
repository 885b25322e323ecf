"""Reading in place and staging are one way: the same bytes for any types, values and sizes of row groups."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headwater.feature_store.errors import DataError, FeatureError
from headwater.pipelines.job import Job, parse_job
from headwater.pipelines.preparing.in_place import in_place
from headwater.pipelines.preparing.prepare import prepare
from headwater.pipelines.preparing.staging import Source

INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]


def integers(name: str) -> st.SearchStrategy[int]:
    bits = int(name.lstrip("uint"))
    return (
        st.integers(0, 2**bits - 1)
        if name[0] == "u"
        else st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    )


VALUES: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (pa.bool_(), st.booleans()),
    *((getattr(pa, name)(), integers(name) | st.integers(0, 3)) for name in INTEGERS),
    (pa.float16(), st.sampled_from([0.0, 1.5, -2.0, float("nan"), float("inf")])),
    (pa.float32(), st.floats(width=32)),
    (pa.float64(), st.floats() | st.integers(-(2**60), 2**60).map(float)),
    (pa.decimal128(20, 0), st.integers(-(10**19), 10**19).map(Decimal)),
    (pa.decimal128(12, 2), st.decimals(-(10**9), 10**9, places=2)),
    (pa.decimal256(50, 0), st.integers(0, 2**70).map(Decimal)),
    (pa.string(), st.text("ab\u00e9\0|7", max_size=3)),
    (pa.large_string(), st.text("ab", max_size=3)),
    (pa.dictionary(pa.int32(), pa.string()), st.text("ab", max_size=2)),
    (pa.date32(), st.integers(-(10**6), 10**6)),
    *(
        (pa.timestamp(unit, zone), st.integers(-(2**62), 2**62))
        for unit in ("ms", "us", "ns")
        for zone in (None, "UTC", "Europe/Rome", "+05:30")
    ),
    (pa.list_(pa.int32()), st.lists(st.none() | integers("int32"), max_size=3)),
    (pa.list_(pa.float64()), st.lists(st.none() | st.floats(), max_size=3)),
    (pa.large_list(pa.string()), st.lists(st.none() | st.text("ab", max_size=2), max_size=3)),
    (pa.list_(pa.decimal128(20, 2)), st.lists(st.decimals(0, 10**9, places=2), max_size=3)),
    (pa.list_(pa.int64(), 2), st.lists(integers("int64"), min_size=2, max_size=2)),
    (pa.list_view(pa.int64()), st.lists(integers("int64"), max_size=3)),
]
ENCODERS: list[dict[str, Any]] = [
    {"encoder": "vocabulary"},
    {"encoder": "hashed", "num_buckets": 9},
    {"encoder": "quantiles", "num_buckets": 3},
    {"encoder": "standardized"},
    {"encoder": "calendar", "part": "hour"},
]


def job_of(encoder: dict[str, Any], dtype: str | None, *, is_list: bool, time: bool) -> Job:
    column: dict[str, Any] = {"name": "x", **encoder}
    column |= {"length": 2} if is_list else {}
    column |= {"dtype": dtype} if dtype else {}
    return parse_job(
        {
            "name": "two",
            "data": {"train": ["0.parquet", "1.parquet"], "valid": "2.parquet"},
            "features": {"label": "y", "columns": [column]} | ({"time": "x"} if time else {}),
            "model": {"type": "fm"},
        }
    )


def outcome(job: Job, root: Path) -> dict[str, bytes] | str:
    """Return the bytes of all files that preparing gives, or why it is refused."""
    try:
        path = prepare(job, root).path
    except (DataError, FeatureError) as error:
        return str(error)
    files = (each for each in sorted(path.rglob("*")) if each.is_file())
    return {str(each.relative_to(path)): each.read_bytes() for each in files}


@settings(
    max_examples=300, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(data=st.data())
def test_both_ways_give_the_same_bytes_or_the_same_refusal(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("ways")
    one, other = data.draw(st.sampled_from(VALUES)), data.draw(st.sampled_from(VALUES))
    # Files of one table, most often of one type.
    kinds = [one, data.draw(st.sampled_from([one, one, other])), one]
    is_list = any(
        hasattr(kind[0], "value_type") and not pa.types.is_dictionary(kind[0]) for kind in kinds[:1]
    )
    numbers = [each for each in ENCODERS if not is_list or each["encoder"] != "standardized"]
    encoder = data.draw(st.sampled_from(numbers))
    dtype = data.draw(st.sampled_from([None, None, "int64", "double", "string"]))
    job = job_of(encoder, dtype, is_list=is_list, time=data.draw(st.booleans()) and not is_list)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(
            "headwater.pipelines.preparing.staging.PART_ROWS", data.draw(st.sampled_from([3, 1000]))
        )
        for index, (arrow, values) in enumerate(kinds):
            drawn = data.draw(st.lists(st.none() | values, min_size=2, max_size=9))
            table = pa.table({"x": pa.array(drawn, arrow), "y": [i % 2 for i in range(len(drawn))]})
            pq.write_table(
                table,
                f"{index}.parquet",
                row_group_size=data.draw(st.sampled_from([2, 3, 100])),
                use_dictionary=data.draw(st.booleans()),
                data_page_version=data.draw(st.sampled_from(["1.0", "2.0"])),
                use_deprecated_int96_timestamps=data.draw(st.booleans()),
            )
        found = outcome(job, Path("a"))
        # By its module: `headwater.pipelines.preparing.prepare` is the function.
        patch.setattr(
            sys.modules["headwater.pipelines.preparing.prepare"], "in_place", lambda _: None
        )
        assert outcome(job, Path("b")) == found


def test_most_types_are_read_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # Integers that int64 may not hold, decimals as integers, and types that Polars lacks are staged.
    plain = [
        pa.int32(),
        pa.int64(),
        pa.float32(),
        pa.string(),
        pa.date32(),
        pa.timestamp("us", "UTC"),
    ]
    for arrow in plain:
        table = pa.table(
            {
                "x": pa.array(["1", "2"] * 9 if arrow == pa.string() else [1, 2] * 9, arrow),
                "y": [0, 1] * 9,
            }
        )
        for index in range(3):
            pq.write_table(table, f"{index}.parquet")
        encoder = {"encoder": "identity"} if arrow == pa.float32() else {"encoder": "vocabulary"}
        assert in_place(Source(job_of(encoder, None, is_list=False, time=False))) is not None, arrow


def int96(moments: list[int]) -> None:
    """Write times in ms since 1970 as INT96 to three files."""
    for index in range(3):
        table = pa.table(
            {"x": pa.array(moments, pa.timestamp("ms")), "y": [0, 1] * (len(moments) // 2)}
        )
        pq.write_table(table, f"{index}.parquet", use_deprecated_int96_timestamps=True)


@pytest.mark.parametrize("as_list", [False, True])
def test_times_of_96_bits_are_right_in_any_year(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, as_list: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    years = [datetime(year, 3, 1, 7, tzinfo=UTC) for year in (1, 1500, 1677, 2026, 2263, 9999)]
    moments = [int(each.timestamp()) * 1000 for each in years]
    if as_list:
        arrow = pa.list_(pa.timestamp("ms"))
        table = pa.table({"x": pa.array([[each] for each in moments], arrow), "y": [0, 1] * 3})
        for index in range(3):
            pq.write_table(table, f"{index}.parquet", use_deprecated_int96_timestamps=True)
    else:
        int96(moments)
    job = job_of({"encoder": "vocabulary"}, None, is_list=as_list, time=not as_list)
    assert in_place(Source(job)) is None
    prepared = prepare(job, Path("prepared"))
    lookup: Any = prepared.schema.columns[0].steps[0]
    assert set(lookup.keys) == set(moments)
    if not as_list:
        assert prepared.statistics.time_range_ms == (moments[0], moments[-1])


def test_files_with_and_without_a_zone_are_one_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    zones = [None, "UTC", "Europe/Rome"]
    for index, zone in enumerate(zones):
        times = pa.array([0, 3_600_000] * 4, pa.timestamp("ms", zone))
        pq.write_table(pa.table({"x": times, "y": [0, 1] * 4}), f"{index}.parquet")
    job = job_of({"encoder": "vocabulary"}, None, is_list=False, time=True)
    lookup: Any = prepare(job, Path("prepared")).schema.columns[0].steps[0]
    assert set(lookup.keys) == {0, 3_600_000}


@pytest.mark.parametrize("arrow", [pa.string(), pa.large_string(), pa.list_(pa.string())])
@pytest.mark.parametrize("staged", [False, True])
def test_text_that_is_not_utf_8_is_refused_by_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arrow: Any, *, staged: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    is_list = pa.types.is_list(arrow)
    good = pa.array([["a"] if is_list else "a"] * 6, arrow)
    raw = pa.array([b"a", b"b", b"\xff", b"d", b"e", b"f"])
    bad = raw.view(pa.string())
    bad = (
        pa.ListArray.from_arrays(pa.array(range(7), pa.int32()), bad)
        if is_list
        else bad.cast(arrow, safe=False)
    )
    for index, values in enumerate([good, bad, good]):
        pq.write_table(pa.table({"x": values, "y": [0, 1] * 3}), f"{index}.parquet")
    values = job_of({"encoder": "vocabulary"}, None, is_list=is_list, time=False).model_dump(
        mode="json"
    )
    if staged:
        values["data"]["filter"] = "y < 7"
    with pytest.raises(
        DataError, match=r"1\.parquet, row 3, column 'x': found text that is not UTF-8"
    ):
        prepare(parse_job(values), Path("prepared"))
