"""What a release relies on in the encoder graph, beyond codes equal to those of Polars."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest

from headwater.feature_store import onnx_compiler
from headwater.feature_store import schema as fs
from headwater.feature_store.errors import FeatureError
from headwater.feature_store.onnx_compiler import Dim, encoders_graph

RAW = (
    fs.RawColumn(name="s", dtype="string"),
    fs.RawColumn(name="d", dtype="double"),
    fs.RawColumn(name="l", dtype="string", is_list=True),
)


def column(
    name: str, raw: tuple[str, ...], *steps: fs.Step, cardinality: int = 4, length: int = 1
) -> fs.EncodedColumn:
    return fs.EncodedColumn(
        name=name,
        encoder="none",
        inputs=raw,
        steps=steps,
        cardinality=cardinality,
        length=length,
    )


LOOKUP = fs.Lookup(keys=("a", "b"))
SCHEMA = fs.Schema(
    raw=RAW,
    columns=(
        column("s", ("s",), LOOKUP, fs.Missing()),
        column("h", ("s",), fs.Hash(num_buckets=2), fs.Missing()),
        column("d", ("d",), fs.Edges(values=(3.0,)), fs.Missing()),
        column("z", ("d",), fs.Affine(scale=2.0, offset=1.0), fs.Missing(), cardinality=0),
        column("l", ("l",), LOOKUP, fs.Missing(), fs.Pad(length=2), length=2),
        column(
            "both",
            ("s", "d"),
            fs.Cross(cardinalities=(4, 4)),
            fs.Lookup(keys=(10, 15)),
            fs.Missing(),
        ),
    ),
)


def run(
    schema: fs.Schema,
    inputs: Mapping[str, npt.NDArray[Any]],
    batch: Mapping[str, Dim] | None = None,
) -> dict[str, npt.NDArray[Any]]:
    model = encoders_graph(schema, batch).model()
    session = onnxruntime.InferenceSession(model.SerializeToString())
    names = [output.name for output in session.get_outputs()]
    outputs = session.run(names, dict(inputs))
    return {name: np.asarray(output) for name, output in zip(names, outputs, strict=True)}


def inputs(*, rows: int) -> dict[str, npt.NDArray[Any]]:
    return {
        "s": np.full((rows, 1), "a", object),
        "d": np.array([[1.0], [math.nan], [5.0]])[:rows],
        "l": np.full((rows, 2), "b", object),
        "l.length": np.full((rows, 1), 2),
    }


def test_only_murmurhash_is_outside_the_standard_operators() -> None:
    model = encoders_graph(SCHEMA).model()
    onnx.checker.check_model(model)
    beyond = {node.op_type for node in model.graph.node if node.domain == "com.microsoft"}
    assert beyond == {"MurmurHash3"}
    assert {node.domain for node in model.graph.node} == {"", "ai.onnx.ml", "com.microsoft"}
    assert {opset.domain: opset.version for opset in model.opset_import}[""] == 18
    assert model.ir_version == 10


def test_inputs_and_outputs_have_the_names_and_shapes_of_a_release() -> None:
    graph = encoders_graph(SCHEMA, {"s": 1, "l": "R"})
    types = onnx.TensorProto.DataType
    infos = [
        (
            info.name,
            types.Name(info.type.tensor_type.elem_type),
            *(dim.dim_param or dim.dim_value for dim in info.type.tensor_type.shape.dim),
        )
        for info in (*graph.inputs, *graph.outputs)
    ]
    assert infos == [
        ("s", "STRING", 1, 1),
        ("d", "DOUBLE", "N", 1),
        ("l", "STRING", "R", "l.L"),
        ("l.length", "INT64", "R", 1),
        ("code.s", "INT64", 1, 1),
        ("code.h", "INT64", 1, 1),
        ("code.d", "INT64", "N", 1),
        ("dense.z", "FLOAT", "N", 1),
        ("code.l", "INT64", "R", 2),
        ("code.both", "INT64", "N", 1),
    ]


def test_one_context_row_is_crossed_with_many_candidates() -> None:
    every = inputs(rows=3)
    once = run(SCHEMA, every | {"s": every["s"][:1]}, {"s": 1})
    assert once["code.s"].tolist() == [[2]]
    assert once["code.both"].tolist() == [[2], [0], [1]]
    assert run(SCHEMA, every)["code.both"].tolist() == [[2], [0], [1]]


def test_no_rows_give_no_codes() -> None:
    outputs = run(SCHEMA, inputs(rows=0))
    assert {name: output.shape for name, output in outputs.items()} == {
        "code.s": (0, 1),
        "code.h": (0, 1),
        "code.d": (0, 1),
        "dense.z": (0, 1),
        "code.l": (0, 2),
        "code.both": (0, 1),
    }


@pytest.mark.parametrize(("length", "codes"), [(5, [3, 3]), (-1, [0, 0]), (1, [3, 0]), (0, [0, 0])])
def test_a_length_beyond_the_list_reads_as_what_is_there(length: int, codes: list[int]) -> None:
    given = inputs(rows=1) | {"l.length": np.array([[length]])}
    assert run(SCHEMA, given)["code.l"].tolist() == [codes]


def test_a_list_tensor_without_width_is_an_empty_list() -> None:
    given = inputs(rows=1) | {"l": np.empty((1, 0), object), "l.length": np.array([[0]])}
    assert run(SCHEMA, given)["code.l"].tolist() == [[0, 0]]


@pytest.mark.parametrize("num_edges", [0, 1, 2, 127, 128, 129, 1000])
def test_edges_are_counted_whether_compared_or_searched(num_edges: int) -> None:
    edges = np.sort(np.random.default_rng(num_edges).normal(size=num_edges))
    values = np.concatenate(
        [edges, np.nextafter(edges, -9), np.nextafter(edges, 9), [-9, 9, np.inf]]
    )
    step = fs.Edges(values=tuple(edges.tolist()))
    schema = fs.Schema(raw=RAW[1:2], columns=(column("d", ("d",), step),))
    codes = run(schema, {"d": values.reshape(-1, 1)})["code.d"]
    assert codes.ravel().tolist() == (2 + np.searchsorted(edges, values, side="right")).tolist()


def test_keys_differing_by_a_trailing_nul_keep_their_own_codes() -> None:
    step = fs.Lookup(keys=("a", "a\0", "a\0\0"))
    schema = fs.Schema(raw=RAW[:1], columns=(column("s", ("s",), step, cardinality=5),))
    values = np.array([["a\0\0"], ["a"], ["a\0"], ["a\0\0\0"]], object)
    assert run(schema, {"s": values})["code.s"].ravel().tolist() == [4, 2, 3, 1]


def test_more_keys_than_a_graph_can_hold_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_compiler, "MAX_INTEGER_KEYS", 1)
    with pytest.raises(FeatureError, match=r"hold 2 integers.*'both' 2\. Set a higher `min_count`"):
        encoders_graph(SCHEMA)
