"""What each encoder gives for known values, and how a job declares it."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import polars as pl
import pytest
from pydantic import TypeAdapter, ValidationError

from headwater.feature_store import encoders as enc
from headwater.feature_store import log_buckets
from headwater.feature_store import schema as fs
from headwater.feature_store.errors import FeatureError
from headwater.feature_store.fit import fit, raw_columns
from headwater.feature_store.normalise import normalise
from headwater.feature_store.polars_compiler import encode_frame, missing_and_unknown

ADAPTER: TypeAdapter[enc.Declared] = TypeAdapter(enc.Encoder)


def codes(
    encoders: list[enc.Declared], train: dict[str, Any], rows: dict[str, Any] | None = None
) -> dict[str, list[Any]]:
    """Fit on `train`, encode `rows` (or `train`), and return the columns as lists."""
    frame = pl.DataFrame(train)
    schema = fit(encoders, [frame.lazy()], raw_columns(encoders, frame.schema))
    data = frame if rows is None else pl.DataFrame(rows, schema=frame.schema)
    encoded = encode_frame(normalise(data, schema.raw).lazy(), schema).collect()
    return encoded.to_dict(as_series=False)


class TestDeclaration:
    @pytest.mark.parametrize("kind", enc.ENCODERS)
    def test_a_job_names_an_encoder_by_its_registered_name(self, kind: str) -> None:
        needs: dict[str, dict[str, Any]] = {
            "hashed": {"num_buckets": 9},
            "quantiles": {"num_buckets": 9},
            "calendar": {"part": "hour"},
            "crossed": {"columns": ["a", "b"]},
        }
        declared = ADAPTER.validate_python({"name": "x", "encoder": kind, **needs.get(kind, {})})
        assert type(declared) is enc.ENCODERS[kind]
        assert declared.kind == kind
        assert ADAPTER.validate_python(declared.model_dump()) == declared

    @pytest.mark.parametrize(
        ("settings", "found"),
        [
            ({"encoder": "vocabulry"}, "union_tag_invalid"),
            ({"encoder": "vocabulary", "mincount": 2}, "extra_forbidden"),
            ({"encoder": "vocabulary", "min_count": 0}, "greater_than_equal"),
            ({"encoder": "hashed"}, "missing"),
            ({"encoder": "hashed", "num_buckets": 2**31}, "less_than_equal"),
            ({"encoder": "crossed", "columns": ["a"]}, "too_short"),
            ({"encoder": "crossed", "columns": ["a", "b"], "column": "a"}, "extra_forbidden"),
            ({"encoder": "calendar", "part": "month"}, "literal_error"),
            ({"encoder": "standardized", "length": 3}, "extra_forbidden"),
            ({"encoder": "identity", "pooling": "mean"}, "extra_forbidden"),
        ],
    )
    def test_a_wrong_setting_is_refused(self, settings: dict[str, Any], found: str) -> None:
        with pytest.raises(ValidationError) as refused:
            ADAPTER.validate_python({"name": "x", **settings})
        assert [error["type"] for error in refused.value.errors()] == [found]

    def test_an_encoder_cannot_be_changed(self) -> None:
        declared = enc.Vocabulary(name="x")
        with pytest.raises(ValidationError):
            declared.name = "y"  # pyright: ignore[reportAttributeAccessIssue]


class TestVocabulary:
    def test_codes_follow_the_count_and_then_the_value(self) -> None:
        values = ["b", "a", "c", "c", None, "", "d"]
        assert codes([enc.Vocabulary(name="x")], {"x": values})["x"] == [4, 3, 2, 2, 0, 0, 5]

    def test_rare_and_unseen_values_are_unknown(self) -> None:
        train = {"x": [7, 7, -1, None]}
        found = codes([enc.Vocabulary(name="x", min_count=2)], train, {"x": [7, -1, 8, None]})
        assert found["x"] == [2, 1, 1, 0]

    def test_at_most_max_size_values_are_kept(self) -> None:
        train = {"x": ["a", "a", "b", "b", "c"]}
        assert codes([enc.Vocabulary(name="x", max_size=1)], train)["x"] == [2, 2, 1, 1, 1]

    def test_integers_beyond_float64_stay_apart(self) -> None:
        values = [2**53, 2**53 + 1, 2**63 - 1, -(2**63) + 1]
        assert codes([enc.Vocabulary(name="x")], {"x": values})["x"] == [3, 4, 5, 2]

    def test_more_than_256_and_65536_values_have_their_own_codes(self) -> None:
        values = list(range(70_000))
        found = codes([enc.Vocabulary(name="x")], {"x": values})["x"]
        assert found == list(range(2, 70_002))


class TestHashed:
    def test_codes_are_murmurhash3_of_the_text(self) -> None:
        # Published values of MurmurHash3_x86_32 with seed 0.
        fox = "The quick brown fox jumps over the lazy dog"
        for text, digest in (("test", 0xBA6BD213), (fox, 0x2E4FF723)):
            encoder = enc.Hashed(name="x", num_buckets=1_000_003)
            found = codes([encoder], {"x": [text, None]})["x"]
            assert found == [2 + digest % 1_000_003, 0]

    def test_an_integer_hashes_as_its_decimal_text(self) -> None:
        encoders: list[enc.Declared] = [
            enc.Hashed(name="x", num_buckets=997),
            enc.Hashed(name="y", num_buckets=997),
        ]
        found = codes(encoders, {"x": [-12, 2**53 + 1], "y": ["-12", "9007199254740993"]})
        assert found["x"] == found["y"]


class TestLogBuckets:
    @pytest.mark.parametrize(
        ("value", "bucket"),
        [
            *((-1.0, -1), (0.0, 0), (1.0, 1), (2.0, 2), (3.0, 1), (10.0, 5), (1000.0, 47)),
            *((-0.5, 0), (0.99, 0), (1.5, 1), (2.5, 0), (-3.7, -3), (-1e6, -1_000_000)),
        ],
    )
    def test_buckets_are_those_of_the_published_rule(self, value: float, bucket: int) -> None:
        rule = math.floor(math.log(value) ** 2) if value > 2 else math.trunc(value)
        assert rule == bucket
        frame = pl.LazyFrame({"value": [value]})
        assert log_buckets.bucketise(frame).collect().item() == bucket

    def test_values_of_one_bucket_share_a_code(self) -> None:
        # Buckets: 0 twice (2.5 and -0.5), 1 three times (1, 3, 3.5), 5 once, missing none.
        values = [2.5, 1.0, 3.0, 3.5, -0.5, 10.0, None, math.nan]
        found = codes([enc.LogBuckets(name="x")], {"x": values})["x"]
        assert found == [3, 2, 2, 2, 3, 4, 0, 0]

    def test_a_bucket_that_training_did_not_see_is_unknown(self) -> None:
        rows = {"x": [1.0, 100.0, -5.0, math.inf, -math.inf, 0.0]}
        found = codes([enc.LogBuckets(name="x")], {"x": [1.0]}, rows)["x"]
        assert found == [2, 1, 1, 1, 1, 1]

    def test_every_training_value_is_known_at_min_count_one(self) -> None:
        edges = log_buckets.log_edges()
        values = [near for edge in edges for near in (math.nextafter(edge, 0), edge)]
        values += [-1e30, -(2.0**60), 1e30, -(2.0**53), 2.0**63]
        assert min(codes([enc.LogBuckets(name="x")], {"x": values})["x"]) >= 2

    def test_edges_are_where_the_rule_turns(self) -> None:
        for bucket, edge in enumerate(log_buckets.log_edges()):
            assert edge > 2
            assert math.floor(math.log(edge) ** 2) == bucket or bucket == 0
            below = math.nextafter(edge, 0)
            assert below == 2 or math.floor(math.log(below) ** 2) < bucket


class TestQuantiles:
    def test_buckets_hold_equal_shares(self) -> None:
        found = codes([enc.Quantiles(name="x", num_buckets=4)], {"x": list(range(100))})["x"]
        assert [found.count(code) for code in (2, 3, 4, 5)] == [25] * 4

    def test_repeated_values_leave_fewer_buckets(self) -> None:
        values = [0.0] * 90 + [1.0] * 10
        frame = pl.DataFrame({"x": values})
        encoders = [enc.Quantiles(name="x", num_buckets=10)]
        schema = fit(encoders, [frame.lazy()], raw_columns(encoders, frame.schema))
        assert schema.columns[0].steps[0] == fs.Edges(values=(1.0,))
        assert schema.columns[0].cardinality == 4

    def test_values_beyond_training_fall_into_the_outer_buckets(self) -> None:
        rows = {"x": [-math.inf, -5.0, 99.0, math.inf, math.nan]}
        train = {"x": [1.0, 2.0, 3.0, 4.0]}
        found = codes([enc.Quantiles(name="x", num_buckets=2)], train, rows)["x"]
        assert found == [2, 2, 3, 3, 0]


class TestDense:
    def test_standardized_has_mean_zero_and_deviation_one(self) -> None:
        values = [1.0, 2.0, 3.0, 4.0, None, math.nan, math.inf]
        found = codes([enc.Standardized(name="x")], {"x": values})["x"]
        root = math.sqrt(1.25)
        assert found[:4] == pytest.approx([-1.5 / root, -0.5 / root, 0.5 / root, 1.5 / root])
        assert found[4:] == [0.0, 0.0, math.inf]

    def test_a_constant_column_becomes_zero(self) -> None:
        assert codes([enc.Standardized(name="x")], {"x": [7, 7, None]})["x"] == [0.0, 0.0, 0.0]

    def test_a_column_without_values_becomes_zero(self) -> None:
        assert codes([enc.Standardized(name="x")], {"x": [math.nan, None]})["x"] == [0.0, 0.0]

    def test_numbers_beyond_scaling_are_refused_by_column(self) -> None:
        with pytest.raises(FeatureError, match="column 'x', feature 'x': mean"):
            codes([enc.Standardized(name="x")], {"x": [1e-310, 0.0]})

    def test_identity_only_rounds(self) -> None:
        values = [0.1, -0.0, None, 1e300]
        found = codes([enc.Identity(name="x")], {"x": values})["x"]
        assert found == [pytest.approx(0.1, rel=1e-7), 0.0, 0.0, math.inf]
        assert math.copysign(1, found[1]) == -1


class TestCalendar:
    @pytest.mark.parametrize(
        ("part", "code"),
        [("hour", 2 + 3), ("weekday", 2 + 6), ("weekend", 3), ("hour_of_week", 149)],
    )
    def test_parts_of_a_sunday_night(self, part: Any, code: int) -> None:
        # 2023-11-12 03:20 UTC, a Sunday.
        encoder = enc.Calendar(name="t", part=part, unit="s")
        assert codes([encoder], {"t": [1_699_759_200, None]})["t"] == [code, 0]

    def test_dates_and_datetimes_are_read_as_milliseconds(self) -> None:
        times = pl.Series(["2023-11-12T03:20:00", None]).str.to_datetime(time_unit="us")
        encoder = enc.Calendar(name="t", part="hour", utc_offset_minutes=60)
        assert codes([encoder], {"t": times})["t"] == [2 + 4, 0]


class TestListsAndCrosses:
    def test_a_list_is_cut_and_padded_behind(self) -> None:
        rows = [["a", "b", "a"], ["b", None], [], None]
        train = {"x": rows, "y": rows}
        found = codes(
            [
                enc.Vocabulary(name="x", length=2),
                enc.Vocabulary(name="first", column="y", length=2, keep="head"),
            ],
            train,
        )
        assert found["x"] == [[3, 2], [3, 0], [0, 0], [0, 0]]
        assert found["first"] == [[2, 3], [3, 0], [0, 0], [0, 0]]

    def test_combinations_are_counted_in_a_second_pass(self) -> None:
        train = {"a": ["x", "x", "y", "y", None], "b": [1, 1, 1, 2, 1]}
        encoders: list[enc.Declared] = [
            enc.Vocabulary(name="a"),
            enc.Vocabulary(name="b"),
            enc.Crossed(name="ab", columns=["a", "b"]),
            enc.Crossed(name="abb", columns=["ab", "b"], min_count=2),
        ]
        found = codes(encoders, train)
        assert found["ab"] == [2, 2, 3, 4, 0]
        assert found["abb"] == [2, 2, 1, 1, 0]


class TestEngines:
    def test_streaming_agrees_with_memory_over_many_morsels(self) -> None:
        generator = np.random.default_rng(0)
        numbers = generator.integers(0, 40, 400_000)
        frame = pl.LazyFrame(
            {
                "s": pl.Series(numbers).cast(pl.String),
                "d": generator.lognormal(2, 2, size=400_000),
                "l": pl.Series(numbers.reshape(-1, 1).tolist()),
            }
        )
        encoders: list[enc.Declared] = [
            enc.Vocabulary(name="s", min_count=9_950),
            enc.Hashed(name="h", column="s", num_buckets=10),
            enc.LogBuckets(name="d"),
            enc.Quantiles(name="q", column="d", num_buckets=300),
            enc.Vocabulary(name="l", length=2),
            enc.Crossed(name="both", columns=["s", "q"]),
        ]
        schema = fit(encoders, [frame], raw_columns(encoders, frame.collect_schema()))
        encoded = encode_frame(frame, schema)
        in_memory = encoded.collect(engine="in-memory")
        assert in_memory.equals(encoded.collect(engine="streaming"))
        assert in_memory["s"].max() == schema.columns[0].cardinality - 1 < 41

    def test_missing_and_unknown_are_counted_by_example(self) -> None:
        train = pl.LazyFrame({"s": ["a", "b"], "l": [["a"], ["b"]]})
        rows = pl.LazyFrame({"s": ["a", "q", "", None], "l": [["a", "q"], ["q", "q"], [], None]})
        encoders: list[enc.Declared] = [
            enc.Vocabulary(name="s"),
            enc.Vocabulary(name="l", length=2),
        ]
        schema = fit(encoders, [train], raw_columns(encoders, train.collect_schema()))
        encoded = encode_frame(normalise(rows.collect(), schema.raw).lazy(), schema)
        counts = encoded.select(missing_and_unknown(schema.codes)).collect().row(0, named=True)
        assert counts == {"s.missing": 2, "s.unknown": 1, "l.missing": 2, "l.unknown": 2}

    def test_raw_columns_can_be_kept_beside_the_codes(self) -> None:
        rows = pl.LazyFrame({"s": ["a", "b"], "label": [1, 0]})
        encoders = [enc.Vocabulary(name="s")]
        schema = fit(encoders, [rows], raw_columns(encoders, rows.collect_schema()))
        encoded = encode_frame(rows, schema, ["label", pl.col("s").alias("key")]).collect()
        assert encoded.to_dict(as_series=False) == {"s": [2, 3], "label": [1, 0], "key": ["a", "b"]}


class TestDocumentation:
    PAGE = (Path(__file__).parents[2] / "docs" / "encoders.md").read_text()

    def rows_after(self, heading: str) -> dict[str, list[str]]:
        """Return the rows of the tables under a heading, by their first cell."""
        section = re.split(
            r"^#+ ", self.PAGE.split(f"{heading}\n", maxsplit=1)[1], flags=re.MULTILINE
        )[0]
        lines = [line for line in section.splitlines() if line.startswith("| `")]
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        return {row[0].strip("`"): row[1:] for row in cells}

    @pytest.mark.parametrize("kind", enc.ENCODERS)
    def test_the_page_has_every_setting_with_its_default(self, kind: str) -> None:
        documented = self.rows_after(f"### {kind}")
        shared = {"encoder", "name", *enc.Codes.model_fields}
        fields = enc.ENCODERS[kind].model_fields
        assert set(documented) == set(fields) - shared
        for name, (default, _) in documented.items():
            value = fields[name].default
            expected = "required" if fields[name].is_required() else str(value or "none")
            assert default.strip("`") == ("0" if value == 0 else expected)

    def test_the_page_has_every_encoder_with_its_types_and_program(self) -> None:
        documented = self.rows_after("## The encoders")
        shared = set(enc.Codes.model_fields)
        assert set(documented) == {*enc.ENCODERS, *shared}
        for kind, cls in enc.ENCODERS.items():
            types, gives = documented[kind][:2]
            assert types == (", ".join(cls.accepts) or "two or more features")
            assert gives == ("a number" if cls.is_dense else "codes")

    def test_the_page_has_every_primitive(self) -> None:
        tags = {step.__struct_config__.tag for step in get_args(fs.Step)}
        assert set(self.rows_after("## Primitives")) == tags
