"""Raw files are found, read and typed; what is wrong with them is told by file, row and column."""

from __future__ import annotations

import gzip
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headwater.feature_store.errors import DataError, JobError
from headwater.pipelines.data import delimited, files, formats, ndjson
from headwater.pipelines.data.files import find_files, fingerprint
from headwater.pipelines.data.rows import Rows, side_tables
from headwater.pipelines.data.table import Table
from headwater.pipelines.job import Data

ROW = "row"


def read(patterns: str | Sequence[str], columns: Sequence[str] | None = None) -> pl.DataFrame:
    table = Table(find_files(patterns))
    columns = table.names() if columns is None else columns
    table.infer(columns)
    return table.read(columns)


def write(path: Path, text: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


FRAME = pl.DataFrame({"user": [3, 1, 2], "city": ["x", None, "\u00e9"], "price": [1.5, None, 2.0]})
CSV = "user,city,price\n3,x,1.5\n1,,\n2,\u00e9,2.0\n"
NDJSON = '{"user": 3, "city": "x", "price": 1.5}\n{"user": 1}\n{"user": 2, "city": "\u00e9", "price": 2.0}\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", CSV.encode()),
        ("a.CSV", CSV.encode()),
        ("a.csv", b"\xef\xbb\xbf" + CSV.encode()),
        ("a.csv", CSV.replace("\n", "\r\n").encode()),
        ("a.csv.gz", gzip.compress(CSV.encode(), mtime=0)),
        ("a.tsv", CSV.replace(",", "\t").encode()),
        ("a.ndjson", NDJSON.encode()),
        ("a.jsonl", NDJSON.strip().encode()),
        ("a.ndjson.gz", gzip.compress(NDJSON.encode(), mtime=0)),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str, content: bytes) -> None:
    assert read(write(tmp_path / name, content)).equals(FRAME)


def test_parquet_types_become_one_of_a_kind(tmp_path: Path) -> None:
    frame = FRAME.with_columns(
        pl.col("user").cast(pl.UInt16),
        pl.col("city").cast(pl.Categorical),
        pl.col("price").cast(pl.Float32),
        pl.Series("tags", [[1], [], None], dtype=pl.List(pl.Int8)),
    )
    frame.write_parquet(tmp_path / "a.parquet")
    found = read(str(tmp_path / "a.parquet"))
    assert found.drop("tags").equals(FRAME)
    assert found.schema["tags"] == pl.List(pl.Int64)


def test_files_are_read_in_the_order_of_list_and_name(tmp_path: Path) -> None:
    for number in (10, 9, 1):
        write(tmp_path / f"day-{number:02d}.csv", f"x\n{number}\n")
    last = write(tmp_path / "first.csv", "x\n0\n")
    assert read([last, str(tmp_path / "day-*.csv")])["x"].to_list() == [0, 1, 9, 10]


def test_a_folder_stands_for_its_data_files_at_any_depth(tmp_path: Path) -> None:
    write(tmp_path / "b" / "1.csv", "x\n2\n")
    write(tmp_path / "a.csv", "x\n1\n")
    write(tmp_path / "_temporary" / "c.csv", "x\n9\n")
    write(tmp_path / ".hidden.csv", "x\n9\n")
    write(tmp_path / "_SUCCESS", "")
    write(tmp_path / "notes.txt", "no data")
    assert read(str(tmp_path))["x"].to_list() == [1, 2]


@pytest.mark.parametrize("suffix", ["csv", "parquet", "ndjson", "csv.gz"])
def test_fsspec_urls_are_read_as_paths_are(tmp_path: Path, suffix: str) -> None:
    local = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        FRAME.write_parquet(local)
    else:
        text = (NDJSON if suffix == "ndjson" else CSV).encode()
        local.write_bytes(gzip.compress(text) if suffix.endswith("gz") else text)
    memory = fsspec.filesystem("memory")
    memory.pipe_file(f"/bucket/{suffix}/a.{suffix}", local.read_bytes())
    memory.pipe_file(f"/bucket/{suffix}/b.{suffix}", local.read_bytes())
    both = pl.concat([FRAME, FRAME])
    assert read(f"memory://bucket/{suffix}/*.{suffix}").equals(both)
    assert read(f"file://{local}").equals(FRAME)
    files = find_files(f"memory://bucket/{suffix}/*.{suffix}")
    assert files[1].path == f"memory:///bucket/{suffix}/b.{suffix}"


def test_chunks_know_file_row_and_offset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "CHUNK_ROWS", 2)
    a = write(tmp_path / "a.csv", "x\n0\n1\n2\n")
    b = write(tmp_path / "b.ndjson", '{"x": 3}\n{"x": 4}\n{"x": 5}\n')
    pl.DataFrame({"x": [6, 7, 8]}).write_parquet(tmp_path / "c.parquet")
    table = Table(find_files([a, b, str(tmp_path / "c.parquet")]))
    table.infer(["x"])
    for _ in range(2):
        chunks = list(table.chunks(["x"]))
        assert [(chunk.file, chunk.first_row, chunk.offset) for chunk in chunks] == [
            (0, 1, 0), (0, 3, 2), (1, 1, 3), (1, 3, 5), (2, 1, 6), (2, 3, 8),
        ]  # fmt: skip
        assert [row for chunk in chunks for row in chunk.frame["x"]] == list(range(9))


def test_small_blocks_of_text_give_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delimited, "BLOCK_BYTES", 64)
    monkeypatch.setattr(ndjson, "BLOCK_BYTES", 50)
    rows = [(number, f"line\n{number}, é" * (number % 3)) for number in range(200)]
    frame = pl.DataFrame(rows, schema={"n": pl.Int64, "text": pl.String}, orient="row")
    frame = frame.with_columns(pl.when(pl.col("text") != "").then("text"))
    frame.write_csv(tmp_path / "a.csv")
    frame.write_ndjson(tmp_path / "a.ndjson")
    assert read(str(tmp_path / "a.csv")).equals(frame)
    assert read(str(tmp_path / "a.ndjson")).equals(frame)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (["1", "-2", "", "0"], pl.Int64()),
        (["1", "2.5", "1e3", "nan"], pl.Float64()),
        (["1", "00123"], pl.String()),
        (["0.5", "-0.25", "0"], pl.Float64()),
        (["9223372036854775807", "-9223372036854775808"], pl.Int64()),
        (["1", "9223372036854775808"], pl.String()),
        (["True", "false", "TRUE"], pl.Boolean()),
        (["1"] * 300 + ["V5K"], pl.String()),
        (["68fd1e64", "05db9164"], pl.String()),
        (["2024-05-01", "2024-05-01 10:20", "2024-05-01T10:20:30.5Z"], pl.Datetime("us")),
        (["2024-05-01", "2024-13-01"], pl.String()),
        (["", ""], pl.Null()),
    ],
)
def test_the_whole_column_of_text_decides_its_type(
    tmp_path: Path, values: list[str], dtype: pl.DataType
) -> None:
    path = write(tmp_path / "a.csv", "n,x\n" + "".join(f"1,{value}\n" for value in values))
    assert Table(find_files(path)).infer(["x"])["x"] == dtype


def test_times_in_text_are_utc(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.csv", "t,u\n2024-05-01,1\n2024-05-01T10:20Z,1\n2024-05-01 10:20:30.25,1\n"
    )
    epoch = read(path)["t"].dt.epoch("ms").to_list()
    assert epoch == [1714521600000, 1714558800000, 1714558830250]


def test_text_columns_stay_text_where_asked(tmp_path: Path) -> None:
    table = Table(find_files(write(tmp_path / "a.csv", "zip,n\n00123,1\n94110,2\n")))
    assert table.infer(["zip", "n"], dtypes={"zip": "string"}) == {
        "zip": pl.String(),
        "n": pl.Int64(),
    }


def test_files_with_numbers_of_two_kinds_agree_on_the_wider(tmp_path: Path) -> None:
    pl.DataFrame({"x": [1]}).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({"x": [0.5]}).write_parquet(tmp_path / "b.parquet")
    c = write(tmp_path / "c.csv", "x\n7\n")
    assert read([str(tmp_path / "*.parquet"), c])["x"].to_list() == [1.0, 0.5, 7.0]


@pytest.mark.parametrize("other", [[7, 8], [0.5, 2.0]])
def test_bools_of_a_csv_are_numbers_beside_numbers_of_parquet(
    tmp_path: Path, other: list[float]
) -> None:
    pl.DataFrame({"x": other}).write_parquet(tmp_path / "a.parquet")
    b = write(tmp_path / "b.csv", 'x\ntrue\nFalse\n""\n')
    frame = read([str(tmp_path / "a.parquet"), b])
    assert frame["x"].to_list() == [*other, 1, 0, None]


def test_equal_content_has_an_equal_fingerprint_until_it_changes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "x\n1\n")
    first = fingerprint(find_files(path)[0])
    write(tmp_path / "a.csv", "x\n1\n")
    assert fingerprint(find_files(path)[0]) == first
    write(tmp_path / "a.csv", "x\n2\n")
    assert fingerprint(find_files(path)[0]) != first


@pytest.mark.parametrize("place", ["folder", "memory"])
def test_large_file_is_known_by_size_and_time_of_change(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "HASHED_BYTES", 3)
    path = str(tmp_path / "a.csv") if place == "folder" else "memory://large/a.csv"
    fs, location = fsspec.core.url_to_fs(path)
    fs.pipe_file(location, b"x\n1\n")
    (first,) = find_files(path)
    before = fingerprint(first)
    assert "sha256" not in before
    assert fingerprint(first) == before
    time.sleep(0.01)
    fs.pipe_file(location, b"x\n2\n")
    assert fingerprint(first) != before
    assert fingerprint(first)["size"] == before["size"]


def test_no_path_at_all_is_refused() -> None:
    with pytest.raises(DataError, match="no data files are named"):
        find_files([])


BAD_FILES: dict[str, tuple[str, bytes, str]] = {
    "ragged, too few": (
        "a.csv",
        b"x,y\n1,2\n3\n",
        r"a\.csv, row 2: found 1 field between ',', the header names 2",
    ),
    "ragged, too many": ("a.csv", b"x,y\n1,2\n3,4\n5,6,7\n", r"a\.csv, row 3: found 3 fields"),
    "ragged tsv": ("a.tsv", b"x\ty\n1\n", r"a\.tsv, row 1: found 1 field between '\\t'"),
    "empty": ("a.csv", b"", r"a\.csv: the file is empty"),
    "header only": ("a.csv", b"x,y\n", r"a\.csv: no rows"),
    "header twice": ("a.csv", b"x,x\n1,2\n", r"a\.csv: the header names 'x' twice"),
    "not utf-8": (
        "a.csv",
        b"x,y\n1,2\n1,\xff\n",
        r"a\.csv, row 2: found text that is not utf-8\. Set `encoding`",
    ),
    "cut gzip": (
        "a.csv.gz",
        gzip.compress(b"x\n" + b"1\n" * 9999, mtime=0)[:-20],
        r"a\.csv\.gz: cannot be read",
    ),
    "no gzip": ("a.csv.gz", b"x\n1\n", r"a\.csv\.gz: cannot be read"),
    "no parquet": ("a.parquet", b"x\n1\n", r"a\.parquet: not a readable Parquet file"),
    "empty parquet": ("a.parquet", b"", r"a\.parquet: not a readable Parquet file"),
    "cut json": ("a.ndjson", b'{"x": 1}\n{"x": \n', r"a\.ndjson, row 2: not JSON"),
    "no object": ("a.ndjson", b'{"x": 1}\n[1]\n', r"a\.ndjson, row 2: expected a JSON object"),
    "mixed kinds": (
        "a.ndjson",
        b'{"x": 1}\n{"x": 2}\n{"x": true}\n',
        r"row 3: column 'x': found True",
    ),
    "no rows": ("a.ndjson", b"\n\n", r"a\.ndjson: no rows"),
    "unknown kind": ("a.xls", b"", r"a\.xls: expected a name that ends in \.parquet"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_an_unreadable_file_is_refused_by_file_and_row(tmp_path: Path, case: str) -> None:
    name, content, message = BAD_FILES[case]
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / name, content))


def test_the_row_of_a_ragged_line_counts_over_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delimited, "BLOCK_BYTES", 64)
    path = write(tmp_path / "a.csv", "x,y\n" + "1,2\n" * 500 + "3\n" + "1,2\n" * 500)
    with pytest.raises(DataError, match=r"row 501: found 1 field "):
        read(path)


def test_a_flipped_bit_in_a_parquet_page_with_checksum_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": range(50_000)}), path, write_page_checksum=True)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.parquet: not a readable Parquet file"):
        read(str(path))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("gone.csv", r"gone\.csv: no such file"),
        ("gone-*.csv", r"gone-\*\.csv: no file matches"),
        ("empty", "the folder holds no file of"),
    ],
)
def test_a_path_without_a_file_is_refused(tmp_path: Path, pattern: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        find_files(str(tmp_path / pattern))


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(DataError, match=r"nosuch://a\.csv"):
        find_files("nosuch://a.csv")


def test_files_that_disagree_on_a_type_are_both_named(tmp_path: Path) -> None:
    pl.DataFrame({"x": [1]}).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({"x": ["a"]}).write_parquet(tmp_path / "b.parquet")
    with pytest.raises(
        DataError, match=r"b\.parquet: column 'x' is String, but Int64 in .*a\.parquet"
    ):
        read(str(tmp_path / "*.parquet"))


# Rows: joins, derived columns, filters.


def rows(data: Mapping[str, Any], *wanted: str) -> pl.DataFrame:
    """Return the wanted columns of all rows, and the number of each."""
    declared = Data.model_validate({"split": {"by": "ratio"}, **data})
    assert declared.source is not None
    table = Table(find_files(declared.source, declared.csv))
    found = Rows(
        table, side_tables(declared), declared, dict.fromkeys(wanted, "(a test)"), dtypes={}
    )
    assert found.number == ROW
    return pl.concat([frame for _, frame in found.chunks()])


@pytest.fixture
def ratings(tmp_path: Path) -> str:
    return write(tmp_path / "ratings.csv", "user,item,rating\n1,10,5\n2,11,3\n1,11,4\n3,12,1\n")


def test_side_tables_are_joined_and_rows_keep_their_numbers(tmp_path: Path, ratings: str) -> None:
    users = write(tmp_path / "users.csv", "user,age,town\n1,30,7\n2,40,8\n")
    towns = write(tmp_path / "towns.ndjson", '{"town": 7, "name": "A"}\n{"town": 8, "name": "B"}\n')
    joins = [{"path": users, "on": "user", "how": "inner"}, {"path": towns, "on": ["town"]}]
    found = rows({"source": ratings, "join": joins}, "item", "age", "name")
    assert found.to_dict(as_series=False) == {
        "item": [10, 11, 11],
        "age": [30, 40, 30],
        "name": ["A", "B", "A"],
        ROW: [0, 1, 2],
    }
    joins[0]["how"] = "left"
    assert rows({"source": ratings, "join": joins}, "age")["age"].to_list() == [30, 40, 30, None]


def test_columns_are_derived_in_order_and_rows_filtered(ratings: str) -> None:
    derive = {"label": "rating >= 4", "both": "label AND user IN (1, 2)", "rating": "rating * 2"}
    found = rows(
        {"source": ratings, "derive": derive, "filter": "rating > 2"}, "label", "both", "rating"
    )
    assert found.to_dict(as_series=False) == {
        "label": [True, False, True],
        "both": [True, False, True],
        "rating": [10, 6, 8],
        ROW: [0, 1, 2],
    }


def test_only_needed_columns_are_read(tmp_path: Path) -> None:
    pl.DataFrame({"x": [1], "weird": [{"a": 1}]}).write_parquet(tmp_path / "a.parquet")
    found = rows({"source": str(tmp_path / "a.parquet"), "derive": {"y": "x + 1"}}, "y")
    assert found.columns == ["y", ROW]


BAD_DERIVED = {
    "no expression": (
        "rating >=",
        JobError,
        r"data\.derive\.y: 'rating >=' is no Polars SQL expression",
    ),
    "unknown function": ("foo(rating)", JobError, r"data\.derive\.y: .*unsupported function 'foo'"),
    "types": ("rating > 'x'", JobError, r"data\.derive\.y: .*cannot compare.*rating is Int64"),
    "aggregate": ("AVG(rating)", JobError, r"data\.derive\.y: .*needs more than one row"),
    "hidden aggregate": ("rating - AVG(rating)", JobError, "needs more than one row"),
    "count": ("rating / COUNT(*)", JobError, "needs more than one row"),
    "quoted aggregate": ('rating - "max" (rating)', JobError, "needs more than one row"),
    "subquery": ("rating > (SELECT 1)", JobError, "needs more than one row"),
    "window": ("SUM(rating) OVER (PARTITION BY item)", JobError, "needs more than one row"),
    "absent column": (
        "ratng >= 4",
        DataError,
        r"data\.derive\.y: column 'ratng' .* Did you mean 'rating'",
    ),
}


@pytest.mark.parametrize("case", BAD_DERIVED)
def test_a_bad_expression_is_refused_by_its_key(ratings: str, case: str) -> None:
    text, error, message = BAD_DERIVED[case]
    with pytest.raises(error, match=message):
        rows({"source": ratings, "derive": {"y": text}}, "y")
    with pytest.raises(error, match=message.replace(r"derive\.y", "filter")):
        rows({"source": ratings, "filter": text}, "rating")


def test_words_of_sql_and_names_of_functions_are_columns_too(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "user,time,max,call,overall,text\n1,2,3,4,5,it's max(x)\n")
    derive = {
        "y": "call + user + time + max + overall /* it's a comment */",
        "z": "text = 'it''s max(x)' AND \"overall\" = 5",
    }
    assert rows({"source": path, "derive": derive}, "y", "z").row(0) == (15, True, 0)


def test_a_filter_that_is_no_condition_is_refused(ratings: str) -> None:
    with pytest.raises(JobError, match=r"data\.filter: 'rating \+ 1' gives Int64"):
        rows({"source": ratings, "filter": "rating + 1"}, "rating")


def test_an_absent_column_is_refused_with_the_nearest_name(ratings: str) -> None:
    with pytest.raises(
        DataError, match=r"ratings\.csv: column 'itm' .*user, item, rating\. Did you mean 'item'\?"
    ):
        rows({"source": ratings}, "itm")


def test_a_column_absent_from_one_of_the_files_names_the_file(tmp_path: Path) -> None:
    pl.DataFrame({"x": [1], "y": [1]}).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({"x": [1]}).write_parquet(tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet: column 'y' is not in the data"):
        rows({"source": str(tmp_path / "*.parquet")}, "y")


@pytest.mark.parametrize(
    ("side", "join", "message"),
    [
        (
            "user,age\na,1\n",
            {},
            r"side\.csv: join key 'user' is String, but Int64 in .*ratings\.csv, and 'a' cannot",
        ),
        ("user,age\n1,1\n1,2\n", {}, r"side\.csv: join key user is not unique: 2 rows .* user = 1"),
        ("usr,age\n1,1\n", {}, r"side\.csv: column 'user' is not in the data.*'usr'\?"),
        ("user,age\n1,1\n", {"columns": ["agee"]}, r"side\.csv: column 'agee' .*data\.join\[0\]"),
        ("user,age,rating\n1,1,1\n", {}, r"side\.csv: column 'rating' is also in .*ratings\.csv"),
    ],
)
def test_a_side_table_that_does_not_fit_is_refused(
    tmp_path: Path, ratings: str, side: str, join: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "side.csv", side)
    with pytest.raises(DataError, match=message):
        rows({"source": ratings, "join": [{"path": path, "on": "user", **join}]}, "age", "rating")


def test_join_keys_written_as_text_meet_the_same_keys_as_integers(
    tmp_path: Path, ratings: str
) -> None:
    side = str(tmp_path / "users.parquet")
    pl.DataFrame({"user": ["1", "2"], "age": [33, 44]}).write_parquet(side)
    joined = rows({"source": ratings, "join": [{"path": side, "on": "user"}]}, "user", "age")
    ages = dict(joined.select("user", "age").iter_rows())
    assert ages[1] == 33
    assert ages[2] == 44


@pytest.mark.parametrize("user", [[1, 2], ["1", "2"]])
def test_whole_join_keys_written_as_floats_meet_integers_and_text(
    tmp_path: Path, user: list[int] | list[str]
) -> None:
    main, side = str(tmp_path / "main.parquet"), str(tmp_path / "users.parquet")
    pl.DataFrame({"user": user}).write_parquet(main)
    keys = [1.0, 2.0, float("nan"), float("nan")]
    pl.DataFrame({"user": keys, "age": [33, 44, 55, 66]}).write_parquet(side)
    data = {"source": main, "join": [{"path": side, "on": "user"}]}
    assert rows(data, "user", "age")["age"].to_list() == [33, 44]


@pytest.mark.parametrize("user", [[1, 2], ["1", "2"]])
@pytest.mark.parametrize("wrong", [1.5, float("inf")])
def test_a_float_join_key_that_is_no_integer_is_refused(
    tmp_path: Path, user: list[int] | list[str], wrong: float
) -> None:
    main, side = str(tmp_path / "main.parquet"), str(tmp_path / "users.parquet")
    pl.DataFrame({"user": user}).write_parquet(main)
    pl.DataFrame({"user": [2.0, wrong], "age": [33, 44]}).write_parquet(side)
    data = {"source": main, "join": [{"path": side, "on": "user"}]}
    with pytest.raises(DataError, match=rf"join key 'user' is Float64, but .*, and {wrong} cannot"):
        rows(data, "user", "age")


def test_a_join_key_that_the_rows_lack_is_refused(tmp_path: Path, ratings: str) -> None:
    path = write(tmp_path / "side.csv", "shop,age\n1,1\n")
    with pytest.raises(DataError, match=r"ratings\.csv: column 'shop' .*data\.join\[0\]"):
        rows({"source": ratings, "join": [{"path": path, "on": "shop"}]}, "age")
