"""Filters of items: comparisons and sets over columns of `items.arrow`, as a mask over all items.

    {"year": {"ge": 1990, "lt": 2000}, "genres": {"in": ["Drama", "Crime"]}, "title": "Alien"}

An item passes where all conditions hold. A value alone stands for `eq`, a list alone for `in`. A missing
value passes no condition; a list passes `eq` and `in` where one of its values does, `ne` and `not_in` where
none does.

I items, E values of all of them, V distinct values.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headwater.serving.errors import RequestError, shorten, unknown_name

Mask = npt.NDArray[np.bool_]
COMPARISONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}
SETS = ("in", "not_in")
_OPPOSITE = {"ne": "eq", "not_in": "in"}


@dataclass(frozen=True, slots=True)
class Column:
    """A column in the form that is compared: each value is a place among the distinct ones."""

    distinct_V: npt.NDArray[Any]
    """Distinct values: numbers, or texts as objects."""
    value_E: npt.NDArray[np.int64]
    """Place of each value that is not missing."""
    item_E: npt.NDArray[np.int64]
    """Item of each value, ascending."""
    num_items: int

    @classmethod
    def of(cls, values: Sequence[Any]) -> Column:
        """Return a column from its values, or its lists of values; None is missing."""
        lists = [each if isinstance(each, list) else [each] for each in values]
        number_I = [len(each) for each in lists]
        flat = [value for each in lists for value in each]
        item_E = np.repeat(np.arange(len(lists)), number_I)
        there_E = np.array(
            [value is not None and value == value for value in flat], np.bool_
        )  # NaN
        present = [value for value in flat if value is not None and value == value]
        is_number = bool(present) and not isinstance(present[0], str)
        array = np.array(present, None if is_number else object)
        distinct_V, value_E = np.unique(array, return_inverse=True)
        return cls(distinct_V, value_E, item_E[there_E], len(lists))

    @property
    def kind(self) -> str:
        """The values in words."""
        return "texts" if self.distinct_V.dtype.kind == "O" else "numbers"

    def passing(self, holds_V: Mask) -> Mask:
        """Return the items with a value for which a condition holds."""
        mask_I = np.zeros(self.num_items, np.bool_)
        mask_I[self.item_E[holds_V[self.value_E]]] = True
        return mask_I

    def present(self) -> Mask:
        """Return the items with a value."""
        return self.passing(np.ones(len(self.distinct_V), np.bool_))


def mask_of(
    conditions: Mapping[str, Any],
    column_of: Callable[[str, str], Column],
    num_items: int,
    where: str,
) -> Mask:
    """Return the items that pass all conditions; `RequestError` names the condition that cannot be tested."""
    mask_I = np.ones(num_items, np.bool_)
    for name, condition in conditions.items():
        path = f"{where}.{shorten(name, 60)}"
        column = column_of(name, path)
        for word, value in _words(condition).items():
            mask_I &= _tested(column, word, value, path)
    return mask_I


def _words(condition: Any) -> Mapping[str, Any]:
    if isinstance(condition, dict):
        return condition
    return {"in" if isinstance(condition, list) else "eq": condition}


def _tested(column: Column, word: str, value: Any, path: str) -> Mask:
    if word in _OPPOSITE:
        return column.present() & ~_tested(column, _OPPOSITE[word], value, path)
    if word == "in":
        if not isinstance(value, list):
            raise RequestError(f"{path}.in: expected a list, found {shorten(repr(value), 60)}")
        values = {_comparable(column, each, f"{path}.in") for each in value}
        return column.passing(
            np.array([each in values for each in column.distinct_V.tolist()], np.bool_)
        )
    if word not in COMPARISONS:
        raise RequestError(unknown_name(path, "comparison", word, (*COMPARISONS, *SETS)))
    compared = COMPARISONS[word](column.distinct_V, _comparable(column, value, f"{path}.{word}"))
    return column.passing(np.asarray(compared, np.bool_))


def _comparable(column: Column, value: Any, path: str) -> Any:
    is_text = isinstance(value, str)
    if isinstance(value, str | int | float) and (
        not len(column.distinct_V) or is_text == (column.kind == "texts")
    ):
        return value
    raise RequestError(f"{path}: the column has {column.kind}, found {shorten(repr(value), 60)}")
