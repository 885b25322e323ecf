"""JSON with NaN, Infinity and -Infinity: no JSON, but what Python and standard clients write for these.

Strict JSON is decoded in one pass, as ever. Only where that fails, each word is replaced by a number beyond
double. So what stays undecoded (`msgspec.Raw`) is valid JSON; the parsers that know a dtype refuse it, as
they do anything unusual; and where it is decoded into Python values, here again, it becomes what the word
says.
"""

from __future__ import annotations

import math
import re
from functools import cache
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

# Who sends one of these numbers gets what the word gives. `-NaN` and `1NaN` become others, which are refused.
_NUMBERS = {b"NaN": b"1.1e88888888", b"Infinity": b"1.2e88888888"}
_FLOATS = {"1.1e88888888": math.nan, "1.2e88888888": math.inf, "-1.2e88888888": -math.inf}
_ANY_OF_THEM = re.compile(rb"NaN|Infinity|e88888888")
# Strings, and what holds no word; or what may hold words, up to the next string. A string that does not end
# is one too, so that no text is looked at twice.
_PARTS = re.compile(rb'(?:[^"NI]++|"[^"\\]*+(?:\\.[^"\\]*+)*+"?)++|[NI][^"]*+', re.DOTALL)
_OUT_OF_RANGE = "Number out of range"
_NOT_HERE = "NaN and infinities are taken as values of inputs alone"


def decode(decoder: msgspec.json.Decoder[T], data: memoryview) -> T:
    """Return `decoder.decode(data)`, with the three words as numbers; raises what that does."""
    try:
        return decoder.decode(data)
    except msgspec.DecodeError:
        text = bytes(data)
        if _ANY_OF_THEM.search(text) is None:
            raise
    return _decode_words(decoder, text)


def _decode_words(decoder: msgspec.json.Decoder[T], text: bytes) -> T:
    try:
        return _hooked(decoder.type).decode(_replace(text, _NUMBERS))
    except msgspec.ValidationError as error:
        message = str(error)
        if message.startswith(_OUT_OF_RANGE):
            message = message.replace(_OUT_OF_RANGE, _NOT_HERE, 1)
        raise msgspec.ValidationError(message) from None
    except msgspec.DecodeError:
        # The message names a byte: with words of the same length, the right one.
        decoder.decode(_replace(text, {word: b"0".ljust(len(word)) for word in _NUMBERS}))
        raise


def _replace(text: bytes, words: dict[bytes, bytes]) -> bytes:
    """Return the text with other words outside its strings."""
    parts: list[bytes] = _PARTS.findall(text)
    for index, part in enumerate(parts):
        if part[0] in b"NI":
            for word, other in words.items():
                part = part.replace(word, other)
            parts[index] = part
    return b"".join(parts)


@cache
def _hooked(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind, float_hook=_number)


def _number(text: str) -> float:
    value = _FLOATS.get(text)
    if value is None:
        value = float(text)
        if math.isinf(value):
            raise ValueError("Number too large")
    return value
