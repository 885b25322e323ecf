"""Bad data is refused by file, row and column, and leaves the folder as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headwater.feature_store.errors import DataError, JobError
from headwater.pipelines.job import Job
from headwater.pipelines.preparing.prepare import prepare

JobOf = Callable[..., Job]


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


CSV_TEXT = "user,city,price,ts,click\n" + "".join(
    f"{number},rome,{number}.5,{number},{number % 2}\n" for number in range(1, 41)
)


def edited(row: int, column: int, value: str) -> str:
    lines = CSV_TEXT.splitlines()
    fields = lines[row].split(",")
    fields[column] = value
    lines[row] = ",".join(fields)
    return "\n".join(lines) + "\n"


BAD_DATA: dict[str, tuple[str, dict[str, Any], str]] = {
    "word in a number": (
        edited(7, 2, "abc"),
        {},
        r"csv, row 7, column 'price': found 'abc', expected double",
    ),
    "word in an integer": (
        edited(7, 0, "abc"),
        {"columns": [{"name": "user", "encoder": "vocabulary", "dtype": "int64"}]},
        r"clicks\.csv, row 7, column 'user': found 'abc', expected int64",
    ),
    "fraction in an integer": (
        edited(9, 0, "1.5"),
        {"columns": [{"name": "user", "encoder": "vocabulary", "dtype": "int64"}]},
        r"clicks\.csv, row 9, column 'user': found '1\.5', expected int64",
    ),
    "label 2": (
        edited(11, 4, "2"),
        {},
        r"clicks\.csv, row 11, column 'click': found 2, a label is 0 or 1",
    ),
    "label yes": (
        edited(11, 4, "yes"),
        {},
        r"row 11, column 'click': found 'yes', a label is 0 or 1",
    ),
    "label half": (edited(1, 4, "0.5"), {}, r"row 1, column 'click': found 0\.5, a label"),
    "no label": (
        edited(12, 4, ""),
        {},
        r"row 12, column 'click': found no value, a label is 0 or 1",
    ),
    "no time": (
        edited(13, 3, ""),
        {},
        r"row 13, column 'ts': found no value; a split in order of time",
    ),
    "infinite time": (
        edited(13, 3, "inf"),
        {},
        r"clicks\.csv, row 13, column 'ts': found infinity, expected a time",
    ),
    "time is text": (
        edited(13, 3, "May"),
        {},
        r"row 13, column 'ts': found 'May', expected a time",
    ),
    "negative weight": (
        edited(14, 2, "-1"),
        {"weight": "price"},
        r"row 14, column 'price': found -1\.0, a weight",
    ),
    "group is a fraction": (
        CSV_TEXT,
        {"group": "price"},
        r"row 1, column 'price': found 1\.5, expected one integer or text",
    ),
    "absent feature": (
        CSV_TEXT,
        {"columns": [{"name": "usr", "encoder": "vocabulary"}]},
        r"clicks\.csv: feature 'usr': column 'usr' is not in the data\. Did you mean 'user'\?",
    ),
    "absent label": (
        CSV_TEXT,
        {"label": "clik"},
        r"features\.label: column 'clik' is not .*'click'\?",
    ),
    "header only": ("user,city,price,ts,click\n", {}, r"clicks\.csv: no rows"),
    "empty": ("", {}, r"clicks\.csv: the file is empty"),
    "all filtered": (CSV_TEXT, {"data": {"filter": "user > 99"}}, r"no rows that the filter keeps"),
    "one class in train": (
        "user,city,price,ts,click\n" + "1,x,1,1,0\n" * 40,
        {"data": {"split": {"by": "ratio"}}},
        r"all \d+ rows of train have the label 0; expected both",
    ),
    "one class in valid": (
        CSV_TEXT,
        {"data": {"split": {"by": "time", "column": "ts", "valid": 0.01, "test": 0.1}}},
        r"all 1 rows of valid have the label",
    ),
    "one time": (
        CSV_TEXT.replace("rome", "1"),
        {"data": {"split": {"by": "time", "column": "city"}}},
        r"no rows for train",
    ),
    "unknown split": (
        CSV_TEXT,
        {"data": {"split": {"by": "column", "column": "city"}}},
        r"row 1, column 'city': found 'rome', data\.split knows train 'train'; valid 'valid'; test",
    ),
    "absent file": (CSV_TEXT, {"data": {"source": "click.csv"}}, r"click\.csv: no such file"),
    "ragged": (CSV_TEXT + "1,2\n", {}, r"clicks\.csv, row 41: found 2 fields"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_is_refused_by_row_and_leaves_the_folder_as_before(
    case: str, job_of: JobOf
) -> None:
    text, changes, message = BAD_DATA[case]
    Path("clicks.csv").write_text(text)
    before = everything(Path())
    with pytest.raises(DataError, match=message):
        prepare(job_of(**changes))
    assert everything(Path()) == before
    assert [path.name for path in Path().iterdir()] == ["clicks.csv"]


def test_the_row_of_a_wrong_value_is_that_of_its_file(job_of: JobOf) -> None:
    Path("a.csv").write_text(CSV_TEXT)
    Path("b.csv").write_text(edited(7, 4, "3"))
    users = "user,age\n" + "".join(f"{number},1\n" for number in range(41))
    Path("users.csv").write_text(users)
    join = {"path": "users.csv", "on": "user", "how": "inner"}
    data = {"source": ["a.csv", "b.csv"], "filter": "user > 5", "join": [join]}
    with pytest.raises(DataError, match=r"^b\.csv, row 7, column 'click': found 3,"):
        prepare(job_of(data, [{"name": "age", "encoder": "identity"}]))


def test_a_feature_that_reads_the_label_is_refused(job_of: JobOf) -> None:
    Path("clicks.csv").write_text(CSV_TEXT)
    with pytest.raises(JobError, match="'click' reads the label"):
        prepare(job_of(columns=[{"name": "click", "encoder": "vocabulary"}]))


def test_an_encoder_that_cannot_take_its_column_is_refused(job_of: JobOf) -> None:
    Path("clicks.csv").write_text(CSV_TEXT)
    with pytest.raises(DataError, match=r"column 'price', feature 'price': .*found double"):
        prepare(job_of(columns=[{"name": "price", "encoder": "vocabulary"}]))
