"""Values of a raw column into the tensors of the graph: strict about types, lenient about absence.

null, NaN, '' and INT64_MIN are the same thing, a missing value, and become the missing value of the
input's dtype here: onnxruntime would turn None into the text "None". An integer is accepted for a
double, true and false for an integer (as 1 and 0); nothing else is cast, because a cast that the training
data did not have is a skew.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import simdjson

from headwater.feature_store.dtypes import DTYPES
from headwater.feature_store.schema import INT64_MIN, Dtype
from headwater.serving import loose_json
from headwater.serving.errors import Misfit, RequestError, shorten

T = TypeVar("T")
Array = npt.NDArray[Any]

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

_NULL = re.compile(b"null")
_INT64_MIN = str(INT64_MIN).encode()
_STRINGS = msgspec.json.Decoder(list[str])
_ANY = msgspec.json.Decoder()
_local = threading.local()


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
