"""The values of a split by column: met as values, whatever the column's type and file, or refused by key."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from headwater.feature_store.errors import DataError, JobError
from headwater.pipelines.checking.validation import check_job
from headwater.pipelines.job import parse_job
from headwater.pipelines.preparing.prepare import prepare

ROWS = 40


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def job_of(values: Any, path: str = "rows.parquet", **split: Any) -> Any:
    """Return a job over rows whose column `part` has these values, row after row."""
    column = pl.Series("part", values)
    number = pl.int_range(len(column), eager=True)
    frame = pl.DataFrame({"part": column, "x": number % 5, "click": number // 4 % 2})
    if path.endswith(".csv"):
        frame.write_csv(path)
    else:
        frame.write_parquet(path)
    return parse_job(
        {
            "name": "toy",
            "data": {"source": path, "split": {"by": "column", "column": "part", **split}},
            "features": {"label": "click", "columns": [{"name": "x", "encoder": "vocabulary"}]},
            "model": {"type": "dnn"},
        }
    )


def counts(*job: Any, **split: Any) -> dict[str, int]:
    result = check_job(job_of(*job, **split))
    assert result.problems == []
    return {row["split"]: row["rows"] for row in result.splits}


def problem(values: Any, **split: Any) -> str:
    (found,) = check_job(job_of(values, **split)).problems
    return found


NUMBERS = [i % 4 for i in range(ROWS)]
DAYS = [date(2026, 1 + i % 4, 1 + i % 28) for i in range(ROWS)]
TIMES = [datetime(2026, 1 + i % 4, 1 + i % 28, i % 24, 30, tzinfo=UTC) for i in range(ROWS)]
MONTHS = {"train": ["2026-01", "2026-02"], "valid": "2026-03", "test": "2026-04"}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "integers": (NUMBERS, {"train": [0, "1"], "valid": "2", "test": 3}),
    "floats": ([n / 2 for n in NUMBERS], {"train": [0, "0.5"], "valid": 1, "test": "1.50"}),
    "text that says numbers": (
        [f"n{n}" if n == 0 else str(n) for n in NUMBERS],
        {"train": ["n0", 1], "valid": "2", "test": 3},
    ),
    "text that says months": ([f"2026-0{n + 1}" for n in NUMBERS], MONTHS),
    "dates": (DAYS, MONTHS),
    "times": ([time.replace(tzinfo=None) for time in TIMES], MONTHS),
}


@pytest.mark.parametrize("path", ["rows.parquet", "rows.csv"])
@pytest.mark.parametrize("case", CASES)
def test_value_meets_the_column_however_it_is_written(case: str, path: str) -> None:
    values, split = CASES[case]
    assert counts(values, path, **split) == {"train": 20, "valid": 10, "test": 10}


@pytest.mark.parametrize("path", ["rows.parquet", "rows.csv"])
@pytest.mark.parametrize(("yes", "no"), [(True, False), ("true", "False"), (1, 0)])
def test_bools_are_met_by_themselves_their_text_or_their_number(
    path: str, yes: Any, no: Any
) -> None:
    values = [i % 4 != 0 for i in range(ROWS)]
    assert counts(values, path, train=yes, valid=no, test=[]) == {"train": 30, "valid": 10}
    numbers = [int(value) for value in values]
    assert counts(numbers, path, train=yes, valid=no, test=[]) == {"train": 30, "valid": 10}


def test_a_day_stands_for_all_its_times_and_a_time_for_itself() -> None:
    first = datetime(2026, 3, 4, 22, tzinfo=UTC)
    hours = pl.Series([first + timedelta(hours=i // 2) for i in range(ROWS)])
    split: dict[str, Any] = {
        "train": ["2026-03-04", "2026-03-05T00:00:00", "2026-03-05T02:00:00+01:00"],
        "valid": [f"2026-03-05T{hour:02}:00:00Z" for hour in range(2, 18)],
        "test": [],
    }
    assert counts(hours, **split) == {"train": 8, "valid": 32}
    # By their zone, and not by the clock that it shows.
    assert counts(hours.dt.convert_time_zone("Asia/Tokyo"), **split) == {"train": 8, "valid": 32}


def test_dates_without_quotes_are_dates() -> None:
    days = [date(2026, 3, 1 + i % 2) for i in range(ROWS)]
    split = {"train": date(2026, 3, 1), "valid": [date(2026, 3, 2)], "test": []}
    assert counts(days, **split) == {"train": 20, "valid": 20}
    assert counts([str(day) for day in days], **split) == {"train": 20, "valid": 20}


def test_ids_of_64_bits_are_not_rounded() -> None:
    large = 2**62
    values = [large + i % 2 for i in range(ROWS)]
    assert counts(values, train=large, valid=str(large + 1), test=[]) == {"train": 20, "valid": 20}
    unsigned = pl.Series([2**63 + i % 2 for i in range(ROWS)], dtype=pl.UInt64)
    split = {"train": str(2**63), "valid": str(2**63 + 1), "test": []}
    assert counts(unsigned, **split) == {"train": 20, "valid": 20}


def test_no_test_part_leaves_train_and_valid() -> None:
    prepared = prepare(job_of([i % 2 for i in range(ROWS)], train=0, valid=1, test=[]))
    assert prepared.splits == ("train", "valid")


def test_test_at_its_default_is_no_value_that_a_column_of_numbers_must_have() -> None:
    values = [i % 2 for i in range(ROWS)]
    assert counts(values, train=0, valid=1) == {"train": 20, "valid": 20, "test": 0}


@pytest.mark.parametrize(
    ("values", "split", "says"),
    [
        (NUMBERS, {"train": ["a"], "valid": 1}, "train: found 'a', .* whole numbers"),
        (NUMBERS, {"train": [0, 0.5], "valid": 1}, r"train: found 0\.5, .*\(Int64\)"),
        (NUMBERS, {"train": 0}, "valid: found 'valid', which is no value of column 'part'"),
        (NUMBERS, {"train": 0, "valid": 1, "test": ["test", 2]}, "test: found 'test'"),
        (DAYS, {"train": 2026, "valid": "2026-03"}, "train: found 2026, .* months, days or times"),
        (DAYS, {"train": "2026-13", "valid": "2026-03"}, "train: found '2026-13'"),
        ([True, False] * 20, {"train": True, "valid": "no"}, "valid: found 'no', .* true or false"),
        ([[1]] * ROWS, {"train": 1, "valid": 2}, "column: found List"),
    ],
)
def test_value_that_the_column_cannot_hold_is_refused_by_its_key(
    values: Any, split: dict[str, Any], says: str
) -> None:
    with pytest.raises(JobError, match=rf"data\.split\.{says}"):
        prepare(job_of(values, **split))
    assert f"data.split.{says.partition(':')[0]}: found" in problem(values, **split)


@pytest.mark.parametrize(
    ("values", "split", "held"),
    [
        (NUMBERS, {"train": [0, 1], "valid": ["1.0", 2], "test": 3}, "1"),
        (NUMBERS, {"train": True, "valid": [1, 2], "test": 3}, "1"),
        (DAYS, MONTHS | {"valid": ["2026-03", "2026-02-05"]}, "2026-02-05 00:00:00+00:00"),
    ],
)
def test_value_in_two_parts_is_refused(values: Any, split: dict[str, Any], held: str) -> None:
    expected = f"data.split: `train` and `valid` both hold {held}; put it into one of them."
    assert problem(values, **split) == expected


@pytest.mark.parametrize("path", ["rows.parquet", "rows.csv"])
def test_row_whose_value_is_in_no_part_is_refused_by_its_row(path: str) -> None:
    says = (
        r"row 4, column 'part': found 3, data\.split knows train 0, 1; valid 2; test none\. "
        "Put the value into one of them, or filter the row"
    )
    with pytest.raises(DataError, match=says):
        prepare(job_of(NUMBERS, path, train=[0, 1], valid=2, test=[]))
    with pytest.raises(DataError, match="row 4, column 'part': found no value"):
        prepare(job_of([None if n == 3 else n for n in NUMBERS], path, train=[0, 1], valid=2))
