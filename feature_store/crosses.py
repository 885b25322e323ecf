"""Crossed codes in numpy: how often combinations occur, and which codes they have.

Both start from the codes of the combined columns, which are computed once for all crosses. For the
fit they lie on disk, a file a column, and are read a chunk at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headwater.feature_store import schema as fs
from headwater.feature_store.lookups import hashed, integer_table

Codes = NDArray[np.int32]

CHUNK_ROWS = 1 << 23
"""Rows whose combinations are counted at once."""
COUNTED_PLACES = 1 << 22
"""Up to so many possible combinations have a place each in an array of counts; more are sorted."""
BUCKET_BITS = 22
"""Combinations are first counted in 2^22 buckets: those of buckets below the least count are left out."""
LOOKUP_ROWS = 1 << 15
"""Rows that are looked up at once: what is computed on the way stays in the cache."""


class CodesOnDisk:
    """Codes of columns in a folder, a file a column."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, Path] = {}

    def add(self, codes: Mapping[str, Codes]) -> None:
        """Append codes by column; all columns are given equally many in the end."""
        for name, values in codes.items():
            path = self._files.setdefault(name, self._folder / f"{len(self._files):05d}.codes")
            with path.open("ab") as file:
                # Not `tofile`, whose error does not say that the disk is full.
                file.write(np.ascontiguousarray(values).data)

    def chunks(self, names: Sequence[str]) -> Iterator[list[Codes]]:
        """Yield the codes of some columns, CHUNK_ROWS at a time; at least one chunk."""
        with ExitStack() as stack:
            files = [stack.enter_context(self._files[name].open("rb")) for name in names]
            num_rows = CHUNK_ROWS
            while num_rows == CHUNK_ROWS:
                codes = [np.fromfile(file, np.int32, CHUNK_ROWS) for file in files]
                yield codes
                num_rows = len(codes[0])


def combine(codes: Sequence[Codes], step: fs.Cross) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the mixed-radix number of codes, and where any of them is missing."""
    number = codes[0].astype(np.int64)
    is_missing = codes[0] == fs.MISSING_CODE
    for code, cardinality in zip(codes[1:], step.cardinalities[1:], strict=True):
        number *= cardinality
        number += code
        is_missing |= code == fs.MISSING_CODE
    return number, is_missing


def count(
    chunks: Callable[[], Iterable[Sequence[Codes]]], step: fs.Cross, least: int = 1
) -> Iterator[pl.DataFrame]:
    """Yield `key`, combinations in which nothing is missing, and `count`, for each chunk.

    Over all chunks the counts of a combination add up to how often it occurs, or are left out where that
    is less than `least`. `chunks` gives the codes of the combined columns each time that it is called.
    """
    size = math.prod(step.cardinalities)
    may_reach: NDArray[np.bool_] | None = None
    if least > 1 and size > COUNTED_PLACES:
        totals = np.zeros(2**BUCKET_BITS, np.int64)
        for codes in chunks():
            totals += np.bincount(hashed(_present(codes, step), BUCKET_BITS), minlength=len(totals))
        may_reach = totals >= least
    for codes in chunks():
        present = _present(codes, step)
        if may_reach is not None:
            present = present[may_reach.take(hashed(present, BUCKET_BITS))]
        keys, counts = _counted(present, size)
        yield pl.DataFrame({"key": keys, "count": counts})


def _present(codes: Sequence[Codes], step: fs.Cross) -> NDArray[np.int64]:
    number, is_missing = combine(codes, step)
    return number[~is_missing] if is_missing.any() else number


def _counted(numbers: NDArray[np.int64], size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return each number, all of them below `size`, and how often it occurs."""
    if size <= COUNTED_PLACES:
        counts = np.bincount(numbers)
        keys = np.flatnonzero(counts)
        return keys, counts[keys]
    # A sort takes half the time where the numbers are half as wide.
    ordered = np.sort(numbers.astype(np.uint32) if size <= 2**32 else numbers)
    is_first = np.ones(len(ordered), np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=is_first[1:])
    starts = np.flatnonzero(is_first)
    return ordered[starts].astype(np.int64), np.diff(starts, append=len(ordered))


class CrossEncoder:
    """Adds the codes of a schema's crossed columns to those of the others."""

    def __init__(self, schema: fs.Schema) -> None:
        places = {column.name: place for column, place in schema.code_places()}
        self._width = schema.width
        self._others = [
            position
            for column in schema.codes
            if not column.is_crossed
            for position in range(places[column.name].start, places[column.name].stop)
        ]
        self._crosses: list[_Cross] = []
        for column in schema.codes:
            if column.is_crossed:
                inputs = [places[name].start for name in column.inputs]
                self._crosses.append(_Cross(column, places[column.name].start, inputs))

    def widen(self, codes: Codes) -> Codes:
        """Return the codes of all columns, (N, W), for those of the columns that are not crossed."""
        # The codes of a column lie together, as they are found.
        wide = np.empty((self._width, len(codes)), np.int32).T
        for position, column in zip(self._others, codes.T, strict=True):
            wide[:, position] = column
        for cross in self._crosses:
            for start in range(0, len(codes), LOOKUP_ROWS):
                rows = wide[start : start + LOOKUP_ROWS]
                rows[:, cross.place] = cross.codes([rows[:, each] for each in cross.inputs])
        return wide


class _Cross:
    """One crossed column: its place in the codes, and those of what it combines."""

    def __init__(self, column: fs.EncodedColumn, place: int, inputs: Sequence[int]) -> None:
        step, lookup, missing = column.steps
        assert isinstance(step, fs.Cross), "the program of a crossed column begins with Cross"
        assert isinstance(lookup, fs.Lookup), "a Lookup follows"
        assert missing == fs.Missing(), "Missing ends it"
        self.place = place
        self.inputs = inputs
        self._step = step
        self._table = integer_table(lookup)

    def codes(self, inputs: Sequence[Codes]) -> Codes:
        """Return the code of each combination."""
        number, is_missing = combine(inputs, self._step)
        codes = self._table(number)
        codes[is_missing] = fs.MISSING_CODE
        return codes
