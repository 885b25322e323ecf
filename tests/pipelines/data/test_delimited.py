"""CSV and TSV as people write them: read right, or refused by row."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.feature_store.errors import DataError, JobError
from headwater.pipelines.data import delimited
from headwater.pipelines.data.files import find_files
from headwater.pipelines.data.table import Table
from headwater.pipelines.job import load_job, parse_job
from headwater.pipelines.job_csv import CsvFormat
from headwater.pipelines.preparing.prepare import prepare

FILMS = "id\ttitle\tyear\n" + "".join(f"{i}\tfilm {i}\t19{i:02}\n" for i in range(100))


def read(path: Path, **settings: Any) -> pl.DataFrame:
    """Return all columns of a file as text."""
    table = Table(find_files(str(path), CsvFormat.model_validate(settings)))
    names = table.names()
    table.infer(names, dtypes=dict.fromkeys(names, "string"))
    return table.read(names)


def write(folder: Path, content: str | bytes, name: str = "a.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("block_bytes", [900, 4 << 20])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('40\t"The film 40\t1940', r"row 41: text after a closing quote: '\"film 80\" II"),
        ('40\t"The" film 40\t1940', r"row 41: text after a closing quote: '\" film 40"),
        ('40\t"film 40"2\t1940', r"row 41: text after a closing quote: '\"2"),
    ],
)
def test_text_after_a_closing_quote_is_refused_by_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int, line: str, message: str
) -> None:
    monkeypatch.setattr(delimited, "BLOCK_BYTES", block_bytes)
    lines = FILMS.splitlines()
    lines[41] = line
    lines[81] = '80\t"film 80" II\t1980' if "The film" in line else '80\t"film 80"\t1980'
    path = write(tmp_path, "\n".join(lines), "films.tsv")
    with pytest.raises(DataError, match=rf"films\.tsv, {message}"):
        read(path)
    plain = read(path, quote="")
    assert plain.height == 100
    assert plain["title"][40] == line.split("\t")[1]


@pytest.mark.parametrize("block_bytes", [900, 4 << 20])
def test_a_quote_that_never_closes_is_refused_by_the_row_where_it_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr(delimited, "BLOCK_BYTES", block_bytes)
    path = write(tmp_path, FILMS.replace("film 70", '"film 70'), "films.tsv")
    with pytest.raises(DataError, match=r"films\.tsv, row 71: a quoted field is never closed"):
        read(path)


def test_a_quote_inside_plain_text_is_text(tmp_path: Path) -> None:
    path = write(tmp_path, 'size,text\n5" pipe,"a ""b"" c"\n6" pipe,d\n')
    assert read(path).rows() == [('5" pipe', 'a "b" c'), ('6" pipe', "d")]


FIELDS = st.lists(st.sampled_from([*'a",;\t\n \u00e9', "\r\n"]), max_size=5).map("".join)


@given(
    rows=st.lists(st.tuples(FIELDS, FIELDS), min_size=1, max_size=12),
    block_bytes=st.integers(24, 80),
    delimiter=st.sampled_from([",", ";", "\t"]),
    line_end=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_what_was_written_is_read_whatever_the_blocks(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str]],
    block_bytes: int,
    delimiter: str,
    line_end: str,
    quoting: Any,
) -> None:
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter, lineterminator=line_end, quoting=quoting)
    writer.writerow(["first", "second"])
    writer.writerows([("x" + first, second) for first, second in rows])
    path = write(tmp_path_factory.mktemp("csv"), file.getvalue())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited, "BLOCK_BYTES", block_bytes)
        found = read(path, delimiter=delimiter)
    assert found.rows() == [("x" + first, second or None) for first, second in rows]


def test_a_quoted_field_that_is_larger_than_a_block_is_refused_by_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delimited, "BLOCK_BYTES", 64)
    path = write(tmp_path, 'x,y\n1,2\n3,"' + "4\n" * 200 + '"\n')
    with pytest.raises(DataError, match=r"row 2: a quoted field is not closed within 64 bytes"):
        read(path)


def test_a_quoted_line_end_between_two_blocks_keeps_both_characters(tmp_path: Path) -> None:
    head = 'text,n\n"'
    text = "x" * (delimited.BLOCK_BYTES - len(head) - 1) + "\r\ny"
    path = write(tmp_path, f'{head}{text}",1\nz,2\n')
    assert read(path)["text"].to_list() == [text, "z"]


def test_a_file_without_header_gets_its_names_from_the_job(tmp_path: Path) -> None:
    path = write(tmp_path, "1\t5\t68fd1e64\n0\t\t\\N\n", "train.tsv")
    found = read(path, columns=["clicked", "i1", "c1"], quote="", nulls=["\\N"])
    assert found.rows() == [("1", "5", "68fd1e64"), ("0", None, None)]
    with pytest.raises(
        DataError, match=r"train\.tsv, row 2: found 3 fields .*data\.csv\.columns has 2"
    ):
        read(write(tmp_path, "1\t5\n0\t1\t2\n", "train.tsv"), columns=["clicked", "i1"])


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le", "cp1252", "utf-8-sig"])
@pytest.mark.parametrize("block_bytes", [120, 4 << 20])
def test_another_encoding_is_read_as_the_job_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, block_bytes: int
) -> None:
    monkeypatch.setattr(delimited, "BLOCK_BYTES", block_bytes)
    text = "f\u00e9,b\n" + "\u00fc" * 40 + ',"1"\nx,2\n'
    found = read(write(tmp_path, text.encode(encoding)), encoding=encoding)
    assert found.columns == ["f\u00e9", "b"]
    assert found.rows() == [("\u00fc" * 40, "1"), ("x", "2")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("f\u00e9,b\n1,2\n".encode("latin-1"), r"a\.csv: the header is not UTF-8: .*latin-1"),
        ("a,b\n1,2\n".encode("utf-16"), r"a\.csv: not UTF-8, but .*UTF-16: set csv = .*utf-16"),
        ("a,b\n1,2\n".encode("utf-16-be"), r"a\.csv: not UTF-8, but .*UTF-16"),
        (b"a,b\n1,2\n1,\xff\n", r"a\.csv, row 2: found text that is not utf-8"),
        (
            b"user;item;click\n1;2;0\n",
            r"a\.csv: the header is one name, 'user;item;click', as no ','",
        ),
        (b"user;item;click\n1;2,5;0\n", r"Where ';' divides the fields, set csv = \{ delimiter"),
    ],
)
def test_a_file_that_is_written_otherwise_is_refused_with_the_switch(
    tmp_path: Path, content: bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read(write(tmp_path, content))


def test_a_declared_encoding_that_is_not_the_file_s_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.csv: not ascii, as csv\.encoding says"):
        read(write(tmp_path, "a,b\n1,\u00e9\n"), encoding="ascii")


def test_gzip_is_known_by_its_content_and_not_by_the_name(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv.gz"):
        assert read(write(tmp_path, gzip.compress(b"x,y\n1,2\n"), name)).rows() == [("1", "2")]
    path = write(tmp_path, gzip.compress(b'{"x": 1}\n'), "a.ndjson")
    assert read(path).rows() == [(1,)]


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    assert read(write(tmp_path, b'\xef\xbb\xbf"x",y\n1,2\n')).columns == ["x", "y"]
    path = write(tmp_path, b'\xef\xbb\xbf{"x": 1}\n', "a.ndjson")
    assert read(path).rows() == [(1,)]
    job = tmp_path / "job.toml"
    text = '\ufeffname = "j"\n[data]\ntrain = "a.csv"\nvalid = "b.csv"\n[features]\nlabel = "y"\n'
    text += 'columns = [{ name = "x", encoder = "identity" }]\n[model]\ntype = "fm"\n'
    job.write_text(text, encoding="utf-8")
    assert load_job(job).name == "j"


def test_ndjson_in_utf_16_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, '{"x": 1}\n'.encode("utf-16"), "a.ndjson")
    with pytest.raises(DataError, match=r"a\.ndjson, row 1: not JSON: .*UTF-16"):
        read(path)


def test_ndjson_with_an_integer_beyond_all_types_is_refused_by_row(tmp_path: Path) -> None:
    path = write(tmp_path, '{"x": 1}\n{"x": 1' + "0" * 50 + "}\n", "a.ndjson")
    with pytest.raises(
        DataError, match=r"a\.ndjson, row 2: column 'x': found 10+, an integer of more"
    ):
        read(path)


@pytest.mark.parametrize(
    ("csv_", "message"),
    [
        ({"delimiter": "ab"}, r"csv\.delimiter: expected one ASCII character, found 'ab'"),
        ({"delimiter": "\u00a7"}, r"csv\.delimiter: expected one ASCII character"),
        ({"quote": ";", "delimiter": ";"}, "delimiter and quote are both ';'"),
        ({"encoding": "utf-7000"}, r"csv\.encoding: no encoding of text that Python knows"),
        ({"columns": ["a", "b", "a"]}, "columns: a named twice"),
        ({"separator": ";"}, r"csv\.separator: unknown key"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_key(csv_: dict[str, Any], message: str) -> None:
    values = {
        "name": "j",
        "data": {"train": "a.csv", "valid": "b.csv", "csv": csv_},
        "features": {"label": "y", "columns": [{"name": "x", "encoder": "identity"}]},
        "model": {"type": "fm"},
    }
    with pytest.raises(JobError, match=message):
        parse_job(values)


def test_a_job_reads_rows_and_side_tables_each_in_their_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "".join(f"{i % 2};{i % 5}\n" for i in range(200)), "clicks.csv")
    write(tmp_path, "user|age\n" + "".join(f"{i}|{i + 20}\n" for i in range(5)), "users.csv")
    join = {"path": "users.csv", "on": "user", "csv": {"delimiter": "|"}}
    values = {
        "name": "j",
        "data": {
            "source": "clicks.csv",
            "split": {"by": "ratio"},
            "csv": {"delimiter": ";", "columns": ["click", "user"]},
            "join": [join],
        },
        "features": {"label": "click", "columns": [{"name": "age", "encoder": "vocabulary"}]},
        "model": {"type": "fm"},
    }
    prepared = prepare(parse_job(values))
    assert prepared.schema.columns[0].cardinality == 7
    assert json.loads((prepared.path / "prepared.json").read_text())["created"]["data"]["csv"]
