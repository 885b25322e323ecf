"""Fitting: the same bytes however rows are cut, refusals by column, raw columns in one normal form."""

from __future__ import annotations

import math
import pickle
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal

import msgspec
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.feature_store import encoders as enc
from headwater.feature_store import fit as fitting
from headwater.feature_store import moments, quantiles
from headwater.feature_store import schema as fs
from headwater.feature_store.errors import DataError, FeatureError
from headwater.feature_store.fit import check, finish, fit, merge, partial, raw_columns
from headwater.feature_store.normalise import infer_dtype, normalise

ENCODERS: list[enc.Declared] = [
    enc.Vocabulary(name="s", min_count=2),
    enc.Hashed(name="h", column="s", num_buckets=11),
    enc.LogBuckets(name="log", column="d"),
    enc.Quantiles(name="q", column="d", num_buckets=5),
    enc.Standardized(name="d"),
    enc.Vocabulary(name="l", length=2),
    enc.Crossed(name="sq", columns=["s", "q"]),
]


def frame(num_rows: int) -> pl.DataFrame:
    """Return rows with ties in count, missing values, and doubles whose sum depends on order."""
    return pl.DataFrame(
        {
            "s": [None if i % 11 == 0 else f"v{i * i % 17}" for i in range(num_rows)],
            "d": [
                math.nan if i % 7 == 0 else math.sin(i) * 10.0 ** (i % 9) for i in range(num_rows)
            ],
            "l": [[i % 3, i % 5] if i % 4 else None for i in range(num_rows)],
        }
    )


def cut(rows: pl.DataFrame, num_fragments: int) -> list[pl.LazyFrame]:
    size = -(-rows.height // num_fragments)
    return [rows.lazy().slice(start, size) for start in range(0, rows.height, size)]


class TestSameBytes:
    @pytest.mark.parametrize("num_fragments", [2, 3, 40])
    def test_any_cut_into_fragments_gives_the_same_schema(self, num_fragments: int) -> None:
        rows = frame(400)
        raw = raw_columns(ENCODERS, rows.schema)
        whole = fit(ENCODERS, [rows.lazy()], raw)
        assert fit(ENCODERS, cut(rows, num_fragments), raw) == whole
        assert fit(ENCODERS, cut(rows, num_fragments), raw).hash == whole.hash

    def test_partials_made_elsewhere_and_merged_in_any_shape_give_the_same_schema(self) -> None:
        rows = frame(400)
        encoders = ENCODERS[:-1]
        raw = raw_columns(encoders, rows.schema)
        parts = [
            pickle.loads(pickle.dumps(partial(encoders, fragment, raw)))
            for fragment in cut(rows, 7)
        ]
        tree = merge([merge(parts[4:]), merge(parts[:2]), merge(parts[2:4])])
        assert finish(encoders, encoders, tree, raw) == fit(encoders, [rows.lazy()], raw)

    def test_columns_keep_the_order_of_the_job(self) -> None:
        encoders = [ENCODERS[0], ENCODERS[3], ENCODERS[6], ENCODERS[4]]
        rows = frame(50)
        schema = fit(encoders, [rows.lazy()], raw_columns(encoders, rows.schema))
        assert [column.name for column in schema.columns] == ["s", "q", "sq", "d"]
        assert [raw.name for raw in schema.raw] == ["s", "d"]


class TestExactSums:
    @given(st.lists(st.floats(allow_nan=False), max_size=30))
    def test_mean_and_deviation_are_those_of_rational_arithmetic(self, values: list[float]) -> None:
        data = pl.LazyFrame({"value": values}, schema={"value": pl.Float64})
        mean, deviation = moments.mean_and_deviation(moments.exact_sums(data).collect())
        exact = [Fraction(value) for value in values if math.isfinite(value)]
        if not exact:
            assert (mean, deviation) == (0.0, 0.0)
            return
        center = sum(exact) / len(exact)
        variance = sum((value - center) ** 2 for value in exact) / len(exact)
        assert mean == float(center)
        error = abs(Fraction(deviation) ** 2 - variance)
        assert error <= variance * Fraction(1, 2**50) + Fraction(5e-324) ** 2

    def test_cancellation_costs_nothing(self) -> None:
        data = pl.LazyFrame({"value": [1e16, 1.0, -1e16, 1.0]})
        assert moments.mean_and_deviation(moments.exact_sums(data).collect())[0] == 0.5


class TestQuantileSketch:
    @given(
        fragments=st.lists(
            st.lists(st.integers(0, 60) | st.floats(-1e3, 1e3), min_size=1, max_size=60), min_size=1
        ),
        points=st.integers(1, 20),
    )
    def test_rank_error_stays_below_one_in_points(
        self, fragments: list[list[float]], points: int
    ) -> None:
        sketches = [
            quantiles.sketch(pl.LazyFrame({"value": rows}, strict=False), points).collect()
            for rows in fragments
        ]
        assert all(sketch.height <= points for sketch in sketches)
        merged = pl.concat(sketches)
        values = [float(value) for rows in fragments for value in rows]
        for value in values:
            rank = sum(other <= value for other in values)
            read = merged.filter(pl.col("key") <= value)["count"].sum()
            assert 0 <= rank - read < max(len(values) / points, 1)

    def test_few_distinct_values_are_kept_whole(self) -> None:
        values = [0.0] * 100_000 + [float(i) for i in range(50)]
        sketch = quantiles.sketch(pl.LazyFrame({"value": values})).collect()
        assert sketch.height == 50
        assert sketch["count"].to_list() == [100_001] + [1] * 49

    def test_edges_of_many_values_are_within_the_error(self) -> None:
        values = pl.Series(range(100_000)).shuffle(seed=1).cast(pl.Float64)
        parts = [pl.LazyFrame({"value": values[i::3]}) for i in range(3)]
        merged = pl.concat([quantiles.sketch(part).collect() for part in parts])
        edges = quantiles.edges(merged, 10)
        error = 100_000 / quantiles.POINTS
        assert edges == [pytest.approx(10_000 * i, abs=error + 1) for i in range(1, 10)]


class TestRefusals:
    @pytest.mark.parametrize(
        ("encoder", "message"),
        [
            (
                enc.Standardized(name="x", column="s"),
                "column 's', feature 'x': encoder 'standardized' takes",
            ),
            (enc.Vocabulary(name="d"), "takes int64 or string, found double"),
            (enc.Calendar(name="s", part="hour"), "none of its texts is a time in ISO 8601"),
            (enc.Vocabulary(name="l"), "reads a list: set `length`"),
            (enc.Vocabulary(name="s", length=3), "its column is no list"),
            (enc.Identity(name="l"), "gives one number an example, found a list"),
            (
                enc.Crossed(name="x", columns=["s", "d"]),
                "no feature of this name is declared before",
            ),
        ],
    )
    def test_an_encoder_that_cannot_take_its_column_names_it(
        self, encoder: enc.Declared, message: str
    ) -> None:
        rows = frame(3)
        raw = {name: infer_dtype(name, dtype) for name, dtype in rows.schema.items()}
        with pytest.raises(FeatureError, match=message):
            fit([encoder], [rows.lazy()], raw)

    def test_only_single_codes_are_crossed(self) -> None:
        rows = frame(3)
        raw = raw_columns(ENCODERS, rows.schema)
        with pytest.raises(FeatureError, match="gives a number and no codes"):
            check([*ENCODERS, enc.Crossed(name="x", columns=["s", "d"])], raw)
        with pytest.raises(FeatureError, match="it is a list"):
            check([*ENCODERS, enc.Crossed(name="x", columns=["s", "l"])], raw)

    def test_combinations_beyond_int64_are_refused(self) -> None:
        buckets: list[enc.Declared] = [
            enc.Hashed(name=name, column="s", num_buckets=2**30) for name in "abc"
        ]
        encoders = [*buckets, enc.Crossed(name="x", columns=["a", "b", "c"])]
        rows = frame(3)
        with pytest.raises(FeatureError, match="more than int64 can number"):
            fit(encoders, [rows.lazy()], raw_columns(encoders, rows.schema))

    def test_too_many_text_values_are_refused_with_the_remedy(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(fitting, "MAX_STRING_KEYS", 3)
        encoders = [enc.Vocabulary(name="text"), enc.Vocabulary(name="number")]
        rows = pl.DataFrame({"text": list("abc"), "number": [1, 2, 3]})
        fit(encoders, [rows.lazy()], raw_columns(encoders, rows.schema))
        more = pl.DataFrame({"text": list("abcd"), "number": [1, 2, 3, 4]})
        with pytest.raises(FeatureError, match=r"'text' 4\. Use encoder = \"hashed\""):
            fit(encoders, [more.lazy()], raw_columns(encoders, more.schema))

    def test_an_absent_column_is_named_with_the_nearest(self) -> None:
        with pytest.raises(DataError, match=r"column 'user' is not in the data.*'users'"):
            raw_columns([enc.Vocabulary(name="user")], {"users": pl.Int64()})
        with pytest.raises(DataError, match="column 'a' is not in the data"):
            normalise(pl.DataFrame({"b": [1]}), [fs.RawColumn(name="a", dtype="int64")])

    def test_two_types_for_one_column_are_refused(self) -> None:
        encoders = [
            enc.Vocabulary(name="x", dtype="string"),
            enc.Standardized(name="y", column="x", dtype="double"),
        ]
        with pytest.raises(
            FeatureError, match="feature 'x' reads it as string, feature 'y' as double"
        ):
            raw_columns(encoders, {"x": pl.Int64()})

    def test_a_column_named_as_the_length_of_a_list_is_refused(self) -> None:
        rows = pl.LazyFrame({"x": [[1]], "x.length": [1]})
        encoders = [enc.Vocabulary(name="x", length=1), enc.Vocabulary(name="x.length")]
        with pytest.raises(FeatureError, match=r"column 'x\.length': a release names"):
            fit(encoders, [rows], raw_columns(encoders, rows.collect_schema()))

    @pytest.mark.parametrize("name", ["code.x", "dense.y", "prob", "logit", "log_rate"])
    def test_a_column_named_as_a_tensor_of_a_release_is_refused(self, name: str) -> None:
        encoders = [
            enc.Vocabulary(name="x"),
            enc.Identity(name="y"),
            enc.Identity(name="z", column=name),
        ]
        raw = raw_columns(encoders, {"x": pl.Int64(), "y": pl.Int64(), name: pl.Int64()})
        with pytest.raises(FeatureError, match=rf"column '{name}': a release names .*; rename the"):
            check(encoders, raw)

    def test_a_column_named_as_no_tensor_of_the_release_is_taken(self) -> None:
        encoders = [enc.Vocabulary(name="x"), enc.Vocabulary(name="dense.x")]
        check(encoders, raw_columns(encoders, {"x": pl.Int64(), "dense.x": pl.Int64()}))

    @pytest.mark.parametrize("dtype", [pl.Date(), pl.Datetime("us"), pl.List(pl.Datetime("ms"))])
    @pytest.mark.parametrize("unit", ["s", "us"])
    def test_a_calendar_of_datetimes_in_another_unit_than_ms_is_refused(
        self, dtype: pl.DataType, unit: Literal["s", "us"]
    ) -> None:
        encoder = enc.Calendar(name="hour", column="at", part="hour", unit=unit)
        with pytest.raises(FeatureError, match=rf"'at', feature 'hour': unit '{unit}'.*Remove"):
            raw_columns([encoder], {"at": dtype})
        assert raw_columns([encoder], {"at": pl.Int64()})["at"].dtype == "int64"

    def test_no_fragments_are_refused(self) -> None:
        with pytest.raises(DataError, match="training data is empty"):
            fit([enc.Vocabulary(name="x")], [], {"x": fs.RawColumn(name="x", dtype="int64")})

    def test_rows_that_may_have_no_normal_form_are_refused_when_fitting(self) -> None:
        rows = pl.LazyFrame({"x": ["1", "N/A"]})
        encoders = [enc.Vocabulary(name="x", dtype="int64")]
        with pytest.raises(DataError, match=r"column 'x': found String, expected int64 in normal"):
            fit(encoders, [rows], raw_columns(encoders, rows.collect_schema()))


def normal(values: pl.Series, dtype: fs.Dtype) -> list[Any]:
    raw = fs.RawColumn(name="x", dtype=dtype, is_list=isinstance(values.dtype, pl.List | pl.Array))
    return normalise(pl.DataFrame({"x": values}), [raw])["x"].to_list()


class TestNormalForm:
    @pytest.mark.parametrize(
        ("values", "dtype", "expected"),
        [
            (pl.Series([1, None, -3], dtype=pl.Int16), "int64", [1, None, -3]),
            (pl.Series([2**63 - 1, 0], dtype=pl.UInt64), "int64", [2**63 - 1, 0]),
            (pl.Series([True, False, None]), "int64", [1, 0, None]),
            (pl.Series([-(2**63), 5]), "int64", [None, 5]),
            (pl.Series([1.0, math.nan, -0.0, 2.0**53]), "int64", [1, None, 0, 2**53]),
            (pl.Series(["7", "", None]), "int64", [7, None, None]),
            (pl.Series([date(1970, 1, 2)]), "int64", [86_400_000]),
            (pl.Series([datetime(1970, 1, 1, 0, 0, 1, 500_000, UTC)]), "int64", [1500]),
            (pl.Series([1.5, math.nan, None, math.inf]), "double", [1.5, None, None, math.inf]),
            (pl.Series([0.5], dtype=pl.Float32), "double", [0.5]),
            (pl.Series([Decimal("1.25")]), "double", [1.25]),
            (pl.Series(["1.5", "NaN", ""]), "double", [1.5, None, None]),
            (pl.Series(["a", "", None]), "string", ["a", None, None]),
            (pl.Series(["a", "b"], dtype=pl.Categorical), "string", ["a", "b"]),
            (pl.Series(["a"], dtype=pl.Enum(["a"])), "string", ["a"]),
            (pl.Series([5, -5]), "string", ["5", "-5"]),
            (pl.Series([None, None]), "string", [None, None]),
            (
                pl.Series([[1, None], None, []], dtype=pl.List(pl.Int8)),
                "int64",
                [[1, None], None, []],
            ),
            (pl.Series([["a", ""]]), "string", [["a", None]]),
            (pl.Series([[1.0, math.nan]], dtype=pl.Array(pl.Float32, 2)), "double", [[1.0, None]]),
        ],
    )
    def test_raw_types_become_the_three(
        self, values: pl.Series, dtype: fs.Dtype, expected: list[Any]
    ) -> None:
        assert normal(values, dtype) == expected

    @pytest.mark.parametrize(
        ("values", "dtype", "message"),
        [
            (pl.Series([1.5, 2.0]), "int64", r"column 'x'.*1\.5"),
            (pl.Series([1e300]), "int64", r"column 'x'.*1e\+300"),
            (pl.Series([2**63], dtype=pl.UInt64), "int64", "column 'x'.*9223372036854775808"),
            (pl.Series(["1.5"]), "int64", r"column 'x'.*1\.5"),
            (pl.Series(["x"]), "double", "column 'x'.*x"),
            (pl.Series([["q"]]), "int64", "column 'x'.*q"),
            (pl.Series([1.5]), "string", "column 'x': expected string, found Float64"),
            (pl.Series([{"a": 1}]), "string", "column 'x': Struct"),
            (pl.Series([b"a"]), "string", "column 'x': Binary"),
        ],
    )
    def test_what_cannot_be_read_names_the_column(
        self, values: pl.Series, dtype: fs.Dtype, message: str
    ) -> None:
        with pytest.raises(DataError, match=message):
            normal(values, dtype)

    def test_a_list_for_a_scalar_is_refused(self) -> None:
        with pytest.raises(
            DataError, match="column 'x': expected one value an example, found List"
        ):
            normalise(pl.DataFrame({"x": [[1]]}), [fs.RawColumn(name="x", dtype="int64")])

    def test_other_columns_stay(self) -> None:
        rows = pl.DataFrame({"x": [1], "label": [1.5]})
        kept = normalise(rows, [fs.RawColumn(name="x", dtype="int64")])
        assert kept.to_dict(as_series=False) == {"x": [1], "label": [1.5]}

    def test_types_are_inferred_from_the_data(self) -> None:
        inferred = {
            str(dtype): infer_dtype("x", dtype).dtype
            for dtype in (pl.UInt8(), pl.Boolean(), pl.Date(), pl.Float32(), pl.String(), pl.Null())
        }
        assert list(inferred.values()) == ["int64", "int64", "int64", "double", "string", "int64"]
        assert infer_dtype("x", pl.List(pl.String())).is_list
        with pytest.raises(DataError, match="column 'x': Duration"):
            infer_dtype("x", pl.Duration())


def test_programs_are_plain_data() -> None:
    steps: tuple[fs.Step, ...] = (
        fs.Lookup(keys=("a", "b"), codes=(3, 3)),
        fs.Missing(),
        fs.Pad(length=2),
    )
    column = fs.EncodedColumn(
        name="x", encoder="none", inputs=("x",), steps=steps, cardinality=5, length=2
    )
    assert msgspec.json.decode(msgspec.json.encode(column), type=fs.EncodedColumn) == column
