"""Many tensors decoded at once are what each is by itself, and anything odd is left to that."""

from __future__ import annotations

import json
import struct
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.feature_store.schema import INT64_MIN
from headwater.serving import joining
from headwater.serving.errors import RequestError
from headwater.serving.manifest import Input
from headwater.serving.protocols import oip_alike
from headwater.serving.protocols.json_values import decode_json
from headwater.serving.protocols.oip_alike import DATATYPES, decode_alike, groups_of
from headwater.serving.protocols.oip_messages import InferRequest
from headwater.serving.protocols.oip_tensors import decode_tensors
from headwater.serving.signature import Signature
from headwater.serving.tensors import MISSING

SIGNATURE = Signature(
    [
        Input(name="age", dtype="int64", role="context"),
        Input(name="price", dtype="double"),
        Input(name="weight", dtype="double"),
        Input(name="item", dtype="int64"),
        Input(name="shop", dtype="int64"),
        Input(name="brand", dtype="string"),
        Input(name="colour", dtype="string"),
        Input(name="tags", dtype="string", is_list=True),
    ]
)
_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "int64": st.integers(INT64_MIN, 2**63 - 1),
    "double": st.floats(),
    "string": st.text(st.characters(codec="utf-8", min_codepoint=1), max_size=70),
}
_decoder = msgspec.json.Decoder(InferRequest)
_NAMES = [name for name in SIGNATURE.inputs if name != "tags"]


@st.composite
def _columns(draw: st.DrawFn) -> dict[str, list[Any]]:
    """Return values of some inputs in any order; the context once or for each row."""
    names = draw(st.lists(st.sampled_from(_NAMES), unique=True, min_size=1))
    num_rows = draw(st.integers(1, 5))
    columns: dict[str, list[Any]] = {}
    for name in names:
        size = draw(st.sampled_from([1, num_rows])) if name == "age" else num_rows
        values = _VALUES[SIGNATURE.inputs[name].dtype]
        columns[name] = draw(st.lists(values, min_size=size, max_size=size))
    return columns


def _binary(values: list[Any]) -> bytes:
    if isinstance(values[0], str):
        words = [value.encode() for value in values]
        return b"".join(struct.pack("<I", len(word)) + word for word in words)
    return np.array(values).tobytes()


def _request(
    columns: dict[str, list[Any]], *, binary: bool, **changes: Any
) -> tuple[InferRequest, bytes, int]:
    """Return the message, the body, and where its binary tensors begin."""
    inputs: list[dict[str, Any]] = []
    tail = b""
    for name, values in columns.items():
        datatype = DATATYPES[SIGNATURE.inputs[name].dtype]
        tensor: dict[str, Any] = {
            "name": name,
            "datatype": datatype,
            "shape": [len(values), 1],
        }
        if binary:
            data = _binary(values)
            tensor["parameters"] = {"binary_data_size": len(data)}
            tail += data
        else:
            tensor["data"] = values
        inputs.append(tensor | changes.get(name, {}))
    head = json.dumps({"inputs": inputs}).encode()
    return decode_json(_decoder, memoryview(head)), head + tail, len(head)


def _values(array: Any) -> list[Any]:
    values = array.ravel().tolist()
    return [value.decode() if isinstance(value, bytes) else value for value in values]


def _comparable(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Return the values, NaN as a text: it equals nothing."""
    return {
        name: ["NaN" if value != value else value for value in values]
        for name, values in columns.items()
    }


@pytest.mark.parametrize("binary", [False, True])
@given(columns=_columns())
def test_tensors_have_the_values_of_the_request(
    columns: dict[str, list[Any]], binary: bool
) -> None:
    message, body, offset = _request(columns, binary=binary)
    arrays = decode_tensors(message.inputs, body, offset, SIGNATURE)
    found = {name: _values(array) for name, array in arrays.items()}
    assert _comparable(found) == _comparable(columns)
    assert all(array.shape == (len(columns[name]), 1) for name, array in arrays.items())
    feeds = SIGNATURE.complete(arrays, SIGNATURE.num_rows(arrays))
    counts = joining.count_missing(SIGNATURE, feeds)
    for name, values in columns.items():
        missing = MISSING[SIGNATURE.inputs[name].dtype]
        absent = sum(value == missing or value != value for value in values)
        assert counts.get(name, 0) == absent


@pytest.mark.parametrize("binary", [False, True])
def test_strings_with_zero_bytes_and_long_ones_are_exact(binary: bool) -> None:
    for odd in ("a\0b", "\0", "x" * 256, "x" * 70_000, "\u00fc" * 100):
        columns: dict[str, list[Any]] = {
            "brand": ["", odd, "c"],
            "colour": ["", "", ""],
            "item": [1, 2, 3],
        }
        message, body, offset = _request(columns, binary=binary)
        arrays = decode_tensors(message.inputs, body, offset, SIGNATURE)
        assert {name: _values(array) for name, array in arrays.items()} == columns


def _alike(message: InferRequest, body: bytes, offset: int) -> dict[str, Any]:
    """Return the tensors, all of them decoded together with their neighbours."""
    arrays: dict[str, Any] = {}
    for group in groups_of(SIGNATURE, tuple(tensor.name for tensor in message.inputs)):
        assert group.dtype is not None
        found = decode_alike(message.inputs[group.inputs], group.dtype, body, offset)
        assert found is not None
        matrix, offset = found
        arrays |= zip(group.names, matrix, strict=True)
    return arrays


def test_null_is_missing_without_a_look_at_each_tensor() -> None:
    arrays = _alike(
        *_request(
            {
                "price": [None, 1, 2.5],
                "weight": [1, 2, None],
                "item": [7, None, 8],
                "brand": [None, "null", ""],
            },
            binary=False,
        )
    )
    assert _values(arrays["item"]) == [7, INT64_MIN, 8]
    assert _values(arrays["brand"]) == ["", "null", ""]
    np.testing.assert_array_equal(arrays["price"], [[np.nan], [1], [2.5]])
    np.testing.assert_array_equal(arrays["weight"], [[1], [2], [np.nan]])


@pytest.mark.parametrize("binary", [False, True])
def test_well_formed_tensors_are_decoded_at_once(binary: bool) -> None:
    columns: dict[str, list[Any]] = {
        "age": [40],
        "price": [1.5, 2.5],
        "weight": [3.5, 4.5],
        "brand": ["a", ""],
        "colour": ["r\u00f6d", "blue"],
    }
    arrays = _alike(*_request(columns, binary=binary))
    assert {name: _values(array) for name, array in arrays.items()} == columns
    assert (arrays["brand"].dtype.kind == "S") == binary


@pytest.mark.parametrize("binary", [False, True])
def test_list_among_alike_tensors_is_decoded_by_itself(binary: bool) -> None:
    columns: dict[str, list[Any]] = {"item": [1], "tags": ["a", "b"], "shop": [2], "brand": ["c"]}
    message, body, offset = _request(columns, binary=binary, tags={"shape": [1, 2]})
    arrays = decode_tensors(message.inputs, body, offset, SIGNATURE)
    assert {name: _values(array) for name, array in arrays.items()} == columns
    assert arrays["tags"].shape == (1, 2)


_PAIR: dict[str, list[Any]] = {"item": [1, 2], "shop": [3, 4]}


@pytest.mark.parametrize(
    ("binary", "changes", "message"),
    [
        (False, {"shop": {"data": [3, 4, 5]}}, r"inputs\[1\].data: expected 2 values"),
        (False, {"item": {"data": [1]}, "shop": {"data": [3, 4, 5]}}, r"inputs\[0\].data"),
        (False, {"item": {"data": [[], 1]}}, r"inputs\[0\].data: expected 2 values.* found 1"),
        (False, {"shop": {"data": [3, 4.5]}}, r"inputs\[1\].data\[1\]: expected an integer"),
        (False, {"shop": {"data": [3, "null"]}}, r"inputs\[1\].data\[1\]: expected an integer"),
        (False, {"item": {"data": 1, "shape": [1, 1]}}, r"inputs\[0\].data: expected an array"),
        (False, {"shop": {"datatype": "FP64"}}, r"inputs\[1\].datatype: expected INT64"),
        (False, {"shop": {"shape": [2, 2]}}, r"inputs\[1\].data: expected 4 values"),
        (False, {"shop": {"name": "item"}}, r"inputs\[1\].name: input 'item' is given twice"),
        (False, {"shop": {"name": "shoq"}}, r"inputs\[1\].name: unknown input 'shoq'"),
        (True, {"shop": {"data": [3, 4]}}, r"inputs\[1\].*expected either data or binary data"),
        (True, {"shop": {"parameters": {"binary_data_size": 16.0}}}, r"expected an integer up to"),
        (True, {"shop": {"parameters": {"binary_data_size": -16}}}, r"expected an integer up to"),
        (True, {"shop": {"parameters": {"binary_data_size": True}}}, r"expected an integer up to"),
        (True, {"shop": {"parameters": {"binary_data_size": 8}}}, r"expected 16 bytes, as shape"),
        (True, {"item": {"shape": [1, 1]}}, r"inputs\[0\].*expected 8 bytes"),
    ],
)  # fmt: skip
def test_wrong_tensor_among_alike_ones_is_named(
    binary: bool, changes: dict[str, Any], message: str
) -> None:
    request, body, offset = _request(_PAIR, binary=binary, **changes)
    with pytest.raises(RequestError, match=message):
        decode_tensors(request.inputs, body, offset, SIGNATURE)


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        (b"\1\0\0\0a\1\0\0\0", "cut short"),
        (b"\1\0\0\0a\2\0\0\0b", "cut short"),
        (b"\1\0\0\0a\1\0\0\0\xff", "expected UTF-8"),
        (b"\1\0\0\0\xc3\1\0\0\0\xbc", "expected UTF-8"),
        (b"\1\0\0\0a", "expected 2 strings"),
        (b"\1\0\0\0a\0\0\0\0\0\0\0\0", "expected 2 strings"),
        (b"\xff\xff\xff\xffa\0\0\0\0", "cut short"),
        (b"", "expected 2 strings"),
    ],
)
def test_wrong_binary_strings_are_named(tail: bytes, message: str) -> None:
    parameters = {"parameters": {"binary_data_size": len(tail)}}
    request, body, offset = _request({"brand": ["", ""]}, binary=True, brand=parameters)
    with pytest.raises(RequestError, match=message):
        decode_tensors(request.inputs, body[:offset] + tail, offset, SIGNATURE)


def test_string_that_ends_in_the_next_tensor_is_refused() -> None:
    first, second = b"\1\0\0\0a\2\0\0\0b", b"c\0\0\0\0\0\0\0\0"
    sizes = [{"parameters": {"binary_data_size": len(data)}} for data in (first, second)]
    request, body, offset = _request(
        {"brand": ["", ""], "colour": ["", ""]}, binary=True, brand=sizes[0], colour=sizes[1]
    )
    with pytest.raises(RequestError, match=r"inputs\[0\], binary data\[1\].*cut short"):
        decode_tensors(request.inputs, body[:offset] + first + second, offset, SIGNATURE)


def test_requests_in_both_forms_are_joined() -> None:
    columns: dict[str, list[Any]] = {"brand": ["a", "\u00fc"], "colour": ["red", ""]}
    parts: list[tuple[Any, int]] = []
    for binary in (False, True):
        message, body, offset = _request(columns, binary=binary)
        arrays = decode_tensors(message.inputs, body, offset, SIGNATURE)
        parts.append((SIGNATURE.complete(arrays, 2), 2))
    feeds, num_rows = joining.join(SIGNATURE, parts)
    assert num_rows == 4
    assert feeds["brand"].ravel().tolist() == ["a", "\u00fc"] * 2
    assert joining.count_missing(SIGNATURE, feeds)["colour"] == 2


def test_neighbours_of_one_type_and_role_are_a_group() -> None:
    names = ("price", "weight", "age", "item", "shop", "tags", "brand", "brand", "colour")
    groups = groups_of(SIGNATURE, names)
    assert [group.names for group in groups] == [
        ("price", "weight"),
        ("age",),
        ("item", "shop"),
        ("tags",),
        ("brand",),
        ("brand",),
        ("colour",),
    ]
    assert [group.dtype is None for group in groups] == [
        name in (3, 5) for name in range(len(groups))
    ]
    assert [index for group in groups for index in range(9)[group.inputs]] == list(range(9))


def test_groups_are_kept_for_a_bounded_number_of_requests_and_known_names_alone() -> None:
    signature = Signature([Input(name=f"f{index}", dtype="int64") for index in range(8)])
    for index in range(200):
        names = tuple(f"f{bit}" for bit in range(8) if index >> bit & 1)
        assert len(groups_of(signature, names)) == bool(names)
    assert len(oip_alike._groups[signature]) <= 64
    assert len(groups_of(signature, ("f0", "unknown", "f1"))) == 3
    assert ("f0", "unknown", "f1") not in oip_alike._groups[signature]
    assert len(groups_of(signature, ("f0",) * 100_000)) == 100_000
    assert ("f0",) * 100_000 not in oip_alike._groups[signature]
