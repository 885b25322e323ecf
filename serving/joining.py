"""Requests joined to one batch, and the missing values in it counted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from headwater.feature_store.schema import INT64_MIN, Dtype
from headwater.serving.manifest import Input
from headwater.serving.signature import LENGTH, Signature, as_objects, num_parts
from headwater.serving.tensors import MISSING, Array, Arrays

_MISSING_INT = np.int64(INT64_MIN)


def has_context_once(signature: Signature, feeds: Arrays, num_rows: int) -> bool:
    """Return whether a context input is given once for several candidates."""
    return num_rows > 1 and any(feeds[name].shape[0] == 1 for name in signature.context)


def width(signature: Signature, feeds: Arrays) -> int:
    """Return the width of the widest list, given as one or as text, 1 without any."""
    lists = [feeds[name].shape[1] for name in signature.lists]
    return max(
        [*lists, *(num_parts(each, feeds[each.name]) for each in signature.divided)], default=1
    )


def join(signature: Signature, parts: Sequence[tuple[Arrays, int]]) -> tuple[Arrays, int]:
    """Return several requests as one: rows in order, a context repeated for its own candidates."""
    if len(parts) == 1:
        return parts[0]
    joined: Arrays = {}
    for name, tensor in signature.tensors.items():
        arrays = [
            feeds[name] if feeds[name].shape[0] == rows else np.repeat(feeds[name], rows, axis=0)
            for feeds, rows in parts
        ]
        if tensor.is_list:
            arrays = _same_width(arrays, tensor)
        if tensor.dtype == "string" and len({array.dtype.kind for array in arrays}) > 1:
            arrays = [as_objects(array) for array in arrays]
        joined[name] = np.concatenate(arrays)
    return joined, sum(rows for _, rows in parts)


def count_missing(signature: Signature, feeds: Arrays) -> dict[str, int]:
    """Return how many values of each input are missing (a list: is empty), where any is."""
    counts = {name: np.count_nonzero(feeds[name + LENGTH] == 0) for name in signature.lists}
    for (dtype, _), alike in signature.alike.items():
        # One look at all of them together: one at each costs as much as scoring a row.
        for names in _by_kind(alike, feeds) if dtype == "string" else (alike,):
            found = _is_missing(np.concatenate([feeds[name] for name in names]), dtype)
            if found.any():
                each = np.count_nonzero(found.reshape(len(names), -1), axis=1)
                counts.update(zip(names, each.tolist(), strict=True))
    return {name: int(count) for name, count in counts.items() if count}


def _by_kind(names: Sequence[str], feeds: Arrays) -> list[list[str]]:
    """Return the names of string tensors that hold bytes, and of those that hold objects."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(feeds[name].dtype.kind, []).append(name)
    return list(kinds.values())


def _is_missing(values: Array, dtype: Dtype) -> npt.NDArray[np.bool_]:
    if dtype == "double":
        # NaN alone differs from itself.
        return values != values
    if dtype == "int64":
        return values == _MISSING_INT
    if values.dtype.kind == "S":
        return values.view(np.uint8).reshape(len(values), -1)[:, 0] == 0
    return values == ""


def _same_width(arrays: list[Array], tensor: Input) -> list[Array]:
    width = max(array.shape[1] for array in arrays)
    fill = MISSING[tensor.dtype]
    return [
        array
        if array.shape[1] == width
        else np.pad(array, ((0, 0), (0, width - array.shape[1])), constant_values=fill)
        for array in arrays
    ]
