"""Every type that files come in is read as docs/data.md says, or refused by file and column."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headwater.feature_store.errors import DataError
from headwater.feature_store.normalise import infer_dtype
from headwater.pipelines.data.files import find_files
from headwater.pipelines.data.table import Table
from headwater.pipelines.job import parse_job
from headwater.pipelines.preparing.prepare import prepare
from headwater.pipelines.preparing.staging import Source

PAGE = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")


def documented() -> dict[str, str]:
    """Return what becomes of each source type, by its name on the page."""
    section = PAGE.split("### Types\n")[1].split("\n## ")[0]
    found: dict[str, str] = {}
    for line in section.splitlines():
        if not line.startswith("| ") or line.startswith(("| in the data", "| ---")):
            continue
        sources, becomes = (cell.strip() for cell in line.strip("|").split(" | "))
        kind, _, values = sources.rpartition(": ")
        # Texts may hold a colon themselves: only CSV and NDJSON name a kind.
        if not kind.startswith(("CSV", "NDJSON")):
            kind, values = "", sources
        else:
            kind, values = sources.split(": ", 1)
        for name in re.findall(r"`([^`]+)`|(INT96|a column whose name is there twice)", values):
            found[f"{kind} {name[0] or name[1]}".strip()] = becomes
    return found


DOCUMENTED = documented()

ZONED = {"UTC": "UTC", "Europe/Rome": "Europe/Rome", "+05:30": "+05:30", "Z": "Z"}


def arrow(name: str) -> Any:
    """Return three values of an Arrow type as the page names it, the last of them null."""
    decimals = re.fullmatch(r"decimal(128|256)\((\d+), (\d+)\)", name)
    if decimals is not None:
        bits, digits, scale = map(int, decimals.groups())
        dtype = pa.decimal128(digits, scale) if bits == 128 else pa.decimal256(digits, scale)
        return pa.array([Decimal(7), Decimal(9), None], dtype)
    zoned = re.fullmatch(r"timestamp\[us, (.+)\]", name)
    if zoned is not None:
        return pa.array([0, 86_400_000_000, None], pa.timestamp("us", zoned.group(1)))
    inner = re.fullmatch(r"list<(.+)>", name)
    if inner is not None and inner.group(1) != "list":
        return pa.array(
            [[each] for each in arrow(inner.group(1))], pa.list_(arrow(inner.group(1)).type)
        )
    special: dict[str, Any] = {
        "null": pa.nulls(3),
        "bool": pa.array([True, False, None]),
        "date32": pa.array([1, 2, None], pa.date32()),
        "date64": pa.array([86_400_000, 0, None], pa.date64()),
        "time32": pa.array([1, 2, None], pa.time32("ms")),
        "time64": pa.array([1, 2, None], pa.time64("us")),
        "duration": pa.array([1, 2, None], pa.duration("us")),
        "binary": pa.array([b"a", b"b", None]),
        "fixed_size_binary": pa.array([b"ab", b"cd", None], pa.binary(2)),
        "struct": pa.array([{"a": 1}, {"a": 2}, None]),
        "map": pa.array([[("a", 1)], [], None], pa.map_(pa.string(), pa.int64())),
        "uuid": pa.array([b"0" * 16, b"1" * 16, None], pa.uuid()),
        "list<list>": pa.array([[[1]], [], None]),
        "large_list<int64>": pa.array([[1], [], None], pa.large_list(pa.int64())),
        "fixed_size_list<int64>[2]": pa.array([[1, 2], [3, 4], None], pa.list_(pa.int64(), 2)),
        "list_view<int64>": pa.array([[1], [], None], pa.list_view(pa.int64())),
        "dictionary<string>": pa.array(["a", "b", None]).dictionary_encode(),
        "dictionary<int64>": pa.array([1, 2, None]).dictionary_encode(),
    }
    if name in special:
        return special[name]
    if name in ("string", "large_string", "string_view"):
        return pa.array(["a", "b", None], getattr(pa, name)())
    unit = re.fullmatch(r"timestamp\[(\w+)\]", name)
    if unit is not None:
        return pa.array([0, 1, None], pa.timestamp(unit.group(1)))
    return pa.array([1, 2, None]).cast(getattr(pa, name)())


def write(folder: Path, name: str) -> str:
    """Write a column `x` of a type, beside a label, to a file of its format."""
    if name.startswith("CSV "):
        path = folder / "a.csv"
        path.write_text(f"y,x\n1,{name.removeprefix('CSV ')}\n0,\n1,\n0,\n")
    elif name.startswith("NDJSON "):
        path = folder / "a.ndjson"
        value = json.loads(name.removeprefix("NDJSON "))
        rows = [{"y": 1, "x": value}, *({"y": y} for y in (0, 1, 0))]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path = folder / "a.parquet"
        twice = name == "a column whose name is there twice"
        values = arrow("timestamp[ns]" if name == "INT96" else "int64" if twice else name)
        arrays = [pa.array([1, 0, 1]), values, *([values] if twice else [])]
        table = pa.Table.from_arrays(arrays, ["y", "x", *(["x"] if twice else [])])
        pq.write_table(table, path, use_deprecated_int96_timestamps=name == "INT96")
    return str(path)


def test_the_page_names_types_of_each_format() -> None:
    assert len(DOCUMENTED) > 55
    for start in ("CSV ", "NDJSON ", "decimal", "list"):
        assert any(name.startswith(start) for name in DOCUMENTED)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_a_type_becomes_what_the_page_says(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name)
    table = Table(find_files(path))
    if DOCUMENTED[name] == "refused":
        with pytest.raises(DataError, match=r"column 'x'"):
            infer_dtype("x", table.infer(["x"])["x"])
    else:
        raw = infer_dtype("x", table.infer(["x"])["x"])
        assert f"{raw.dtype}{', a list' if raw.is_list else ''}" == DOCUMENTED[name]
        assert table.read(["x"]).height >= 3
    # Unused, it is ignored.
    assert table.infer(["y"]) is not None
    assert table.read(["y"])["y"].to_list()[:3] == [1, 0, 1]


@pytest.mark.parametrize("name", [name for name in DOCUMENTED if DOCUMENTED[name] == "refused"])
def test_a_refused_type_is_named_where_a_feature_reads_it(tmp_path: Path, name: str) -> None:
    job = {
        "name": "j",
        "data": {"source": write(tmp_path, name), "split": {"by": "ratio"}},
        "features": {"label": "y", "columns": [{"name": "x", "encoder": "vocabulary"}]},
        "model": {"type": "fm"},
    }
    with pytest.raises(DataError, match=r"column 'x'"):
        Source(parse_job(job))


@pytest.mark.parametrize("name", [n for n in DOCUMENTED if not n.startswith(("CSV", "NDJSON"))])
def test_an_unused_column_of_any_type_is_ignored(tmp_path: Path, name: str) -> None:
    twice = name == "a column whose name is there twice"
    values = arrow("timestamp[ns]" if name == "INT96" else "int64" if twice else name)
    many = pa.concat_arrays([values] * 100)
    arrays = [pa.array([0, 1, 0] * 100), pa.array(range(300)), many, *([many] if twice else [])]
    table = pa.Table.from_arrays(arrays, ["y", "n", "x", *(["x"] if twice else [])])
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, use_deprecated_int96_timestamps=name == "INT96")
    job = {
        "name": "j",
        "data": {"source": str(path), "split": {"by": "ratio"}},
        "features": {"label": "y", "columns": [{"name": "n", "encoder": "identity"}]},
        "model": {"type": "fm"},
    }
    prepared = prepare(parse_job(job), tmp_path / "prepared")
    assert sum(split.rows for split in prepared.statistics.splits.values()) == 300
