"""NaN and infinities in JSON, as Python's json module writes them: numbers where numbers may be."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.serving.errors import Misfit, RequestError
from headwater.serving.protocols.json_values import any_json, decode_json, from_json
from headwater.serving.protocols.oip_messages import InferRequest
from headwater.serving.tensors import ragged

_WORDS = st.sampled_from(["NaN", '"NaN', "\\", "-Infinity", '\\"NaN, ', "Infinity]"])
_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | _WORDS
_VALUES = st.recursive(
    _SCALARS, lambda v: st.lists(v) | st.dictionaries(st.text() | _WORDS, v), max_leaves=8
)


@given(_VALUES)
def test_what_python_writes_is_read_as_python_reads_it(value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False)
    found = any_json(msgspec.Raw(text.encode()))
    assert json.dumps(found) == json.dumps(json.loads(text))


def test_numbers_of_double_inputs_may_be_no_number_or_infinite() -> None:
    expected = [math.nan, 1.5, math.inf, -math.inf, math.nan]
    for text in (
        b"[NaN, 1.5, Infinity, -Infinity, null]",
        b"[[NaN, 1.5], [Infinity], -Infinity, null]",
    ):
        np.testing.assert_array_equal(from_json(msgspec.Raw(text), "double"), expected)
    padded, lengths = ragged(any_json(msgspec.Raw(b"[[NaN, 1], null, [Infinity]]")), "double")
    np.testing.assert_array_equal(padded, [[math.nan, 1], [math.nan] * 2, [math.inf, math.nan]])
    assert lengths.tolist() == [[2], [0], [1]]


@pytest.mark.parametrize("dtype", ["int64", "string"])
@pytest.mark.parametrize(
    ("text", "place", "found"),
    [
        (b"[null, NaN]", "[1]", "nan"),
        (b"[Infinity]", "[0]", "inf"),
        (b"[[null], [-Infinity]]", "[1]", "-inf"),
    ],
)
def test_nothing_else_may_be_no_number(dtype: Any, text: bytes, place: str, found: str) -> None:
    with pytest.raises(Misfit) as caught:
        from_json(msgspec.Raw(text), dtype)
    assert (caught.value.place, caught.value.found) == (place, found)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"inputs": [], "id": NaN}', "$.id: NaN and infinities are taken as values of inputs alone"),
        ('{"inputs": [], "parameters": {"a": -Infinity}}', "$.parameters[...]: NaN and infinities"),
        ('{"inputs": [], "id": 5, "more": NaN}', "$.id: Expected `str | null`, got `int`"),
        ('{"inputs": [], "more": [NaN, NaN, }', "body: expected valid JSON"),
        ('{"inputs": [], "more": nan}', "body: expected valid JSON"),
        ('{"inputs": [], "more": Inf}', "body: expected valid JSON"),
        ('{"inputs": [], "more": "NaN}', "body: expected valid JSON, found: Input data was truncated"),
        ('{"inputs": [], NaN: 1}', "body: expected valid JSON"),
    ],
)  # fmt: skip
def test_what_is_no_value_of_an_input_is_refused_with_its_path(body: str, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        decode_json(msgspec.json.Decoder(InferRequest), memoryview(body.encode()))
    assert str(caught.value).startswith(message)


def test_error_after_a_word_names_its_own_byte() -> None:
    text = '{"a": [NaN, -Infinity], "b": !}'
    with pytest.raises(RequestError, match=rf"\(byte {text.index('!')}\)"):
        decode_json(msgspec.json.Decoder(), memoryview(text.encode()))


@pytest.mark.parametrize(
    "text", ["[-NaN]", "[1NaN]", "[NaN1]", "[1e999, NaN]", "[NaNNaN]", "[+NaN]"]
)
def test_what_resembles_a_word_is_refused(text: str) -> None:
    with pytest.raises(Misfit, match="expected valid JSON"):
        any_json(msgspec.Raw(text.encode()))


@pytest.mark.parametrize(
    "text",
    [
        b'[NaN, "' + b'\\"' * 2**20,
        b"[NaN, " + b'"\\' * 2**20,
        b"[NaN, " + b"Infinit" * 2**19,
        b"[NaN, " + b'"",NaN,' * 2**18,
    ],
    ids=["open string", "backslashes", "almost words", "words among strings"],
)
def test_long_malformed_text_is_refused_in_time(text: bytes) -> None:
    # In time that grows with the square of its length, it would take hours.
    with pytest.raises(RequestError, match="expected valid JSON"):
        decode_json(msgspec.json.Decoder(), memoryview(text))


def _scores(server: Any, path: str, body: Any) -> list[float]:
    # `json.dumps` writes NaN for `math.nan`.
    status, answer = server.post(path, body)
    assert status == 200, answer
    return answer["scores"] if "scores" in answer else answer["outputs"][0]["data"]


@pytest.mark.parametrize("nested", [False, True])
def test_missing_number_of_a_tensor_may_be_nan(server: Any, nested: bool) -> None:
    def ask(*price: float | None) -> list[float]:
        data = [[each] for each in price] if nested else price
        tensors = [
            {"name": "price", "datatype": "FP64", "shape": [len(price), 1], "data": data},
            {"name": "brand", "datatype": "BYTES", "shape": [3, 1], "data": ["NaN", "", "acme"]},
        ]
        return _scores(server, "/v2/models/shop/infer", {"inputs": tensors})

    assert ask(math.nan, 2.5, math.nan) == ask(None, 2.5, None)
    assert ask(math.inf, -math.inf, 1)[:2] == [1, 0]


def test_missing_number_of_a_candidate_or_of_the_context_may_be_nan(server: Any) -> None:
    def ask(missing: float | None, text: str) -> list[list[float]]:
        objects = [{"price": missing, "brand": text}, {"price": 2.5, "item": 1}, {}]
        columns = {"price": [missing, 2.5, missing], "brand": [text, None, text]}
        context = {"price": missing, "brand": text}
        requests: list[Any] = [
            {"candidates": objects},
            {"candidates": columns},
            {"candidates": [{"item": 1}, {"tags": [text]}], "context": context},
        ]
        return [_scores(server, "/v1/rank", {"model": "shop", **each}) for each in requests]

    found = ask(math.nan, "NaN")
    assert found == ask(None, "NaN")
    assert found == ask(math.nan, "as unknown")
    assert found != ask(math.nan, "")


_INTEGER = "expected an integer of 64 bits or null, found nan"
_NO_VALUE = "NaN and infinities are taken as values of inputs alone"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"candidates": [{}, {"item": math.nan}]}, f"$.candidates[1].item: {_INTEGER}"),
        ({"candidates": {"item": [1, math.nan]}}, f"$.candidates.item[1]: {_INTEGER}"),
        ({"candidates": [{}], "context": {"user": math.nan}}, f"$.context.user: {_INTEGER}"),
        ({"candidates": [{}], "context": {"recent": [1, math.nan]}}, f"$.context.recent[1]: {_INTEGER}"),
        (
            {"candidates": [{}], "context": {"recent": math.nan}},
            "$.context.recent: expected a list or null, found nan",
        ),
        (
            {"candidates": [{"brand": math.inf}]},
            "$.candidates[0].brand: expected a string or null, found inf",
        ),
        (
            {"candidates": {"price": math.nan}},
            "$.candidates.price: expected an array, found nan",
        ),
        (
            {"candidates": [{"price": math.inf}, {"price": -math.inf, "itme": 1}]},
            "$.candidates[1].itme: unknown input 'itme'",
        ),
        ({"candidates": [math.nan]}, f"$.candidates[0]: {_NO_VALUE}"),
        ({"candidates": [{}], "version": math.nan}, f"$.version: {_NO_VALUE}"),
    ],
)  # fmt: skip
def test_nan_that_fits_nothing_is_refused_by_place(server: Any, body: Any, message: str) -> None:
    status, answer = server.post("/v1/rank", {"model": "shop", **body})
    assert status == 400
    assert message in answer["error"]
