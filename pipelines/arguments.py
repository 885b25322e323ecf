"""Arguments of the Python functions: what is not of the kind that one takes is refused by its name."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from headwater.feature_store.errors import InputError

T = TypeVar("T")

_SHOWN_CHARS = 60


def checked(value: object, kind: type[T], argument: str, expected: str) -> T:
    """Return `value`; InputError where it is of another kind than `expected` describes."""
    if not isinstance(value, kind):
        raise refused(value, argument, expected)
    return value


def path_of(value: object, argument: str, expected: str = "a path, as text or Path") -> Path:
    """Return a path that was given as text or Path; InputError for anything else."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    return Path(checked(value, str, argument, expected))


def list_of(values: object, argument: str, expected: str) -> list[Any]:
    """Return the entries of a list or another collection; InputError for one value or a dict."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise refused(values, argument, expected)
    return list(values)


def refused(value: object, argument: str, expected: str) -> InputError:
    """Return the error for a value that an argument cannot take."""
    shown = repr(value)
    if len(shown) > _SHOWN_CHARS:
        shown = f"{shown[:_SHOWN_CHARS]}.."
    kind = "" if value is None else f" ({type(value).__name__})"
    return InputError(f"{argument}: found {shown}{kind}, expected {expected}.")
