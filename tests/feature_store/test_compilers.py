"""No skew: the serialised graph in onnxruntime and Polars in both engines give equal codes.

Every primitive and every encoder meets at least 500 drawn batches, each with the values on which two
implementations differ first: missing in all its forms, infinities, the ends of int64, integers that
float64 cannot hold, edges and their neighbours, text that is empty, not ASCII, or ends in NUL.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnxruntime
import polars as pl
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from headwater.feature_store import encoders as enc
from headwater.feature_store import onnx_compiler, times
from headwater.feature_store import schema as fs
from headwater.feature_store.dtypes import DTYPES
from headwater.feature_store.errors import FeatureError
from headwater.feature_store.fit import fit
from headwater.feature_store.normalise import POLARS_TYPES, normalise
from headwater.feature_store.onnx_compiler import encoders_graph
from headwater.feature_store.polars_compiler import encode_frame

Values = Sequence[Any]
Encoded = dict[str, npt.NDArray[Any]]

INT64_MAX = 2**63 - 1
INTS = [fs.INT64_MIN, fs.INT64_MIN + 1, INT64_MAX, 2**53, 2**53 + 1, -(2**53) - 1, 0, -1]
DOUBLES = [
    *(math.nan, math.inf, -math.inf, 0.0, -0.0, 5e-324, -5e-324, 2.2250738585072014e-308),
    *(1.7976931348623157e308, -1.7976931348623157e308, 2.0**53, 2.0**63, 0.1, 2.0000000000000004),
    float(np.float32(0.1)),
]
STRINGS = [
    *("", "\0", "a", "a\0", "a\0\0", " ", "nan", "None", "0", "-0", "\u00e9", "e\u0301"),
    *("\u65e5\u672c", "\U0001f600", "x" * 40),
]
VALUES: dict[fs.Dtype, st.SearchStrategy[Any]] = {
    "int64": st.sampled_from([None, *INTS])
    | st.integers(-4, 12)
    | st.integers(fs.INT64_MIN, INT64_MAX),
    "double": st.sampled_from([None, *DOUBLES]) | st.integers(-9, 99).map(float) | st.floats(),
    "string": st.sampled_from([None, *STRINGS]) | st.text(max_size=4),
}
SPECIALS: dict[fs.Dtype, list[Any]] = {
    "int64": [None, *INTS],
    "double": [None, *DOUBLES],
    "string": [None, *STRINGS],
}

WRITTEN_TIMES = st.from_regex(times.PATTERN, fullmatch=True)
SPOILT_TIMES = st.builds(
    lambda text, place, other: text[: place % len(text)] + other + text[place % len(text) + 1 :],
    WRITTEN_TIMES,
    st.integers(0, 40),
    st.sampled_from(["", "0", "3", "9", "-", ":", " ", "T", "\u0663", "\n", "."]),
)
"""Texts that are nearly times: one character of one is another, or gone."""

many_examples = settings(
    max_examples=500, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
numbers = st.sampled_from(["int64", "double"])
finite = st.floats(allow_nan=False, allow_infinity=False)


def batch(dtype: fs.Dtype) -> st.SearchStrategy[list[Any]]:
    return st.lists(VALUES[dtype], max_size=12)


def encode_equally(schema: fs.Schema, values: Mapping[str, Values]) -> Encoded:
    """Encode by the serialised graph and by Polars in both engines, and hold the results equal.

    The schema goes through its JSON first, so that what is compared is what a file holds.
    """
    schema = msgspec.json.decode(b"".join(schema.json()), type=fs.Schema)
    types: dict[str, pl.DataType] = {
        raw.name: pl.List(POLARS_TYPES[raw.dtype]) if raw.is_list else POLARS_TYPES[raw.dtype]
        for raw in schema.raw
    }
    frame = pl.DataFrame({name: list(values[name]) for name in types}, schema=types)
    encoded = encode_frame(normalise(frame, schema.raw).lazy(), schema)
    in_memory = arrays(encoded.collect(engine="in-memory"))
    streaming = arrays(encoded.collect(engine="streaming"))
    graph = run_graph(schema, wire_inputs(schema, values))
    for column in schema.columns:
        name = column.name
        hold_equal(graph[name], in_memory[name], f"{name}: ONNX and Polars in memory")
        hold_equal(streaming[name], in_memory[name], f"{name}: Polars streaming and in memory")
    return graph


def wire_inputs(schema: fs.Schema, values: Mapping[str, Values]) -> dict[str, npt.NDArray[Any]]:
    """Return the graph's input tensors for raw values, missing ones written as on the wire."""
    inputs: dict[str, npt.NDArray[Any]] = {}
    for raw in schema.raw:
        missing = DTYPES[raw.dtype].missing
        rows = [(row or []) if raw.is_list else [row] for row in values[raw.name]]
        width = max((len(row) for row in rows), default=1)
        filled = [
            [missing if value is None else value for value in row] + [missing] * (width - len(row))
            for row in rows
        ]
        tensor = np.empty((len(rows), width), DTYPES[raw.dtype].numpy)
        tensor[...] = np.array(filled, tensor.dtype).reshape(tensor.shape)
        inputs[raw.name] = tensor
        if raw.is_list:
            lengths = [len(row) for row in rows]
            inputs[f"{raw.name}.length"] = np.array(lengths, np.int64).reshape(-1, 1)
    return inputs


def run_graph(schema: fs.Schema, inputs: Mapping[str, npt.NDArray[Any]]) -> Encoded:
    """Return what the serialised encoder graph gives, by column name."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = encoders_graph(schema).model()
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    names = [output.name for output in session.get_outputs()]
    outputs = session.run(names, dict(inputs))
    return {
        name.split(".", maxsplit=1)[1]: np.asarray(output)
        for name, output in zip(names, outputs, strict=True)
    }


def arrays(frame: pl.DataFrame) -> Encoded:
    """Return encoded Polars columns as [N, length] arrays."""
    assert sum(frame.null_count().row(0)) == 0, "an encoded column holds a null"
    return {
        series.name: series.to_numpy().reshape(frame.height, getattr(series.dtype, "size", 1))
        for series in frame.get_columns()
    }


def hold_equal(left: npt.NDArray[Any], right: npt.NDArray[Any], where: str) -> None:
    """Hold two encoded columns equal: codes exactly, numbers bit by bit (any NaN equals any)."""
    assert left.shape == right.shape, where
    if np.float32 in (left.dtype, right.dtype):
        assert left.dtype == right.dtype, where
        equal = (left.view(np.int32) == right.view(np.int32)) | (np.isnan(left) & np.isnan(right))
    else:
        equal = left == right
    assert equal.all(), f"{where}: {left[~equal][:4]} against {right[~equal][:4]}"


def column(name: str, raw: str, *steps: fs.Step, dense: bool = False) -> fs.EncodedColumn:
    length = next((step.length for step in steps if isinstance(step, fs.Pad)), 1)
    cardinality = 0 if dense else 10
    return fs.EncodedColumn(
        name=name,
        encoder="none",
        inputs=(raw,),
        steps=steps,
        cardinality=cardinality,
        length=length,
    )


def check_primitive(step: fs.Step, dtype: fs.Dtype, values: Values) -> Encoded:
    """Hold a primitive equal alone (`bare`), before `missing` (`whole`), and over lists (`list`)."""
    dense = isinstance(step, fs.Affine)
    raw = [fs.RawColumn(name="x", dtype=dtype)]
    columns = [
        column("bare", "x", step, dense=dense),
        column("whole", "x", step, fs.Missing(), dense=dense),
    ]
    data: dict[str, Values] = {"x": values}
    if not dense:
        raw.append(fs.RawColumn(name="l", dtype=dtype, is_list=True))
        columns.append(column("list", "l", step, fs.Missing(), fs.Pad(length=2)))
        data["l"] = [[value] for value in values]
    encoded = encode_equally(fs.Schema(raw=tuple(raw), columns=tuple(columns)), data)
    if not dense:
        padded = np.concatenate([encoded["whole"], np.zeros_like(encoded["whole"])], axis=1)
        hold_equal(encoded["list"], padded, "a list of one entry and a scalar")
    return encoded


def is_missing(value: Any) -> bool:
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or value in ("", fs.INT64_MIN)


def milliseconds(text: str | None) -> int | None:
    """Return what a text says by Python's own reader, within the form that `times` describes."""
    if text is None or re.fullmatch(times.PATTERN, text) is None:
        return None
    # In the middle of what Python's calendar reaches, where 400 years are always as long.
    year = 2000 + int(text[:4]) % 400
    shifted = f"{year}" + re.sub(r"([.][0-9]{1,6})[0-9]*", r"\1", text[4:])
    try:
        time = datetime.fromisoformat(shifted)
    except ValueError:
        return None  # a day that the month lacks
    utc = time.replace(tzinfo=None) - (time.utcoffset() or timedelta())
    eras = timedelta(days=146_097) * ((int(text[:4]) - year) // 400)
    return (utc - datetime(1970, 1, 1) + eras) // timedelta(milliseconds=1)  # noqa: DTZ001


class TestPrimitives:
    """One property a primitive: both compilers agree, and give what the primitive's text says."""

    @many_examples
    @given(data=st.data(), dtype=st.sampled_from(["int64", "string"]))
    def test_lookup(self, data: st.DataObject, dtype: fs.Dtype) -> None:
        drawn = data.draw(st.lists(VALUES[dtype], max_size=8, unique=True))
        keys = tuple(value for value in drawn if not is_missing(value))
        values = [*data.draw(batch(dtype)), *SPECIALS[dtype], *keys]
        codes = None
        if data.draw(st.booleans()):
            codes = tuple(data.draw(st.integers(1, 9)) for _ in keys)
        encoded = check_primitive(fs.Lookup(keys=keys, codes=codes), dtype, values)
        of_key = dict(zip(keys, codes or range(2, 2 + len(keys)), strict=True))
        assert encoded["bare"].ravel().tolist() == [of_key.get(value, 1) for value in values]

    @many_examples
    @given(data=st.data(), dtype=numbers, compared=st.sampled_from([0, 128]))
    def test_edges(self, data: st.DataObject, dtype: fs.Dtype, compared: int) -> None:
        drawn = data.draw(st.lists(finite | st.sampled_from([0.5, 1.0, 2.0**53]), max_size=9))
        edges = sorted({edge + 0.0 for edge in drawn})
        values = [*data.draw(batch(dtype)), *SPECIALS[dtype], *edges_and_neighbours(edges, dtype)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(onnx_compiler, "COMPARED_EDGES", compared)
            encoded = check_primitive(fs.Edges(values=tuple(edges)), dtype, values)
        assert encoded["bare"].ravel().tolist() == [passed(edges, value, dtype) for value in values]

    @many_examples
    @given(
        data=st.data(),
        dtype=numbers,
        scale=st.just(1.0) | finite.filter(lambda scale: abs(scale - 1) >= fs.Affine.NEAR_ONE),
        offset=st.just(0.0) | finite.filter(lambda term: abs(term) >= fs.Affine.NEAR_ZERO),
    )
    def test_affine(
        self, data: st.DataObject, dtype: fs.Dtype, scale: float, offset: float
    ) -> None:
        values = [*data.draw(batch(dtype)), *SPECIALS[dtype]]
        encoded = check_primitive(fs.Affine(scale=scale, offset=offset), dtype, values)
        with np.errstate(all="ignore"):
            wire = np.array([DTYPES[dtype].missing if v is None else v for v in values], np.float64)
            scaled = wire if scale == 1 else wire * scale
            expected = (scaled if offset == 0 else scaled + offset).astype(np.float32)
        hold_equal(encoded["bare"].ravel(), expected, "affine")

    @many_examples
    @given(
        data=st.data(),
        dtype=st.sampled_from(["int64", "string"]),
        num_buckets=st.integers(1, 2**31 - 2),
        seed=st.integers(0, 2**31 - 1),
    )
    def test_hash(self, data: st.DataObject, dtype: fs.Dtype, num_buckets: int, seed: int) -> None:
        values = [*data.draw(batch(dtype)), *SPECIALS[dtype]]
        encoded = check_primitive(fs.Hash(num_buckets=num_buckets, seed=seed), dtype, values)
        assert encoded["bare"].min() >= 2
        assert encoded["bare"].max() < 2 + num_buckets

    @many_examples
    @given(
        values=batch("int64"),
        seconds=st.lists(st.integers(-(10**10), 10**10), max_size=8),
        part=st.sampled_from(["hour", "weekday", "weekend", "hour_of_week"]),
        unit=st.sampled_from(["s", "ms", "us"]),
        offset=st.integers(-1439, 1439),
    )
    def test_calendar(
        self, values: list[Any], seconds: list[int], part: Any, unit: Any, offset: int
    ) -> None:
        step = fs.Calendar(part=part, unit=unit, utc_offset_minutes=offset)
        whole = [second * step.hour // 3600 for second in seconds]
        encoded = check_primitive(step, "int64", [*whole, *values, *SPECIALS["int64"]])
        expected = [calendar_code(second, part, offset) for second in seconds]
        assert encoded["whole"].ravel().tolist()[: len(whole)] == expected

    @many_examples
    @given(data=st.data(), dtype=st.sampled_from(["int64", "double", "string"]))
    def test_missing(self, data: st.DataObject, dtype: fs.Dtype) -> None:
        values = [*data.draw(batch(dtype)), *SPECIALS[dtype]]
        fill = data.draw(st.integers(0, 9).map(float))
        raw = (fs.RawColumn(name="x", dtype=dtype),)
        step = fs.Affine(scale=0.0, offset=7.0) if dtype == "double" else fs.Lookup(keys=())
        dense = dtype == "double"
        filled = column("x", "x", step, fs.Missing(fill=fill), dense=dense)
        encoded = encode_equally(fs.Schema(raw=raw, columns=(filled,)), {"x": values})
        for value, code in zip(values, encoded["x"].ravel(), strict=True):
            assert (code == fill) if is_missing(value) else (code != fill or fill in (1.0, 7.0))

    @many_examples
    @given(
        rows=st.lists(st.none() | st.lists(st.none() | st.integers(0, 4), max_size=7), max_size=9),
        length=st.integers(1, 9),
        keep=st.sampled_from(["tail", "head"]),
    )
    def test_pad(self, rows: list[list[int | None] | None], length: int, keep: Any) -> None:
        raw = (fs.RawColumn(name="l", dtype="int64", is_list=True),)
        steps = (fs.Lookup(keys=(0, 1, 2)), fs.Missing(), fs.Pad(length=length, keep=keep))
        schema = fs.Schema(raw=raw, columns=(column("l", "l", *steps),))
        encoded = encode_equally(schema, {"l": rows})
        for row, codes in zip(rows, encoded["l"].tolist(), strict=True):
            entries = [{None: 0, 0: 2, 1: 3, 2: 4}.get(value, 1) for value in row or []]
            kept = entries[-length:] if keep == "tail" else entries[:length]
            assert codes == kept + [0] * (length - len(kept))

    @many_examples
    @given(rows=st.lists(st.tuples(*[st.none() | st.integers(0, 3)] * 3), max_size=12))
    def test_cross(self, rows: list[tuple[int | None, ...]]) -> None:
        names = ("a", "b", "c")
        raw = tuple(fs.RawColumn(name=name, dtype="int64") for name in names)
        single = [column(name, name, fs.Lookup(keys=(0, 1)), fs.Missing()) for name in names]
        crossed = fs.EncodedColumn(
            name="crossed",
            encoder="crossed",
            inputs=names,
            steps=(fs.Cross(cardinalities=(4, 4, 4)), fs.Lookup(keys=(42, 27)), fs.Missing()),
            cardinality=4,
        )
        schema = fs.Schema(raw=raw, columns=(*single, crossed))
        values = {name: [row[i] for row in rows] for i, name in enumerate(names)}
        encoded = encode_equally(schema, values)
        for row, code in zip(rows, encoded["crossed"].ravel(), strict=True):
            codes = [{None: 0, 0: 2, 1: 3}.get(value, 1) for value in row]
            number = codes[0] * 16 + codes[1] * 4 + codes[2]
            assert code == (0 if 0 in codes else {42: 2, 27: 3}.get(number, 1))


PARTS = st.text("ab |\u00e9", max_size=3)


class TestText:
    """Text that the graph itself cuts up or reads, as a file's reader would."""

    @many_examples
    @given(
        rows=st.lists(st.none() | st.lists(PARTS, max_size=5), max_size=6),
        separator=st.sampled_from(["|", "||", ", ", "a", "\u00e9"]),
        keep=st.sampled_from(["tail", "head"]),
    )
    def test_split(self, rows: list[list[str] | None], separator: str, keep: Any) -> None:
        texts = [None if row is None else separator.join(row) for row in rows]
        code_of = {"": 0, "a": 2, "b": 3, " ": 4, "ab": 5, "\u00e9": 6}
        lookup = (fs.Lookup(keys=tuple(code_of)[1:]), fs.Missing())
        steps = (fs.Split(separator=separator), *lookup, fs.Pad(length=3, keep=keep))
        raw = (fs.RawColumn(name="l", dtype="string"),)
        encoded = encode_equally(
            fs.Schema(raw=raw, columns=(column("l", "l", *steps),)), {"l": texts}
        )
        for text, codes in zip(texts, encoded["l"].tolist(), strict=True):
            entries = [code_of.get(part, 1) for part in (text.split(separator) if text else [])]
            kept = entries[-3:] if keep == "tail" else entries[:3]
            assert codes == kept + [0] * (3 - len(kept))

    # Its graph is large: fewer of them, and more texts in each.
    @settings(many_examples, max_examples=80)
    @given(texts=st.lists(WRITTEN_TIMES | SPOILT_TIMES | VALUES["string"], max_size=50))
    def test_time(self, texts: list[str | None]) -> None:
        expected = [milliseconds(text) for text in texts]
        keys = tuple(dict.fromkeys(ms for ms in expected if ms is not None))
        lookup = (fs.Lookup(keys=keys), fs.Missing())
        columns = (
            column("x", "x", fs.Time(), *lookup),
            column("l", "l", fs.Time(), *lookup, fs.Pad(length=1)),
            column("s", "s", fs.Split(separator="|"), fs.Time(), *lookup, fs.Pad(length=1)),
        )
        raw = (
            fs.RawColumn(name="x", dtype="string"),
            fs.RawColumn(name="l", dtype="string", is_list=True),
            fs.RawColumn(name="s", dtype="string"),
        )
        data: dict[str, Values] = {"x": texts, "l": [[text] for text in texts], "s": texts}
        encoded = encode_equally(fs.Schema(raw=raw, columns=columns), data)
        codes = [0 if ms is None else 2 + keys.index(ms) for ms in expected]
        assert encoded["x"].ravel().tolist() == codes
        assert encoded["l"].ravel().tolist() == codes


def edges_and_neighbours(edges: Sequence[float], dtype: fs.Dtype) -> list[float] | list[int]:
    if dtype == "double":
        return [
            n for e in edges for n in (math.nextafter(e, -math.inf), e, math.nextafter(e, math.inf))
        ]
    inside = [int(edge) for edge in edges if abs(edge) < 2**62]
    return [near for whole in inside for near in (whole - 1, whole, whole + 1)]


def passed(edges: Sequence[float], value: Any, dtype: fs.Dtype) -> int:
    wire = float(DTYPES[dtype].missing if value is None else value)
    return 2 + sum(edge <= wire for edge in edges)


def calendar_code(second: int, part: str, offset_minutes: int) -> int:
    time = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=second, minutes=offset_minutes)
    day = time.weekday()
    parts = {"hour": time.hour, "weekday": day, "weekend": int(day >= 5)}
    return 2 + (parts | {"hour_of_week": day * 24 + time.hour})[part]


FITTED: list[tuple[str, fs.Dtype, dict[str, Any]]] = [
    ("vocabulary", "string", {"min_count": 2}),
    ("vocabulary", "int64", {"max_size": 3}),
    ("hashed", "string", {"num_buckets": 7}),
    ("hashed", "int64", {"num_buckets": 1000, "seed": 3}),
    ("log_buckets", "double", {}),
    ("log_buckets", "int64", {"min_count": 2}),
    ("quantiles", "double", {"num_buckets": 4}),
    ("quantiles", "int64", {"num_buckets": 3}),
    ("standardized", "double", {}),
    ("standardized", "int64", {}),
    ("identity", "double", {}),
    ("identity", "int64", {}),
    ("calendar", "int64", {"part": "hour", "unit": "s", "utc_offset_minutes": -90}),
]


class TestEncoders:
    """One property an encoder: fitted on drawn rows, it gives equal codes for other drawn rows."""

    @pytest.mark.parametrize(
        ("kind", "dtype", "settings_"), FITTED, ids=[f"{kind}-{dtype}" for kind, dtype, _ in FITTED]
    )
    @many_examples
    @given(data=st.data())
    def test_scalars_and_lists(
        self, kind: str, dtype: fs.Dtype, settings_: dict[str, Any], data: st.DataObject
    ) -> None:
        train = data.draw(batch(dtype))
        cls = enc.ENCODERS[kind]
        encoders = [cls.model_validate({"name": "x", **settings_})]
        raw = {"x": fs.RawColumn(name="x", dtype=dtype)}
        if not cls.is_dense:
            of_list = {"name": "l", "length": data.draw(st.integers(1, 3)), **settings_}
            encoders.append(cls.model_validate(of_list))
            raw["l"] = fs.RawColumn(name="l", dtype=dtype, is_list=True)
        try:
            schema = fit(encoders, fragments_of({"x": train, "l": in_lists(train)}, dtype), raw)
        except FeatureError:
            # Refused: the spread of the training values is beyond what float64 can scale.
            assert kind == "standardized"
            reject()
        edges = [
            e for c in schema.columns for s in c.steps if isinstance(s, fs.Edges) for e in s.values
        ]
        values = [
            *data.draw(batch(dtype)),
            *train,
            *SPECIALS[dtype],
            *edges_and_neighbours(edges, dtype),
        ]
        encoded = encode_equally(schema, {"x": values, "l": in_lists(values)})
        if not cls.is_dense:
            codes = encoded["x"].ravel()
            assert [bool(code == 0) for code in codes] == [is_missing(value) for value in values]
            assert codes.max() < schema.columns[0].cardinality

    @many_examples
    @given(data=st.data(), min_count=st.integers(1, 2))
    def test_crossed(self, data: st.DataObject, min_count: int) -> None:
        row = st.tuples(VALUES["string"], VALUES["double"])
        train, rows = data.draw(st.lists(row, max_size=9)), data.draw(st.lists(row, max_size=9))
        encoders = [
            enc.Vocabulary(name="s", min_count=2),
            enc.Quantiles(name="d", num_buckets=3),
            enc.Crossed(name="both", columns=["s", "d"], min_count=min_count),
        ]
        types: dict[str, fs.Dtype] = {"s": "string", "d": "double"}
        frame = pl.DataFrame(
            {"s": [s for s, _ in train], "d": [d for _, d in train]},
            schema={name: POLARS_TYPES[dtype] for name, dtype in types.items()},
        )
        raw = {name: fs.RawColumn(name=name, dtype=dtype) for name, dtype in types.items()}
        schema = fit(encoders, [frame.lazy()], raw)
        rows = [*rows, *train]
        encode_equally(schema, {"s": [s for s, _ in rows], "d": [d for _, d in rows]})


def in_lists(values: Values) -> list[list[Any] | None]:
    """Return as many rows as values: lists of one to three of them, an empty one, a null."""
    rows = [list(values[i : i + 1 + i % 3]) for i in range(len(values))]
    return [None if i % 7 == 5 else [] if i % 7 == 6 else row for i, row in enumerate(rows)]


def fragments_of(values: Mapping[str, Values], dtype: fs.Dtype) -> list[pl.LazyFrame]:
    """Return the rows in two fragments, the first of three rows."""
    types = {"x": POLARS_TYPES[dtype], "l": pl.List(POLARS_TYPES[dtype])}
    frame = pl.DataFrame({name: list(values[name]) for name in types}, schema=types).lazy()
    return [frame.slice(0, 3), frame.slice(3)]
