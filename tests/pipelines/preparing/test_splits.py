"""Every split rule gives each row to one split, whatever the fragments."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from headwater.feature_store.errors import DataError
from headwater.feature_store.schema import INT64_MIN
from headwater.pipelines.data.names import ROW, SPLIT_KEY, SPLIT_USER
from headwater.pipelines.job_splits import (
    ColumnSplit,
    LeaveOneOutSplit,
    RatioSplit,
    Split,
    TimeSplit,
)
from headwater.pipelines.preparing.splits import assign, order_statistics, uniform


def split_rows(split: Split, frame: pl.DataFrame, cuts: Sequence[int] = ()) -> dict[str, list[int]]:
    """Return the row numbers of each split, after the frame was cut into fragments."""
    ends = [0, *sorted(cuts), frame.height]
    parts = [frame[a:b].lazy() for a, b in itertools.pairwise(ends)]
    conditions = assign(split, parts)
    return {
        name: [row for part in parts for row in part.filter(condition).collect()[ROW]]
        for name, condition in conditions.items()
    }


def numbered(**columns: Any) -> pl.DataFrame:
    return pl.DataFrame(columns).with_row_index(ROW).with_columns(pl.col(ROW).cast(pl.Int64))


def test_time_holds_out_the_newest_rows_exactly() -> None:
    frame = numbered(**{SPLIT_KEY: np.random.default_rng(0).permutation(1000)})
    found = split_rows(TimeSplit(column="t", valid=0.2, test=0.1), frame, [10, 400])
    times = {name: sorted(frame[SPLIT_KEY].gather(rows)) for name, rows in found.items()}
    assert times == {
        "train": list(range(700)),
        "valid": list(range(700, 900)),
        "test": list(range(900, 1000)),
    }


def test_rows_of_one_time_are_on_one_side() -> None:
    frame = numbered(**{SPLIT_KEY: [1, 1, 2, 2, 2, 2, 3, 3, 3, 4]})
    found = split_rows(TimeSplit(column="t", valid=0.3, test=0.2), frame)
    assert found == {"train": [0, 1], "valid": [2, 3, 4, 5], "test": [6, 7, 8, 9]}


@given(
    st.one_of(
        hnp.arrays(np.int64, st.integers(1, 60)),
        hnp.arrays(np.float64, st.integers(1, 60), elements=st.floats(allow_nan=False)),
    ),
    st.data(),
)
def test_order_statistics_are_those_of_a_sort(values: np.ndarray, data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, len(values) - 1))
    cut = data.draw(st.integers(0, len(values)))
    (found,) = order_statistics(lambda: iter([values[:cut], values[cut:]]), [rank])
    assert found == np.sort(values)[rank]


def test_ratio_depends_on_row_number_and_seed_only() -> None:
    frame = numbered(x=range(20_000))
    split = RatioSplit(valid=0.2, test=0.1, seed=5)
    whole = split_rows(split, frame)
    assert split_rows(split, frame, [1, 77, 19_000]) == whole
    assert sorted(itertools.chain(*whole.values())) == list(range(20_000))
    assert len(whole["valid"]) / 20_000 == pytest.approx(0.2, abs=0.01)
    assert len(whole["test"]) / 20_000 == pytest.approx(0.1, abs=0.01)
    assert split_rows(RatioSplit(valid=0.2, test=0.1, seed=6), frame) != whole
    kept = frame.filter(pl.col("x") % 3 == 0)
    assert set(split_rows(split, kept)["test"]) == {row for row in whole["test"] if row % 3 == 0}


def test_hashed_shares_are_the_same_in_every_version() -> None:
    assert uniform(np.array([0, 1, 2**40]), 0).tolist() == [
        0.8833108082136426,
        0.43152799704850997,
        0.09849682405779547,
    ]
    assert uniform(np.array([1]), 7).tolist() == [0.5935877607017961]


def test_leave_one_out_takes_each_users_newest_and_the_one_before() -> None:
    frame = numbered(
        **{
            SPLIT_USER: [7, 8, 7, 7, 9, 8, 7, 8, 9],
            SPLIT_KEY: [3, 1, 1, 2, 5, 1, 3, 1, 6],
        }
    )
    for cuts in ([], [1, 5], range(1, 9)):
        found = split_rows(LeaveOneOutSplit(user="u", time="t"), frame, cuts)
        assert found == {"train": [1, 2, 3, 4, 8], "valid": [0, 5], "test": [6, 7]}


def test_leave_one_out_leaves_rows_without_a_user_to_training() -> None:
    frame = numbered(
        **{SPLIT_USER: [INT64_MIN, 7, INT64_MIN, 7, 7, INT64_MIN], SPLIT_KEY: [1, 2, 3, 4, 5, 6]}
    )
    for cuts in ([], [3]):
        found = split_rows(LeaveOneOutSplit(user="u", time="t"), frame, cuts)
        assert found == {"train": [0, 1, 2, 5], "valid": [3], "test": [4]}


def test_leave_one_out_without_a_user_of_three_rows_is_refused() -> None:
    frame = numbered(**{SPLIT_USER: [1, 1, 2], SPLIT_KEY: [1, 2, 3]})
    with pytest.raises(DataError, match="no user has three rows"):
        split_rows(LeaveOneOutSplit(user="u", time="t"), frame)


def test_a_column_gives_the_number_of_the_split() -> None:
    frame = numbered(**{SPLIT_KEY: [0, 2, 1, 0]})
    assert split_rows(ColumnSplit(column="s"), frame) == {
        "train": [0, 3],
        "valid": [2],
        "test": [1],
    }
    without = split_rows(ColumnSplit(column="s", test=[]), frame)
    assert without == {"train": [0, 3], "valid": [2]}
