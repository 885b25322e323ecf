"""JSON of the values of a raw column into arrays: numbers without a Python object for each.

Types are strict, and absence is not an error, as `tensors` says; NaN and infinities are read by `loose_json`.
"""

from __future__ import annotations

import re
import threading
from typing import Any, TypeVar

import msgspec
import numpy as np
import simdjson

from headwater.feature_store.schema import INT64_MIN, Dtype
from headwater.serving.errors import Misfit, RequestError, shorten
from headwater.serving.protocols import loose_json
from headwater.serving.tensors import NUMPY, Array, flat

T = TypeVar("T")

_NULL = re.compile(b"null")
_INT64_MIN = str(INT64_MIN).encode()
_STRINGS = msgspec.json.Decoder(list[str])
_ANY = msgspec.json.Decoder()
_local = threading.local()


def from_json(raw: msgspec.Raw, dtype: Dtype, *, nested: bool = True) -> Array:
    """Return the numbers or strings of a JSON array as `[count]` of `dtype`; flat, or `nested` too.

    The common case (no wrong type) costs no Python object a number. Raises `Misfit`.
    """
    try:
        if dtype == "string":
            return np.array(_STRINGS.decode(memoryview(raw)), object)
        text = bytes(raw)
        if nested or text.count(b"[") == 1:
            return numbers(text, dtype)
    except (msgspec.ValidationError, TypeError, ValueError, RuntimeError):
        # A null among strings, a wrong type, or a number that simdjson cannot hold (it raises all three).
        pass
    values = any_json(raw)
    if not isinstance(values, list):
        raise Misfit(expected="an array", found=shorten(repr(values), 60))
    return flat(_unnested(values) if nested else values, dtype)


def any_json(raw: msgspec.Raw) -> Any:
    """Return any JSON value as Python objects; raises `Misfit` where it is malformed or too deep."""
    try:
        return loose_json.decode(_ANY, memoryview(raw))
    except RecursionError:
        raise Misfit(expected="an array of values", found="arrays nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Misfit(expected="valid JSON", found=f"{error}") from None


def decode_json(decoder: msgspec.json.Decoder[T], data: memoryview, where: str = "$") -> T:
    """Return the decoded message; raises `RequestError` with the JSON path, which begins with `where`."""
    try:
        return loose_json.decode(decoder, data)
    except RecursionError:
        raise RequestError(f"{where}: arrays or objects are nested too deeply") from None
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        raise RequestError(f"{where}{path.removesuffix('`')}: {message}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"body: expected valid JSON, found: {error}") from None


def numbers(text: bytes, dtype: Dtype) -> Array:
    """Return the numbers of a valid JSON array, flat or nested, as `[count]`; null is missing.

    Raises `TypeError`, `ValueError` or `RuntimeError` where anything else is in it, or too large a number.
    """
    if b"null" not in text:
        return _parsed(text, dtype)
    # Text beside the numbers, as in a string, makes simdjson refuse the array: no other null is replaced.
    if dtype == "int64":
        return _parsed(text.replace(b"null", _INT64_MIN), dtype)
    array = _parsed(text.replace(b"null", b"0"), dtype).copy()
    commas = np.flatnonzero(np.frombuffer(text, np.uint8) == ord(","))
    if len(array) != len(commas) + 1:
        raise ValueError("an empty array: the commas before a null do not give its index")
    nulls = [match.start() for match in _NULL.finditer(text)]
    array[np.searchsorted(commas, nulls)] = np.nan
    return array


def _parsed(text: bytes, dtype: Dtype) -> Array:
    parser = getattr(_local, "parser", None)
    if parser is None:
        parser = _local.parser = simdjson.Parser()
    document: Any = parser.parse(text)
    try:
        if not isinstance(document, simdjson.Array):
            raise TypeError
        return np.frombuffer(
            document.as_buffer(of_type="i" if dtype == "int64" else "d"), NUMPY[dtype]
        )
    finally:
        # The parser cannot be used again while its document lives, and a traceback would keep it.
        del document


def _unnested(values: list[Any]) -> list[object]:
    """Return the values of nested lists in row-major order, at any depth, as simdjson does."""
    found: list[object] = []
    waiting = values[::-1]
    while waiting:
        entry = waiting.pop()
        if isinstance(entry, list):
            waiting.extend(entry[::-1])
        else:
            found.append(entry)
    return found
