"""Programs as standard ONNX nodes: the graph that a release runs on raw features.

Operator set 18, or 20 where text is split or read as a time, and ai.onnx.ml 4; onnxruntime's
`MurmurHash3` (domain com.microsoft) is the one operator outside the standard. Raw columns
are the inputs: `[N, 1]` int64, double or string, a list `[N, L]` beside `<name>.length`. Outputs are
`code.<name>` (int64 `[N, length]`) and `dense.<name>` (float32 `[N, 1]`). Two inputs may have different
numbers of rows, as one context beside many candidates: only `cross` joins columns, and it broadcasts.

The other compiler of the same programs is `polars_compiler`; a test holds that both give equal
codes.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import nan

import numpy as np
from numpy.typing import ArrayLike
from onnx import TensorProto, ValueInfoProto, helper, numpy_helper

from headwater.feature_store import onnx_times
from headwater.feature_store import schema as fs
from headwater.feature_store.dtypes import DTYPES
from headwater.feature_store.errors import FeatureError, largest
from headwater.feature_store.onnx_graph import LEAST_OPSET, EncoderGraph, Tensor, free_prefix

COMPARED_EDGES = 128
"""Up to so many edges are compared one and all; more take a binary search."""

MAX_INTEGER_KEYS = (2**31 - 2**26) // 16
"""A key and its code take 16 bytes, and a graph with its keys, one message of Protobuf, less than 2 GiB."""

Dim = str | int


def encoders_graph(schema: fs.Schema, batch: Mapping[str, Dim] | None = None) -> EncoderGraph:
    """Return the graph of all columns of a schema.

    `batch` gives the first dimension of raw inputs by name: a symbol, or 1 for context that a
    request gives once; "N" where it says nothing. A crossed column has the rows of its inputs that
    are not 1. FeatureError where the keys are more than a graph can hold.
    """
    _check_integer_keys(schema)
    batch = batch or {}
    graph = EncoderGraph(free_prefix("encode/", [column.name for column in schema.raw]))
    raw = {column.name: column for column in schema.raw}
    for column in schema.raw:
        rows = batch.get(column.name, "N")
        width = f"{column.name}.L" if column.is_list else 1
        graph.inputs.append(_info(Tensor(column.name, _element(column.dtype)), [rows, width]))
        if column.is_list:
            length = Tensor(f"{column.name}.length", TensorProto.INT64)
            graph.inputs.append(_info(length, [rows, 1]))

    encoded: dict[str, Tensor] = {}
    rows_of: dict[str, Dim] = {}
    masks: dict[str, Tensor] = {}
    read: dict[tuple[str, fs.Step], tuple[Tensor, Tensor | None]] = {}
    for column in schema.columns:
        steps = column.steps
        length: Tensor | None = None
        if isinstance(steps[0], fs.Cross):
            wire = _cross(graph, [encoded[name] for name in column.inputs], steps[0])
            steps = steps[1:]
            rows_of[column.name] = _joint_rows([rows_of[name] for name in column.inputs])
        else:
            source = raw[column.inputs[0]]
            wire = Tensor(source.name, _element(source.dtype))
            length = Tensor(f"{wire.name}.length", TensorProto.INT64)
            rows_of[column.name] = batch.get(source.name, "N")
            while isinstance(steps[0], fs.Split | fs.Time):
                key = wire.name, steps[0]
                if key not in read:
                    read[key] = (
                        _split(graph, wire, steps[0])
                        if isinstance(steps[0], fs.Split)
                        else (onnx_times.milliseconds(graph, wire), length)
                    )
                wire, length = read[key]
                steps = steps[1:]
        value = wire
        for step in steps:
            if isinstance(step, fs.Missing):
                if wire.name not in masks:
                    masks[wire.name] = _is_missing(graph, wire)
                fill = graph.constant(step.fill, value.element)
                value = graph.add("Where", masks[wire.name], fill, value, element=value.element)
            elif isinstance(step, fs.Pad):
                assert length is not None, "a crossed column is no list"
                value = _pad(graph, value, length, step)
            else:
                value = _PRIMITIVES[type(step)](graph, value, step)
        output = Tensor(f"{'dense' if column.is_dense else 'code'}.{column.name}", value.element)
        graph.nodes.append(helper.make_node("Identity", [value.name], [output.name]))
        graph.outputs.append(_info(output, [rows_of[column.name], column.length]))
        encoded[column.name] = output
    return graph


def least_opset(steps: Iterable[fs.Step]) -> int:
    """Return the operator set that steps need: 20 where they cut up or read text."""
    return 20 if any(isinstance(step, fs.Split | fs.Time) for step in steps) else LEAST_OPSET


def _check_integer_keys(schema: fs.Schema) -> None:
    counts = {
        column.name: len(step.keys)
        for column in schema.columns
        for step in column.steps
        if isinstance(step, fs.Lookup) and isinstance(step.keys, array)
    }
    if sum(counts.values()) > MAX_INTEGER_KEYS:
        raise FeatureError(
            f"vocabularies hold {sum(counts.values()):,} integers and combinations, a release at most "
            f"{MAX_INTEGER_KEYS:,}, since a graph is a file below 2 GiB; the largest: {largest(counts)}. "
            f"Set a higher `min_count` or a `max_size` there, or leave crossed features out."
        )


def _split(graph: EncoderGraph, text: Tensor, step: fs.Split) -> tuple[Tensor, Tensor]:
    """Return the parts of each text, [N, L] filled up with '', and how many there are, [N, 1]."""
    flat = graph.add("Reshape", text, graph.constant([-1]), element=TensorProto.STRING)
    parts, counts = graph.add_many(
        "StringSplit",
        flat,
        elements=(TensorProto.STRING, TensorProto.INT64),
        delimiter=step.separator,
    )
    column = graph.constant([-1, 1])
    return parts, graph.add("Reshape", counts, column, element=TensorProto.INT64)


def _info(tensor: Tensor, dims: Sequence[Dim]) -> ValueInfoProto:
    return helper.make_tensor_value_info(tensor.name, tensor.element, list(dims))


def _element(dtype: fs.Dtype) -> int:
    return helper.np_dtype_to_tensor_dtype(DTYPES[dtype].numpy)


def _joint_rows(rows: Sequence[Dim]) -> Dim:
    many = sorted({str(dim) for dim in rows if dim != 1})
    assert len(many) <= 1, f"columns with rows {many} cannot be crossed"
    return next((dim for dim in rows if dim != 1), 1)


def _is_missing(graph: EncoderGraph, wire: Tensor) -> Tensor:
    if wire.element == TensorProto.DOUBLE:
        return graph.add("IsNaN", wire, element=TensorProto.BOOL)
    if wire.element == TensorProto.INT64:
        return graph.add("Equal", wire, graph.constant(fs.INT64_MIN), element=TensorProto.BOOL)
    # Equal takes strings from opset 19 on; a LabelEncoder with one key does the same.
    return graph.cast(_label(graph, wire, [""], [1], default=0), TensorProto.BOOL)


def _label(
    graph: EncoderGraph,
    value: Tensor,
    keys: Sequence[int | str],
    codes: ArrayLike,
    default: int,
) -> Tensor:
    """Add a LabelEncoder from int64 or string to int64."""
    return graph.add(
        "LabelEncoder",
        value,
        element=TensorProto.INT64,
        keys_tensor=_key_tensor(keys, value.element),
        values_tensor=numpy_helper.from_array(np.asarray(codes, np.int64), "values"),
        default_tensor=numpy_helper.from_array(np.asarray([default], np.int64), "default"),
    )


def _key_tensor(keys: Sequence[int | str], element: int) -> TensorProto:
    if element == TensorProto.INT64:
        return numpy_helper.from_array(np.asarray(keys, np.int64), "keys")
    tensor = TensorProto(name="keys", data_type=TensorProto.STRING, dims=[len(keys)])
    # Written directly: helper.make_tensor goes through numpy, which strips trailing NULs.
    tensor.string_data.extend(str(key).encode() for key in keys)
    return tensor


def _lookup(graph: EncoderGraph, value: Tensor, step: fs.Lookup) -> Tensor:
    keys = step.keys
    codes = step.codes or np.arange(fs.FIRST_CODE, fs.FIRST_CODE + len(keys))
    if not keys:
        # LabelEncoder wants a key: the missing value, which is as unknown as all others.
        keys = [fs.INT64_MIN if value.element == TensorProto.INT64 else ""]
        codes = [fs.UNKNOWN_CODE]
    return _label(graph, value, keys, codes, default=fs.UNKNOWN_CODE)


def _edges(graph: EncoderGraph, value: Tensor, step: fs.Edges) -> Tensor:
    number = graph.cast(value, TensorProto.DOUBLE)
    edges = step.values or (nan,)
    search = _compare_all if len(edges) <= COMPARED_EDGES else _binary_search
    return _first_code(graph, search(graph, number, edges))


def _compare_all(graph: EncoderGraph, number: Tensor, edges: Sequence[float]) -> Tensor:
    """Count the edges at or below the number."""
    last = graph.constant([-1])
    column = graph.add("Unsqueeze", number, last, element=TensorProto.DOUBLE)
    passed = _at_least(graph, column, graph.constant(edges, TensorProto.DOUBLE))
    return graph.add("ReduceSum", passed, last, element=TensorProto.INT64, keepdims=0)


def _binary_search(graph: EncoderGraph, number: Tensor, edges: Sequence[float]) -> Tensor:
    """Count the edges at or below the number, a bit of the count at a time, the highest first."""
    num_bits = len(edges).bit_length()
    # NaN behind the edges: nothing is at or above it.
    table = graph.constant([*edges, *[nan] * (2**num_bits - 1 - len(edges))], TensorProto.DOUBLE)
    count = graph.constant(0)
    for bit in reversed(range(num_bits)):
        probe = graph.add("Add", count, graph.constant(2**bit - 1), element=TensorProto.INT64)
        edge = graph.add("Gather", table, probe, element=TensorProto.DOUBLE, axis=0)
        passed = _at_least(graph, number, edge)
        gained = graph.add("Mul", passed, graph.constant(2**bit), element=TensorProto.INT64)
        count = graph.add("Add", count, gained, element=TensorProto.INT64)
    return count


def _at_least(graph: EncoderGraph, number: Tensor, edge: Tensor) -> Tensor:
    passed = graph.add("GreaterOrEqual", number, edge, element=TensorProto.BOOL)
    return graph.cast(passed, TensorProto.INT64)


def _affine(graph: EncoderGraph, value: Tensor, step: fs.Affine) -> Tensor:
    double = TensorProto.DOUBLE
    number = graph.cast(value, double)
    if step.scale != 1:
        assert abs(step.scale - 1) >= step.NEAR_ONE, "onnxruntime would drop the factor"
        number = graph.add("Mul", number, graph.constant(step.scale, double), element=double)
    if step.offset != 0:
        assert abs(step.offset) >= step.NEAR_ZERO, "onnxruntime would drop the term"
        number = graph.add("Add", number, graph.constant(step.offset, double), element=double)
    return graph.cast(number, TensorProto.FLOAT)


def _hash(graph: EncoderGraph, value: Tensor, step: fs.Hash) -> Tensor:
    text = graph.cast(value, TensorProto.STRING)
    unsigned = graph.add(
        "MurmurHash3", text, element=TensorProto.UINT32, positive=1, seed=step.seed
    )
    return _first_code(
        graph, _modulo(graph, graph.cast(unsigned, TensorProto.INT64), step.num_buckets)
    )


def _calendar(graph: EncoderGraph, value: Tensor, step: fs.Calendar) -> Tensor:
    week, day = 168 * step.hour, 24 * step.hour
    # Reduced to one week before anything is added, so that no time overflows.
    utc = _modulo(graph, value, week)
    shifted = graph.add("Add", utc, graph.constant(step.shift), element=TensorProto.INT64)
    local = _modulo(graph, shifted, week)
    if step.part == "weekend":
        passed = graph.constant(5 * day)
        part = graph.add("GreaterOrEqual", local, passed, element=TensorProto.BOOL)
        return _first_code(graph, graph.cast(part, TensorProto.INT64))
    unit = graph.constant(day if step.part == "weekday" else step.hour)
    part = graph.add("Div", local, unit, element=TensorProto.INT64)
    return _first_code(graph, _modulo(graph, part, 24) if step.part == "hour" else part)


def _first_code(graph: EncoderGraph, number: Tensor) -> Tensor:
    return graph.add("Add", number, graph.constant(fs.FIRST_CODE), element=TensorProto.INT64)


def _modulo(graph: EncoderGraph, number: Tensor, divisor: int) -> Tensor:
    """Return the remainder with the sign of the divisor."""
    return graph.add("Mod", number, graph.constant(divisor), element=TensorProto.INT64)


def _cross(graph: EncoderGraph, codes: Sequence[Tensor], step: fs.Cross) -> Tensor:
    """Return the mixed-radix number of codes, INT64_MIN where any is missing; rows broadcast."""
    int64 = TensorProto.INT64
    number = codes[0]
    for code, cardinality in zip(codes[1:], step.cardinalities[1:], strict=True):
        number = graph.add("Mul", number, graph.constant(cardinality), element=int64)
        number = graph.add("Add", number, code, element=int64)
    least = graph.add("Min", *codes, element=int64)
    missing = graph.add("Equal", least, graph.constant(fs.MISSING_CODE), element=TensorProto.BOOL)
    return graph.add("Where", missing, graph.constant(fs.INT64_MIN), number, element=int64)


def _pad(graph: EncoderGraph, codes: Tensor, length: Tensor, step: fs.Pad) -> Tensor:
    """Return [N, step.length] of the first `length` entries of each row, zeros behind them."""
    int64 = TensorProto.INT64
    zero = graph.constant(fs.MISSING_CODE)
    width = graph.add("Shape", codes, element=int64, start=1)
    # A length beyond the tensor, or below 0, reads as what is there.
    valid = graph.add("Max", graph.add("Min", length, width, element=int64), zero, element=int64)
    wide = graph.add("Pad", codes, graph.constant([0, 0, 0, step.length]), zero, element=int64)
    positions = graph.constant([list(range(step.length))])
    if step.keep == "head":
        bounds = [graph.constant([bound]) for bound in (0, step.length, 1)]
        kept = graph.add("Slice", wide, *bounds, element=int64)
    else:
        surplus = graph.add("Sub", valid, graph.constant(step.length), element=int64)
        start = graph.add("Max", surplus, zero, element=int64)
        index = graph.add("Add", start, positions, element=int64)
        kept = graph.add("GatherElements", wide, index, element=int64, axis=1)
    inside = graph.add("Less", positions, valid, element=TensorProto.BOOL)
    return graph.add("Where", inside, kept, zero, element=int64)


_PRIMITIVES: dict[type, Callable[..., Tensor]] = {
    fs.Lookup: _lookup,
    fs.Edges: _edges,
    fs.Affine: _affine,
    fs.Hash: _hash,
    fs.Calendar: _calendar,
}
