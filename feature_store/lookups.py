"""Codes of integers by the keys of a Lookup, in numpy: for Polars, and for crossed codes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headwater.feature_store.schema import FIRST_CODE, INT64_MIN, UNKNOWN_CODE, Lookup

_FACTOR = np.uint64(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio: near keys go to places far from each other."""


class DenseTable:
    """A code for each integer from the one below the least key to the one above the largest.

    For keys that lie close together: a value costs one read.
    """

    def __init__(self, step: Lookup) -> None:
        keys = np.asarray(step.keys, np.int64)
        self.below = int(keys.min()) - 1
        self.codes = np.full(int(keys.max()) - self.below + 2, UNKNOWN_CODE, np.int32)
        self.codes[keys - self.below] = _codes(step)

    def __call__(self, values: NDArray[np.int64]) -> NDArray[np.int32]:
        """Return the code of each value."""
        # Clipped to one place beside the keys at either end, which is unknown.
        return self.codes.take(np.clip(values, self.below, self.last) - self.below)

    @property
    def last(self) -> int:
        """The integer above the largest key."""
        return self.below + len(self.codes) - 1


class HashTable:
    """Keys and codes in open addressing with linear probing, at most half full.

    An empty place holds INT64_MIN, which is no key, and the code of unknown values.
    """

    def __init__(self, step: Lookup) -> None:
        keys = np.asarray(step.keys, np.int64)
        codes = _codes(step)
        self._num_bits = max((2 * len(keys)).bit_length(), 1)
        self._mask = 2**self._num_bits - 1
        self._keys = np.full(2**self._num_bits, INT64_MIN)
        self._codes = np.full(2**self._num_bits, UNKNOWN_CODE, np.int32)
        places = hashed(keys, self._num_bits)
        while len(keys):
            is_free = self._keys[places] == INT64_MIN
            # Of several keys for one place one remains; the others try the next place.
            self._keys[places[is_free]] = keys[is_free]
            is_placed = self._keys[places] == keys
            self._codes[places[is_placed]] = codes[is_placed]
            keys, codes = keys[~is_placed], codes[~is_placed]
            places = (places[~is_placed] + 1) & self._mask

    def __call__(self, values: NDArray[np.int64]) -> NDArray[np.int32]:
        """Return the code of each value."""
        places = hashed(values, self._num_bits)
        found = self._keys.take(places)
        codes = self._codes.take(places)
        waiting = np.flatnonzero((found != values) & (found != INT64_MIN))
        places = places[waiting]
        while len(waiting):
            places = (places + 1) & self._mask
            found = self._keys.take(places)
            codes[waiting] = self._codes.take(places)
            goes_on = (found != values[waiting]) & (found != INT64_MIN)
            waiting, places = waiting[goes_on], places[goes_on]
        return codes


def hashed(values: NDArray[np.int64], num_bits: int) -> NDArray[np.int64]:
    """Return `num_bits` bits for each value, that seem random."""
    product = values.view(np.uint64) * _FACTOR
    product >>= np.uint64(64 - num_bits)
    return product.view(np.int64)


def integer_table(step: Lookup) -> DenseTable | HashTable:
    """Return the table of integer keys that costs less."""
    keys = np.asarray(step.keys, np.int64)
    if len(keys):
        below, above = int(keys.min()) - 1, int(keys.max()) + 1
        # Of integers within 32 bits: an interval's number, too, has a place beside it.
        if above - below <= max(4 * len(keys), 1024) and max(-below, above) < 2**31:
            return DenseTable(step)
    return HashTable(step)


def _codes(step: Lookup) -> NDArray[np.int32]:
    if step.codes is None:
        return np.arange(FIRST_CODE, FIRST_CODE + len(step.keys), dtype=np.int32)
    return np.array(step.codes, np.int32)
