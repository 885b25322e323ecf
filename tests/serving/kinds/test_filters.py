"""Filters of items against the plain reading of each condition, item by item."""

from __future__ import annotations

import operator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.serving.errors import RequestError
from headwater.serving.kinds.filters import COMPARISONS, Column, mask_of

NUMBERS = st.one_of(st.none(), st.integers(-3, 3), st.just(0.5))
TEXTS = st.one_of(st.none(), st.sampled_from(["", "a", "b", "ä"]))


def holds(values: Any, word: str, other: Any) -> bool:
    """Return whether a condition holds of a value or a list, as the documentation says."""
    present = [v for v in (values if isinstance(values, list) else [values]) if v is not None]
    if word in ("ne", "not_in"):
        opposite = {"ne": "eq", "not_in": "in"}[word]
        return bool(present) and not holds(values, opposite, other)
    if word == "in":
        return any(value in other for value in present)
    return any(getattr(operator, word)(value, other) for value in present)


@given(data=st.data(), is_text=st.booleans(), is_list=st.booleans())
def test_a_mask_is_what_each_condition_says(
    data: st.DataObject, is_text: bool, is_list: bool
) -> None:
    value = TEXTS if is_text else NUMBERS
    cell = st.one_of(st.none(), st.lists(value, max_size=3)) if is_list else value
    cells = data.draw(st.lists(cell, min_size=1, max_size=8))
    cells = [[] if is_list and each is None else each for each in cells]
    words = data.draw(
        st.sets(st.sampled_from([*COMPARISONS, "in", "not_in"]), min_size=1, max_size=2)
    )
    known = value.filter(lambda each: each is not None)
    condition = {
        word: data.draw(st.lists(known, max_size=3) if word.endswith("in") else known)
        for word in words
    }
    found = mask_of({"c": condition}, lambda *_: Column.of(cells), len(cells), "$")
    expected = [all(holds(each, w, other) for w, other in condition.items()) for each in cells]
    assert found.tolist() == expected


def test_a_value_alone_is_eq_and_a_list_alone_is_in() -> None:
    column = Column.of([1, 2, None, 3])

    def mask(condition: Any) -> list[bool]:
        return mask_of({"c": condition}, lambda *_: column, 4, "$").tolist()

    assert mask(2) == [False, True, False, False]
    assert mask([1, 3]) == [True, False, False, True]


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"like": 1}, r"\$\.c: unknown comparison 'like'"),
        ({"in": 3}, r"\$\.c\.in: expected a list, found 3"),
        ({"lt": "x"}, r"\$\.c\.lt: the column has numbers, found 'x'"),
        (None, r"\$\.c\.eq: the column has numbers, found None"),
    ],
)
def test_a_wrong_condition_is_named(condition: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        mask_of({"c": condition}, lambda *_: Column.of([1, 2]), 2, "$")
