"""Values become tensors: exact where they fit, refused with their place where they do not."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.feature_store.schema import INT64_MIN, Dtype
from headwater.serving import joining
from headwater.serving.errors import Misfit, TooLargeError
from headwater.serving.manifest import Input
from headwater.serving.protocols.json_values import from_json
from headwater.serving.signature import Signature
from headwater.serving.tensors import flat, ragged

_INTEGERS = st.none() | st.integers(INT64_MIN, 2**63 - 1)
_NUMBERS = (
    st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70)
)
_STRINGS = st.none() | st.text()


def _same(found: Any, expected: Any) -> None:
    assert found.dtype == expected.dtype
    if found.dtype == np.float64:
        np.testing.assert_array_equal(found, expected)
    else:
        assert found.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("dtype", "values"), [("int64", _INTEGERS), ("double", _NUMBERS), ("string", _STRINGS)]
)
@given(data=st.data())
def test_json_and_python_values_give_the_same_tensor(
    dtype: Dtype, values: st.SearchStrategy[Any], data: st.DataObject
) -> None:
    column = data.draw(st.lists(values))
    raw = msgspec.Raw(json.dumps(column).encode())
    _same(from_json(raw, dtype), flat(column, dtype))
    nested = msgspec.Raw(json.dumps([[value] for value in column]).encode())
    _same(from_json(nested, dtype), flat(column, dtype))


def test_missing_values_take_the_missing_value_of_the_dtype() -> None:
    assert flat([None, 5, True], "int64").tolist() == [INT64_MIN, 5, 1]
    assert flat([None, "a\0"], "string").tolist() == ["", "a\0"]
    numbers = flat([None, math.nan, 1, math.inf], "double")
    assert np.isnan(numbers[:2]).all()
    assert numbers[2:].tolist() == [1.0, math.inf]


@pytest.mark.parametrize(
    ("values", "dtype", "place"),
    [
        ([1, 2**63], "int64", "[1]"),
        ([1, None, 2.0], "int64", "[2]"),
        (["1"], "int64", "[0]"),
        ([10**400], "double", "[0]"),
        ([None, "nan"], "double", "[1]"),
        ([1], "string", "[0]"),
        (["a", b"a"], "string", "[1]"),
        ([None, [1]], "int64", "[1]"),
    ],
)
def test_value_of_another_type_is_refused_with_its_place(
    values: list[Any], dtype: Dtype, place: str
) -> None:
    with pytest.raises(Misfit) as caught:
        flat(values, dtype)
    assert caught.value.place == place


def test_lists_are_padded_with_the_missing_value() -> None:
    padded, lengths = ragged([[1, None], None, [], [3]], "int64")
    assert padded.tolist() == [
        [1, INT64_MIN],
        [INT64_MIN, INT64_MIN],
        [INT64_MIN, INT64_MIN],
        [3, INT64_MIN],
    ]
    assert lengths.tolist() == [[2], [0], [0], [1]]
    padded, lengths = ragged([], "string")
    assert padded.shape == (0, 1)
    assert lengths.shape == (0, 1)


def test_parser_is_usable_after_a_wrong_document() -> None:
    for wrong in (b"{}", b"[1, {}]", b"5", b"[1", b'["a"]'):
        with pytest.raises(Misfit):
            from_json(msgspec.Raw(wrong), "int64")
        assert from_json(msgspec.Raw(b"[1, 2]"), "int64").tolist() == [1, 2]


DIVIDED = Signature(
    [Input(name="tags", dtype="string", separators=("|", ";")), Input(name="x", dtype="int64")]
)


@pytest.mark.parametrize("dtype", [object, "S9000"])
def test_a_text_that_the_graph_divides_is_as_wide_as_its_parts(dtype: Any) -> None:
    tags = np.array([["a|b|c"], ["a;b|c;d;e"], [""]], object)
    feeds = DIVIDED.complete({"tags": tags.astype(dtype)}, 3)
    assert joining.width(DIVIDED, feeds) == 4


@pytest.mark.parametrize("rows", [1, 300])
def test_a_text_whose_parts_would_not_fit_beside_the_rows_is_refused(rows: int) -> None:
    tags = np.full((rows, 1), "a", object)
    tags[0] = "a|" * 100_000
    feeds = {"tags": tags, "x": np.zeros((rows, 1), np.int64)}
    if rows == 1:
        assert DIVIDED.complete(feeds, rows).keys() == feeds.keys()
        return
    with pytest.raises(
        TooLargeError, match=r"input 'tags': a text of 100001 parts beside 300 rows"
    ):
        DIVIDED.complete(feeds, rows)
