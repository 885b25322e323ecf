"""Values of a raw column into the tensors of the graph: strict about types, lenient about absence.

null, NaN, '' and INT64_MIN are the same thing, a missing value, and become the missing value of the
input's dtype here: onnxruntime would turn None into the text "None". An integer is accepted for a
double, true and false for an integer (as 1 and 0); nothing else is cast, because a cast that the training
data did not have is a skew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from headwater.feature_store.dtypes import DTYPES
from headwater.feature_store.schema import Dtype
from headwater.serving.errors import Misfit, shorten

Array = npt.NDArray[Any]
Arrays = dict[str, Array]
"""Tensors by their names in the graph."""

NUMPY = {dtype: facts.numpy for dtype, facts in DTYPES.items()}
MISSING = {dtype: facts.missing for dtype, facts in DTYPES.items()}
_TIME_HINT = " (a datetime is milliseconds UTC since 1970)"
_EXACT: dict[Dtype, frozenset[type]] = {
    "int64": frozenset({int, bool}),
    "double": frozenset({float, int, bool}),
    "string": frozenset({str}),
}
_KINDS: dict[Dtype, tuple[type, ...]] = {
    "int64": (int, np.integer, np.bool_),
    "double": (float, int, np.floating, np.integer, np.bool_),
    "string": (str,),
}
MAX_CELLS = 2**24
"""Padding short lists to one long one, or repeating one for each row, makes at most this many values."""


def missing(dtype: Dtype, num_rows: int) -> Array:
    """Return `[num_rows, 1]` of the missing value of `dtype`."""
    return np.full((num_rows, 1), MISSING[dtype], NUMPY[dtype])


def flat(values: Sequence[object], dtype: Dtype) -> Array:
    """Return `[len(values)]` of `dtype`; None becomes the missing value.

    Raises `Misfit`, whose place is the index, for a value of another type.
    """
    try:
        if set(map(type, values)) <= _EXACT[dtype]:
            return np.array(values, NUMPY[dtype])
        return np.array([_value(value, dtype) for value in values], NUMPY[dtype])
    except (Misfit, OverflowError):
        # Rare: only now is the index worth its cost.
        for index, value in enumerate(values):
            try:
                np.array(_value(value, dtype), NUMPY[dtype])
            except (Misfit, OverflowError):
                found = shorten(repr(value), 60)
                raise Misfit(
                    expected=_expected(value, dtype), found=found, place=f"[{index}]"
                ) from None
        raise


def _value(value: object, dtype: Dtype) -> object:
    if value is None:
        return MISSING[dtype]
    if isinstance(value, _KINDS[dtype]):
        return value
    raise Misfit(expected=_expected(value, dtype), found=shorten(repr(value), 60))


def _expected(value: object, dtype: Dtype) -> str:
    """Return what is expected where `value` was found: a text that is no number may be meant as a time."""
    may_be_time = dtype == "int64" and isinstance(value, str) and not value.lstrip("-").isdecimal()
    return f"{DTYPES[dtype].meaning} or null{_TIME_HINT if may_be_time else ''}"


def ragged(rows: Sequence[object], dtype: Dtype) -> tuple[Array, Array]:
    """Return lists as padded `[N, L]` (L at least 1) and their lengths, int64 `[N, 1]`; None is empty."""
    lists: list[Sequence[object]] = []
    for index, row in enumerate(rows):
        if row is None:
            lists.append(())
        elif isinstance(row, (list, tuple, np.ndarray)):
            lists.append(row.tolist() if isinstance(row, np.ndarray) else row)
        else:
            raise Misfit(
                expected="a list or null", found=shorten(repr(row), 60), place=f"[{index}]"
            )
    lengths = np.array([len(row) for row in lists], np.int64)
    width = max(1, int(lengths.max(initial=0)))
    if width * len(lists) > MAX_CELLS:
        raise Misfit(
            expected=f"lists that padded to the longest have at most {MAX_CELLS} values",
            found=f"{len(lists)} lists, the longest of {width} values",
        )
    padded = np.full((len(lists), width), MISSING[dtype], NUMPY[dtype])
    for index, row in enumerate(lists):
        try:
            padded[index, : len(row)] = flat(row, dtype)
        except Misfit as fault:
            fault.place = f"[{index}]{fault.place}"
            raise
    return padded, lengths.reshape(-1, 1)
