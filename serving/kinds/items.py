"""The items of a retriever: what they are called, what is known of them, and which pass a filter.

I items, in the order of their places.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from headwater.feature_store.schema import Dtype
from headwater.serving.errors import RequestError, shorten, unknown_name
from headwater.serving.kinds.filters import Column, Mask, mask_of
from headwater.serving.signature import LENGTH
from headwater.serving.tensors import Arrays, flat, ragged

EVENTS = "events"
"""Column with the training events of each item."""
Values = list[Any]


class Items:
    """The table of items: the first column is their name, and `events` counts those of training."""

    def __init__(self, table: Any) -> None:
        """Take a `pyarrow.Table`; KeyError where it has no `events`."""
        self.name: str = table.column_names[0]
        self.columns: tuple[str, ...] = tuple(n for n in table.column_names if n != EVENTS)
        self.events: npt.NDArray[np.int64] = table.column(EVENTS).to_numpy()
        self.by_events: npt.NDArray[np.int64] = np.argsort(-self.events, kind="stable")
        """Places, those with the most events first."""
        self.ids: Values = table.column(self.name).to_pylist()
        self._place = {item: place for place, item in enumerate(self.ids)}
        self._table = table
        self._values: dict[str, Values] = {}
        self._compared: dict[str, Column] = {}
        self._arrays: dict[tuple[str, Dtype, bool], Arrays] = {}

    @property
    def is_integer(self) -> bool:
        """Whether items are called by integers, not by texts."""
        return not self.ids or isinstance(self.ids[0], int)

    def __len__(self) -> int:
        return len(self.ids)

    def places(self, items: Iterable[Any]) -> npt.NDArray[np.int64]:
        """Return the places of items; those that the release does not know are left out."""
        found = (self._place.get(item) for item in items)
        return np.array([place for place in found if place is not None], np.int64)

    def place(self, item: Any, where: str) -> int:
        """Return the place of an item; `RequestError` where the release does not know it."""
        place = self._place.get(item)
        if place is None:
            raise RequestError(f"{where}: the release has no item {shorten(repr(item), 60)}")
        return place

    def values(self, column: str, where: str) -> Values:
        """Return a column; `RequestError` for one that is not there."""
        if column not in self.columns:
            raise RequestError(unknown_name(where, "column", column, self.columns))
        if column not in self._values:
            self._values[column] = self._table.column(column).to_pylist()
        return self._values[column]

    def mask(self, conditions: Mapping[str, Any], where: str) -> Mask:
        """Return the items that pass a filter, as `filters` says; `RequestError` for a wrong condition."""
        return mask_of(conditions, self._column, len(self), where)

    def _column(self, name: str, where: str) -> Column:
        if name not in self._compared:
            self._compared[name] = Column.of(self.values(name, where))
        return self._compared[name]

    def arrays(
        self, column: str, dtype: Dtype, places: npt.NDArray[np.int64], *, is_list: bool
    ) -> Arrays:
        """Return the tensors of a column for some items, as a graph takes them; `Misfit` for another type."""
        key = column, dtype, is_list
        if key not in self._arrays:
            values = self.values(column, column)
            if is_list:
                padded, lengths = ragged(values, dtype)
                self._arrays[key] = {column: padded, column + LENGTH: lengths}
            else:
                self._arrays[key] = {column: flat(values, dtype).reshape(-1, 1)}
        return {name: array[places] for name, array in self._arrays[key].items()}
