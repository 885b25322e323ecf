"""Queries of a measured split: users, their histories until then, and the items that they took.

Q queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from headwater.feature_store.schema import FIRST_CODE, UNKNOWN_CODE
from headwater.models.retrieval.interactions import Interactions, Queries
from headwater.pipelines.teaching.histories import padded, runs


@dataclass(frozen=True, slots=True)
class Asked:
    """Every query of a split, as `pipelines.family.Examples`, and what it is measured by."""

    user_Q: NDArray[np.int64]
    history: Interactions
    """What is known of each query, by query: its user's events until then, known items alone."""
    relevant: Interactions
    """Items that each query is to find, by query, unknown ones too."""
    seen: Interactions
    """Items that no answer to a query names, by query."""
    events_N: NDArray[np.int64]
    """Training events of each item."""
    left_out: int
    """Users or baskets of the split that are no query: unknown ones, or with nothing shown or hidden."""
    batch_size: int
    device: torch.device
    longest: int | None
    """Newest items of a history that a query has; all when absent."""

    @property
    def rows(self) -> int:
        """Queries."""
        return len(self.user_Q)

    def epoch(self, number: int, start_batch: int = 0) -> Iterator[Queries]:  # noqa: ARG002
        """Yield the queries in their order."""
        starts = self.history.starts_U
        for first in range(start_batch * self.batch_size, self.rows, self.batch_size):
            end = min(first + self.batch_size, self.rows)
            length_B = starts[first + 1 : end + 1] - starts[first:end]
            if self.longest is not None:
                length_B = np.minimum(length_B, self.longest)
            item_BL = padded(self.history.item_E, starts[first + 1 : end + 1] - length_B, length_B)
            user_B, length = torch.from_numpy(self.user_Q[first:end]), torch.from_numpy(length_B)
            yield Queries(user_B, item_BL, length).to(self.device)


def ask_users(
    split: Interactions,
    before: Sequence[Interactions],
    *,
    masked: Sequence[Interactions],
    events_N: NDArray[np.int64],
    batch_size: int,
    device: torch.device,
    longest: int | None,
) -> Asked:
    """Return a query for each known user with an event in `split`.

    Its history are the events of `before`, part after part; no answer names what is in `masked`. Users that
    training never saw are left out: all of them are one row.
    """
    user_Q = np.flatnonzero(np.diff(split.starts_U))
    user_Q = user_Q[user_Q >= FIRST_CODE]
    return Asked(
        user_Q,
        history=_of_users(before, user_Q, known=True),
        relevant=_of_users([split], user_Q),
        seen=_of_users(masked, user_Q, known=True),
        events_N=events_N,
        left_out=int(split.starts_U[FIRST_CODE] > 0),
        batch_size=batch_size,
        device=device,
        longest=longest,
    )


def ask_baskets(
    whole: Interactions,
    hidden_E: NDArray[np.bool_],
    *,
    masks: bool,
    events_N: NDArray[np.int64],
    batch_size: int,
    device: torch.device,
    longest: int | None,
) -> Asked:
    """Return a query for each basket of which an item is shown and another hidden.

    The items that are shown are its history, and are no answer where it `masks`.
    """
    shown, hidden = _part(whole, ~hidden_E), _part(whole, hidden_E)
    is_asked_U = (np.diff(shown.starts_U) > 0) & (np.diff(hidden.starts_U) > 0)
    basket_Q = np.flatnonzero(is_asked_U)
    history = _of_users([shown], basket_Q, known=True)
    return Asked(
        np.full(len(basket_Q), UNKNOWN_CODE, np.int64),
        history=history,
        relevant=_of_users([hidden], basket_Q),
        seen=history if masks else _of_users([], basket_Q),
        events_N=events_N,
        left_out=int(np.count_nonzero(np.diff(whole.starts_U)) - len(basket_Q)),
        batch_size=batch_size,
        device=device,
        longest=longest,
    )


def _part(whole: Interactions, chosen_E: NDArray[np.bool_]) -> Interactions:
    """Return the chosen events of all users."""
    count_U = np.bincount(whole.users()[chosen_E], minlength=whole.num_users)
    starts_U = np.concatenate([[0], count_U.cumsum()])
    return Interactions(whole.num_users, whole.num_items, starts_U, whole.item_E[chosen_E])


def _of_users(
    parts: Sequence[Interactions], user_Q: NDArray[np.int64], *, known: bool = False
) -> Interactions:
    """Return the events of some users, part after part, by their place among them; `known` items alone."""
    query_of_E, item_of_E = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
    num_items = FIRST_CODE
    for part in parts:
        num_items = part.num_items
        first_Q, count_Q = part.starts_U[user_Q], np.diff(part.starts_U)[user_Q]
        query_E, event_E = runs(first_Q, count_Q)
        query_of_E.append(query_E)
        item_of_E.append(part.item_E[event_E])
    query_E, item_E = np.concatenate(query_of_E), np.concatenate(item_of_E)
    if known:
        query_E, item_E = query_E[item_E >= FIRST_CODE], item_E[item_E >= FIRST_CODE]
    # Stable: within a query the parts stay in their order.
    order = np.argsort(query_E, kind="stable")
    count_Q = np.bincount(query_E, minlength=len(user_Q))
    starts_Q = np.concatenate([[0], count_Q.cumsum()])
    return Interactions(len(user_Q), num_items, starts_Q, item_E[order])
