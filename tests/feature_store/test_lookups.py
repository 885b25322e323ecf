"""Tables of integers: each value gets the code of its key, and all others that of unknown."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.feature_store import schema as fs
from headwater.feature_store.lookups import DenseTable, HashTable, integer_table

KEYS = st.integers(-(2**63) + 1, 2**63 - 1) | st.integers(-20, 20)


@pytest.mark.parametrize("table", [HashTable, integer_table])
@given(
    keys=st.lists(KEYS, max_size=40, unique=True),
    values=st.lists(KEYS | st.just(fs.INT64_MIN), max_size=40),
    shared=st.booleans(),
)
def test_values_get_the_codes_of_their_keys(
    table: type[HashTable], keys: list[int], values: list[int], shared: bool
) -> None:
    codes = tuple(2 + position // 2 for position in range(len(keys))) if shared else None
    expected = dict(zip(keys, codes or range(2, 2 + len(keys)), strict=True))
    asked = [*values, *keys]
    found = table(fs.Lookup(keys=keys, codes=codes))(np.array(asked, np.int64))
    assert found.dtype == np.int32
    assert found.tolist() == [expected.get(value, fs.UNKNOWN_CODE) for value in asked]


def test_keys_that_meet_in_one_place_are_told_apart() -> None:
    # The table has 2048 places by the highest bits of the product: these all begin at one.
    inverse = pow(0x9E3779B97F4A7C15, -1, 2**64)
    keys = [number * inverse % 2**64 for number in range(1, 900)]
    keys = [key - 2**64 if key >= 2**63 else key for key in keys]
    table = HashTable(fs.Lookup(keys=keys[::2]))
    found = table(np.array(keys))
    assert found[::2].tolist() == list(range(2, 452))
    assert set(found[1::2].tolist()) == {fs.UNKNOWN_CODE}


def test_near_keys_have_a_dense_table_and_far_ones_none() -> None:
    assert isinstance(integer_table(fs.Lookup(keys=(5, 1, 900))), DenseTable)
    assert isinstance(integer_table(fs.Lookup(keys=(5, 1, 9000))), HashTable)
    assert isinstance(integer_table(fs.Lookup(keys=(2**62, 2**62 + 1))), HashTable)
