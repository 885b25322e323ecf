"""Interactions of prepared data as arrays, by user or basket and in the order of time.

E events of a split.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headwater.feature_store.schema import FIRST_CODE, MISSING_CODE
from headwater.models.retrieval.interactions import Interactions
from headwater.pipelines.events import Events, read_events
from headwater.pipelines.prepared import Prepared, SplitName


def load_interactions(prepared: Prepared, split: SplitName, *, verify: bool = True) -> Interactions:
    """Return the events of the users of a split; rows without user or item are left out.

    Users and items that training never saw are row 1. Of equal times the order of the rows counts.
    """
    events = read_events(prepared.dataset(split, verify=verify))
    user_E = events.user_E
    assert user_E is not None, "a log of baskets has no users"
    num_users, num_items = (column.cardinality for column in prepared.schema.columns)
    return _by_asker(events, user_E.astype(np.int64), num_users, num_items)


@dataclass(frozen=True, slots=True)
class Baskets:
    """The baskets of a split, and which items of them are hidden."""

    whole: Interactions
    hidden_E: NDArray[np.bool_]
    """Whether each event of `whole` is an item to be found."""


def load_baskets(
    prepared: Prepared, split: SplitName, *, verify: bool = True, shown: float, given: bool
) -> Baskets:
    """Return the baskets of a split, from row 2 on; what is hidden is `given` by a column, or drawn.

    Drawn: of each basket a share of `shown` stays, at least one item and not all; the order depends on the
    keys of basket and item alone. Baskets of one item have nothing to be found by.
    """
    events = read_events(prepared.dataset(split, verify=verify))
    num_items = prepared.schema.columns[-1].cardinality
    keys, basket_E = np.unique(events.group_E, return_inverse=True)
    whole = _by_asker(events, basket_E + FIRST_CODE, len(keys) + FIRST_CODE, num_items)
    if given:
        order = _order(events, basket_E)
        kept = events.item_E[order] != MISSING_CODE
        return Baskets(whole, (events.label_E[order] > 0)[kept])
    count_U = np.diff(whole.starts_U)
    group_E = keys[whole.users() - FIRST_CODE]
    mixed_E = _mixed(group_E.view(np.uint64) ^ _mixed(whole.item_E.astype(np.uint64)))
    order = np.lexsort((mixed_E, whole.users()))
    rank_E = np.empty(len(order), np.int64)
    rank_E[order] = np.arange(len(order)) - np.repeat(whole.starts_U[:-1], count_U)
    stay_U = np.clip(np.ceil(count_U * shown), 1, np.maximum(count_U - 1, 1))
    return Baskets(whole, rank_E >= np.repeat(stay_U, count_U))


def _order(events: Events, asker_E: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the events by asker, then by time; equal ones stay in their order."""
    if events.time_E is None:
        return np.argsort(asker_E, kind="stable")
    return np.lexsort((events.time_E, asker_E))


def _by_asker(
    events: Events, asker_E: NDArray[np.int64], num_askers: int, num_items: int
) -> Interactions:
    order = _order(events, asker_E)
    order = order[(asker_E[order] != MISSING_CODE) & (events.item_E[order] != MISSING_CODE)]
    count_U = np.bincount(asker_E[order], minlength=num_askers)
    return Interactions(
        num_askers,
        num_items,
        np.concatenate([[0], count_U.cumsum()]),
        events.item_E[order],
        None if events.weight_E is None else events.weight_E[order],
    )


def _mixed(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return numbers of which every bit depends on every bit: the end of splitmix64."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
