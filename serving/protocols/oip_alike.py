"""Alike tensors of a request, decoded together where nothing is wrong with any of them.

A model has tens of inputs, and a call of numpy takes as long for a hundred numbers as for one. So neighbours
of one type and role are decoded as one matrix, in a few calls: numbers in JSON by one parse of all, binary
numbers as a view, binary strings as fixed-width bytes (dtype `S`, which onnxruntime reads as they are)
without a Python object a string.

What is unusual in any way (an error, rows that differ, a nested string) is left to `oip_tensors`, which
decodes the same inputs one by one.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard, cast
from weakref import WeakKeyDictionary

import msgspec
import numpy as np
import numpy.typing as npt

from headwater.feature_store.dtypes import DTYPES
from headwater.feature_store.schema import Dtype
from headwater.serving.protocols.json_values import numbers
from headwater.serving.protocols.oip_messages import Datatype, InferInput
from headwater.serving.signature import Signature
from headwater.serving.tensors import NUMPY, Array

DATATYPES: dict[Dtype, Datatype] = {dtype: facts.datatype for dtype, facts in DTYPES.items()}
_BRACKET = ord("[")
_MAX_WIDE = 4
"""Fixed-width strings may take this many times the bytes of the strings themselves."""

_MAX_ORDERS = 64
"""Orders of inputs whose groups are kept for a release."""

_lists = msgspec.json.Decoder(list[list[str | None]])


@dataclass(frozen=True, slots=True)
class Alike:
    """Inputs that follow each other in a request and are alike: numbers or strings, of one role."""

    names: tuple[str, ...]
    dtype: Dtype | None
    """None for one to be looked at by itself: a list, an unknown name, or one that was there before."""
    inputs: slice
    """Their places in the request."""


_groups: WeakKeyDictionary[Signature, dict[tuple[str, ...], tuple[Alike, ...]]] = (
    WeakKeyDictionary()
)
"""By the order of their names, for each release that is loaded."""


def groups_of(signature: Signature, names: tuple[str, ...]) -> tuple[Alike, ...]:
    """Return the groups of inputs that come in this order.

    Those of known names are kept, as most clients ask with the same inputs each time.
    """
    kept = _groups.setdefault(signature, {})
    groups = kept.get(names)
    if groups is None:
        groups = _find_groups(signature, names)
        if len(names) <= len(signature.tensors) and signature.tensors.keys() >= set(names):
            if len(kept) >= _MAX_ORDERS:
                kept.clear()
            kept[names] = groups
    return groups


def _find_groups(signature: Signature, names: tuple[str, ...]) -> tuple[Alike, ...]:
    groups: list[Alike] = []
    seen: set[str] = set()
    kind = None
    for index, name in enumerate(names):
        before, column = kind, signature.inputs.get(name)
        kind = None
        if column is not None and not column.is_list and name not in seen:
            kind = column.dtype, column.role
        seen.add(name)
        if kind is not None and kind == before:
            last = groups.pop()
            inputs = slice(last.inputs.start, index + 1)
            groups.append(Alike((*last.names, name), last.dtype, inputs))
        else:
            dtype = None if kind is None else kind[0]
            groups.append(Alike((name,), dtype, slice(index, index + 1)))
    return tuple(groups)


def decode_alike(
    tensors: Sequence[InferInput], dtype: Dtype, body: bytes, offset: int
) -> tuple[Array, int] | None:
    """Return `[K, N, 1]` of K inputs of `dtype`, and where what follows them in `body` begins.

    Those in binary are in `body` from `offset` on. Strings are objects, or bytes of type `S` that end with
    a zero byte and have no other. None where something is unusual: it may be wrong.
    """
    shape, datatype = tensors[0].shape, DATATYPES[dtype]
    if (
        len(shape) != 2
        or shape[0] == 0
        or shape[1] != 1
        or [tensor.shape for tensor in tensors].count(shape) < len(tensors)
        or {tensor.datatype for tensor in tensors} != {datatype}
    ):
        return None
    parameters = [tensor.parameters for tensor in tensors]
    if not any(parameters):
        matrix, end = _from_json(tensors, dtype, shape[0]), offset
    else:
        sizes = [values.get("binary_data_size") if values else None for values in parameters]
        absent = [tensor.data for tensor in tensors].count(msgspec.UNSET)
        if not _are_sizes(sizes) or absent < len(tensors):
            return None
        end = offset + sum(sizes)
        matrix = None
        if end <= len(body):
            matrix = _from_binary(body, offset, sizes, dtype, shape[0])
    return None if matrix is None else (matrix, end)


def _are_sizes(values: Sequence[object]) -> TypeGuard[list[int]]:
    return {*map(type, values)} == {int} and min(cast("list[int]", values)) >= 0


def _from_json(tensors: Sequence[InferInput], dtype: Dtype, num_rows: int) -> Array | None:
    """Return the values of JSON arrays, `[K, N, 1]`; None where one is not a list of N."""
    shape = (len(tensors), num_rows, 1)
    try:
        raws = [bytes(tensor.data) for tensor in tensors]  # pyright: ignore[reportArgumentType]
        text = b"[" + b",".join(raws) + b"]"
        if dtype == "string":
            nested = _lists.decode(text)
            if {len(strings) for strings in nested} != {num_rows}:
                return None
            if b"null" in text:
                nested = [[string or "" for string in strings] for strings in nested]
            matrix = np.array(nested, object)
            return matrix.reshape(shape)
        # An array has at most one value more than commas, so by their sum each has N.
        if {raw[0] for raw in raws} != {_BRACKET}:
            return None
        if {raw.count(b",") for raw in raws} != {num_rows - 1}:
            return None
        values = numbers(text, dtype)
    except (msgspec.MsgspecError, TypeError, ValueError, RuntimeError):
        return None
    return values.reshape(shape) if values.size == len(raws) * num_rows else None


def _from_binary(
    body: bytes, offset: int, sizes: Sequence[int], dtype: Dtype, num_rows: int
) -> Array | None:
    """Return the values of binary tensors that follow each other, `[K, N, 1]`."""
    if dtype == "string":
        return _strings(body[offset : offset + sum(sizes)], sizes, num_rows)
    numpy_dtype = NUMPY[dtype]
    if {*sizes} != {num_rows * numpy_dtype.itemsize}:
        return None
    count = len(sizes) * num_rows
    matrix = np.frombuffer(body, numpy_dtype.newbyteorder("<"), count, offset)
    # onnxruntime reads whole words: they must lie where words may.
    if not (matrix.flags.aligned and sys.byteorder == "little"):
        matrix = matrix.astype(numpy_dtype)
    return matrix.reshape(len(sizes), num_rows, 1)


def _strings(data: bytes, sizes: Sequence[int], num_rows: int) -> Array | None:
    """Return strings with their length in 4 bytes before each; None where one is long or has a zero byte."""
    octets = np.frombuffer(data, np.uint8)
    count = len(sizes) * num_rows
    starts = _find_starts(octets, count)
    if starts is None:
        return None
    lengths = octets[starts].astype(np.int64)
    ends = starts + 4 + lengths
    # Where each string begins as the one before it ends, this is what the lengths say.
    firsts = np.cumsum([0, *sizes[:-1]])
    chained = (starts[1:] == ends[:-1]).all() and starts[0] == 0 and ends[-1] == len(data)
    if not chained or (starts[::num_rows] != firsts).any():
        return None
    width = int(lengths.max())
    if count * width > _MAX_WIDE * len(data):
        return None
    matrix = np.zeros((count, width + 1), np.uint8)
    if lengths.min() == width:
        matrix[:, :-1] = octets.reshape(count, -1)[:, 4:]
    else:
        places = np.arange(width)
        taken = octets.take((starts + 4)[:, None] + places, mode="clip")
        np.multiply(taken, places < lengths[:, None], out=matrix[:, :-1])
    if not data.isascii():
        try:
            # The zero bytes between them keep one from ending in the next.
            matrix.tobytes().decode()
        except UnicodeDecodeError:
            return None
    return matrix.view(f"S{width + 1}").reshape(len(sizes), num_rows, 1)


def _find_starts(octets: npt.NDArray[np.uint8], count: int) -> npt.NDArray[np.int64] | None:
    """Return where `count` strings may start, if none has 256 bytes or a zero byte; None if one has.

    All zero bytes then are of lengths: three after a length that is not 0, four of an empty string.
    """
    zeros = np.flatnonzero(octets == 0)
    if len(zeros) == 3 * count:
        starts = zeros[::3] - 1
        return starts if (zeros[2::3] - starts == 3).all() and starts[0] == 0 else None
    if len(zeros) == 0:
        return None
    cuts = np.flatnonzero(np.diff(zeros) != 1) + 1
    bounds = np.concatenate([[0], cuts, [len(zeros)]])
    sizes = np.diff(bounds)
    number_of = (sizes + 1) // 4
    if number_of.sum() != count or ((sizes + 1) % 4 > 1).any():
        return None
    begins = zeros[bounds[:-1]] - (sizes % 4 == 3)
    within = np.arange(count) - np.repeat(np.cumsum(number_of) - number_of, number_of)
    return np.repeat(begins, number_of) + 4 * within
