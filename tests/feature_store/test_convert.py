"""One rule says what number a value is: exact for integers, the nearest for floats, and wrong otherwise."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.feature_store.convert import convert

INT64 = st.integers(-(2**63), 2**63 - 1)
NEAR_FLOATS = st.integers(2**53 - 2, 2**53 + 4) | st.integers(-(2**53) - 4, -(2**53) + 2)


def converted(
    values: pl.Series, wanted: pl.DataType, *, rounds: bool = True
) -> tuple[list[Any], list[bool]]:
    """Return the values as another type, and whether each was wrong."""
    form = convert(pl.col("x"), values.dtype, wanted, rounds=rounds)
    assert form is not None
    frame = pl.DataFrame({"x": values})
    wrong = [False] * len(values)
    if form.wrong is not None:
        wrong = frame.select(form.wrong).to_series().to_list()
    return frame.select(form.value).to_series().to_list(), wrong


@given(st.lists(INT64 | NEAR_FLOATS, min_size=1, max_size=6))
def test_an_integer_is_the_same_from_every_type_that_can_hold_it(values: list[int]) -> None:
    sources = [
        pl.Series(values, dtype=pl.Int64),
        pl.Series(values, dtype=pl.Int128),
        pl.Series([Decimal(each) for each in values], dtype=pl.Decimal(38, 0)),
        pl.Series([Decimal(each) for each in values], dtype=pl.Decimal(38, 4)),
        pl.Series([str(each) for each in values]),
        pl.Series([f"{each}.00" for each in values]),
    ]
    for source in sources:
        found, wrong = converted(source, pl.Int64())
        assert found == values, source.dtype
        assert not any(wrong)
    held = [each for each in values if each >= 0]
    assert converted(pl.Series(held, dtype=pl.UInt64), pl.Int64())[0] == held
    floats = [float(each) for each in values if abs(each) < 2**63]
    found, wrong = converted(pl.Series(floats, dtype=pl.Float64), pl.Int64())
    assert found == [int(each) if each < 2**63 else None for each in floats]
    assert wrong == [each >= 2**63 for each in floats]


WRONG_INTEGERS: list[pl.Series] = [
    pl.Series([1.5, 1e19, math.inf]),
    pl.Series([2**63, 2**64 - 1], dtype=pl.UInt64),
    pl.Series([2**63, -(2**63) - 1], dtype=pl.Int128),
    pl.Series([Decimal("1.5"), Decimal(10) ** 30], dtype=pl.Decimal(38, 2)),
    pl.Series(["1.5", "N/A", "9223372036854775808", "9007199254740993e0", "2026-02-30", " 7"]),
]


@pytest.mark.parametrize("values", WRONG_INTEGERS)
def test_a_value_that_is_no_integer_of_64_bits_is_wrong(values: pl.Series) -> None:
    found, wrong = converted(values, pl.Int64())
    assert found == [None] * len(values)
    assert all(wrong)


def test_missing_values_are_never_wrong() -> None:
    for values in (
        pl.Series([None, math.nan], dtype=pl.Float64),
        pl.Series(["", None, "nan"]),
        pl.Series([None], dtype=pl.Decimal(38, 2)),
        pl.Series([None], dtype=pl.Null),
    ):
        found, wrong = converted(values, pl.Int64())
        assert found == [None] * len(values)
        assert not any(wrong)


@given(st.lists(NEAR_FLOATS | INT64, min_size=1, max_size=6))
def test_an_integer_that_no_float_equals_is_wrong_where_it_must_not_be_rounded(
    values: list[int],
) -> None:
    inexact = [int(float(each)) != each for each in values]
    for source in (
        pl.Series(values, dtype=pl.Int64),
        pl.Series([Decimal(each) for each in values], dtype=pl.Decimal(38, 0)),
        pl.Series([Decimal(each) for each in values], dtype=pl.Decimal(38, 2)),
    ):
        assert converted(source, pl.Float64(), rounds=False)[1] == inexact
        found, wrong = converted(source, pl.Float64())
        assert found == [float(each) for each in values]
        assert not any(wrong)


@given(st.decimals(-(10**18), 10**18, places=12))
def test_a_decimal_becomes_the_float_that_its_text_says(value: Decimal) -> None:
    found, _ = converted(pl.Series([value], dtype=pl.Decimal(38, 12)), pl.Float64())
    assert found == [float(value)]


def test_text_and_times_are_numbers_by_one_rule() -> None:
    text = pl.Series(["17", "17.0", "1.7e1", "true", "False", "1970-01-01T00:00:01+00:00"])
    assert converted(text, pl.Int64())[0] == [17, 17, 17, 1, 0, 1000]
    assert converted(text, pl.Float64())[0] == [17.0, 17.0, 17.0, 1.0, 0.0, 1000.0]
    moment = datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)
    assert converted(pl.Series([moment]), pl.Int64())[0] == [1000]


def test_lists_are_converted_by_entry() -> None:
    values = pl.Series([[Decimal(2**60), None], None, []], dtype=pl.List(pl.Decimal(38, 2)))
    assert converted(values, pl.List(pl.Int64()))[0] == [[2**60, None], None, []]
    values = pl.Series([[1.0], [1.5, 2.0], None])
    found, wrong = converted(values, pl.List(pl.Int64()))
    assert found == [[1], [None, 2], None]
    assert wrong == [False, True, False]


def test_a_time_that_a_finer_unit_does_not_reach_is_wrong() -> None:
    far = pl.Series([0, 2**62], dtype=pl.Int64).cast(pl.Datetime("ms"))
    found, wrong = converted(far, pl.Datetime("us"))
    assert found == [datetime(1970, 1, 1), None]  # noqa: DTZ001
    assert wrong == [False, True]


def test_a_time_without_a_zone_is_utc_beside_others() -> None:
    plain = pl.Series([datetime(2026, 3, 1, 12)])  # noqa: DTZ001
    found, _ = converted(plain, pl.Datetime("us", "UTC"))
    assert found == [datetime(2026, 3, 1, 12, tzinfo=UTC)]
    rome = plain.dt.replace_time_zone("Europe/Rome")
    found, _ = converted(rome, pl.Datetime("us", "UTC"))
    assert found == [datetime(2026, 3, 1, 11, tzinfo=UTC)]


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (pl.Duration(), pl.Int64()),
        (pl.Binary(), pl.String()),
        (pl.Float64(), pl.String()),
        (pl.Decimal(38, 2), pl.String()),
        (pl.List(pl.Int64), pl.Int64()),
        (pl.Int64(), pl.List(pl.Int64)),
        (pl.Struct({"a": pl.Int64}), pl.String()),
    ],
)
def test_types_without_a_common_value_have_no_conversion(
    found: pl.DataType, wanted: pl.DataType
) -> None:
    assert convert(pl.col("x"), found, wanted) is None
