"""Tensors of an Open Inference Protocol request, in JSON or binary, into those of the graph.

Neighbours of one type and role are tried together, by `oip_alike`; where that finds anything unusual, each is
checked and decoded by itself, which is how an error gets its place.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Sequence

import msgspec
import numpy as np

from headwater.feature_store.schema import Dtype
from headwater.serving.errors import Misfit, RequestError, shorten
from headwater.serving.manifest import Input
from headwater.serving.protocols.json_values import from_json
from headwater.serving.protocols.oip_alike import DATATYPES, decode_alike, groups_of
from headwater.serving.protocols.oip_messages import InferInput
from headwater.serving.signature import Signature
from headwater.serving.tensors import NUMPY, Array, Arrays

_LENGTH = struct.Struct("<I")
_NULL = msgspec.Raw(b"null")


def decode_tensors(
    inputs: Sequence[InferInput], body: bytes, offset: int, signature: Signature
) -> Arrays:
    """Return the checked tensors; those in binary are in `body` from `offset` on, to its end.

    Raises `RequestError` with the place of what is wrong.
    """
    arrays: Arrays = {}
    for group in groups_of(signature, tuple([tensor.name for tensor in inputs])):
        together = None
        if group.dtype is not None:
            together = decode_alike(inputs[group.inputs], group.dtype, body, offset)
        if together is not None:
            matrix, offset = together
            arrays.update(zip(group.names, matrix, strict=True))
            continue
        for index in range(group.inputs.start, group.inputs.stop):
            tensor = inputs[index]
            column = _column(index, tensor, arrays, signature)
            try:
                arrays[tensor.name], offset = _decode(tensor, column.dtype, body, offset)
                signature.check(tensor.name, arrays[tensor.name])
            except Misfit as fault:
                raise fault.at(f"$.inputs[{index}]") from None
    if offset != len(body):
        raise RequestError(
            f"body: expected {offset} bytes, the JSON and the binary_data_size of its inputs, found "
            f"{len(body)}"
        )
    return arrays


def _column(index: int, tensor: InferInput, arrays: Arrays, signature: Signature) -> Input:
    column = signature.tensors.get(tensor.name)
    if column is None:
        where = f"$.inputs[{index}].name"
        raise signature.unknown(where, "input", tensor.name, signature.tensors)
    if tensor.name in arrays:
        raise RequestError(f"$.inputs[{index}].name: input {tensor.name!r} is given twice")
    return column


def _decode(tensor: InferInput, dtype: Dtype, body: bytes, offset: int) -> tuple[Array, int]:
    """Return one tensor, and where what follows it in `body` begins."""
    if tensor.datatype != DATATYPES[dtype]:
        raise Misfit(
            expected=f"{DATATYPES[dtype]} for {tensor.name!r}",
            found=shorten(tensor.datatype, 30),
            place=".datatype",
        )
    if len(tensor.shape) != 2:
        raise Misfit(
            expected="two dimensions", found=shorten(f"{tensor.shape}", 60), place=".shape"
        )
    size = (tensor.parameters or {}).get("binary_data_size")
    if size is None:
        array = _from_json(tensor, dtype)
    else:
        size = _binary_size(tensor, size, len(body) - offset)
        array = _from_binary(body, offset, size, dtype, tensor)
        offset += size
    return array.reshape(tensor.shape), offset


def _data(tensor: InferInput) -> msgspec.Raw | None:
    """Return the JSON of the values, None where it is absent or null."""
    return None if tensor.data is msgspec.UNSET or tensor.data == _NULL else tensor.data


def _from_json(tensor: InferInput, dtype: Dtype) -> Array:
    data = _data(tensor)
    if data is None:
        is_shared = "shared_memory_region" in (tensor.parameters or {})
        found = "shared memory" if is_shared else "none"
        raise Misfit(expected="data or parameters.binary_data_size", found=found)
    try:
        array = from_json(data, dtype)
    except Misfit as fault:
        fault.place = f".data{fault.place}"
        raise
    count = tensor.shape[0] * tensor.shape[1]
    if array.size != count:
        raise Misfit(
            expected=f"{count} values, as shape {tensor.shape} says",
            found=f"{array.size}",
            place=".data",
        )
    return array


def _binary_size(tensor: InferInput, size: object, rest: int) -> int:
    where = ".parameters.binary_data_size"
    if _data(tensor) is not None:
        raise Misfit(expected="either data or binary data", found="both", place=where)
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= rest:
        found = shorten(repr(size), 30)
        raise Misfit(expected=f"an integer up to the {rest} bytes left", found=found, place=where)
    return size


def _from_binary(body: bytes, offset: int, size: int, dtype: Dtype, tensor: InferInput) -> Array:
    count = tensor.shape[0] * tensor.shape[1]
    if dtype == "string":
        strings = _strings(body[offset : offset + size], count)
        if len(strings) != count:
            raise Misfit(
                expected=f"{count} strings, as shape {tensor.shape} says",
                found=f"{len(strings)}",
                place=", binary data",
            )
        return np.array(strings, object)
    numpy_dtype = NUMPY[dtype]
    if size != count * numpy_dtype.itemsize:
        raise Misfit(
            expected=f"{count * numpy_dtype.itemsize} bytes, as shape {tensor.shape} says",
            found=f"{size}",
            place=".parameters.binary_data_size",
        )
    array = np.frombuffer(body, numpy_dtype.newbyteorder("<"), count, offset)
    # onnxruntime reads whole words: they must lie where words may.
    return array if array.flags.aligned and sys.byteorder == "little" else array.astype(numpy_dtype)


def _strings(data: bytes, count: int) -> list[str]:
    equal = _equal_strings(data, count)
    if equal is not None:
        return equal
    # One decoding of the whole; where all of it is ASCII, lengths too, its slices are the strings.
    text = data.decode("latin-1")
    strings: list[str] = []
    offset, end = 0, len(data)
    while offset < end:
        start = offset + 4
        if start <= end:
            offset = start + _LENGTH.unpack_from(data, offset)[0]
        if start > end or offset > end:
            raise Misfit(
                expected="a length of 4 bytes and as many bytes of UTF-8 for each string",
                found="the data cut short",
                place=f", binary data[{len(strings)}]",
            )
        strings.append(text[start:offset])
    return strings if data.isascii() else _utf8(strings)


def _equal_strings(data: bytes, count: int) -> list[str] | None:
    """Return strings of one length and of ASCII alone, as hashed ids are, without a loop in Python."""
    width = len(data) // count if count else 0
    if width <= 4 or width * count != len(data) or not data.isascii():
        return None
    rows = np.frombuffer(data, np.uint8).reshape(count, width)
    if _LENGTH.unpack_from(data)[0] != width - 4 or (rows[:, :4] != rows[0, :4]).any():
        return None
    text = rows[:, 4:].tobytes().decode("ascii")
    return [text[start : start + width - 4] for start in range(0, len(text), width - 4)]


def _utf8(strings: list[str]) -> list[str]:
    for index, string in enumerate(strings):
        try:
            strings[index] = string.encode("latin-1").decode()
        except UnicodeDecodeError as error:
            raise Misfit(
                expected="UTF-8", found=f"{error}", place=f", binary data[{index}]"
            ) from None
    return strings
