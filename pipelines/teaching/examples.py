"""Batches of a training split for retrieval models, by what a model is taught.

The order of an epoch and each draw are functions of (seed, epoch, batch); each rank takes its part of every
batch, so the batches of one process are those of many put together.

E examples of the split, B those of a rank in a batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headwater.models.retrieval.interactions import (
    Interactions,
    Pairs,
    Prefixes,
    Sequences,
    Sets,
)
from headwater.pipelines.family import Reading
from headwater.pipelines.ranks import Ranks
from headwater.pipelines.teaching.histories import padded


class TaughtExamples(ABC):
    """Shuffled batches of the examples of one kind."""

    def __init__(
        self, interactions: Interactions, reading: Reading, ranks: Ranks, device: torch.device
    ) -> None:
        self.interactions = interactions
        self.reading = reading
        self.ranks = ranks
        self.device = device

    @property
    @abstractmethod
    def rows(self) -> int:
        """Examples of an epoch, of all ranks."""

    @abstractmethod
    def batch(self, example_B: NDArray[np.int64], draw: np.random.Generator) -> Any:
        """Return a batch of examples by their numbers; `draw` is of the whole batch."""

    def order(self, draw: np.random.Generator) -> NDArray[np.int64]:
        """Return the examples of an epoch in their order: by default all of them, shuffled."""
        return draw.permutation(self.rows)

    def epoch(self, number: int, start_batch: int = 0) -> Iterator[Any]:
        """Yield the batches of an epoch, from 0, from `start_batch` on."""
        seed, size = self.reading.seed % 2**64, self.reading.batch_size
        order = self.order(np.random.default_rng((seed, number)))
        for place in range(start_batch, -(-len(order) // size)):
            draw = np.random.default_rng((seed, number, 1 + place))
            whole = order[place * size : (place + 1) * size]
            yield self.part(self.batch(whole, draw)).to(self.device)

    def part(self, batch: Any) -> Any:
        """Return this rank's share of a batch."""
        if self.ranks.world_size == 1:
            return batch
        mine = slice(self.ranks.rank, None, self.ranks.world_size)
        values = (getattr(batch, name)[mine] for name in batch.__dataclass_fields__)
        return type(batch)(*values)


class PairExamples(TaughtExamples):
    """Each event with an item that its user has no event with; every event comes once an epoch."""

    def __init__(
        self, interactions: Interactions, reading: Reading, ranks: Ranks, device: torch.device
    ) -> None:
        super().__init__(interactions, reading, ranks, device)
        self.user_E = interactions.users()
        keys = self.user_E * interactions.num_items + interactions.item_E
        self.taken = np.unique(keys)
        """Pairs of user and item with an event, as one number each, ascending."""

    @property
    def rows(self) -> int:
        """Events of the split."""
        return len(self.interactions)

    def batch(self, example_B: NDArray[np.int64], draw: np.random.Generator) -> Pairs:
        """Return users, their items, and drawn ones."""
        user_B = self.user_E[example_B]
        positive_B = self.interactions.item_E[example_B].astype(np.int64)
        negative_B = self.negatives(user_B, draw)
        return Pairs(*(torch.from_numpy(each) for each in (user_B, positive_B, negative_B)))

    def negatives(self, user_B: NDArray[np.int64], draw: np.random.Generator) -> NDArray[np.int64]:
        """Return items that users have no event with, uniform; any where a user has all of them."""
        num_items = self.interactions.num_items
        item_B = draw.integers(2, num_items, len(user_B))
        again = np.arange(len(user_B))
        for _ in range(_TRIES):
            key_A = user_B[again] * num_items + item_B[again]
            found_A = np.minimum(np.searchsorted(self.taken, key_A), len(self.taken) - 1)
            again = again[self.taken[found_A] == key_A]
            if not len(again):
                break
            item_B[again] = draw.integers(2, num_items, len(again))
        return item_B


class UserPairExamples(PairExamples):
    """Users drawn evenly, with replacement, each with one of its items and one that is none of them.

    So DCCF is taught, in its published code: an epoch is a number of draws, whatever the events.
    """

    def __init__(
        self,
        interactions: Interactions,
        reading: Reading,
        ranks: Ranks,
        device: torch.device,
        *,
        draws: int,
    ) -> None:
        super().__init__(interactions, reading, ranks, device)
        self.draws = draws
        self.active = np.flatnonzero(np.diff(interactions.starts_U))

    @property
    def rows(self) -> int:
        """Draws of an epoch."""
        return self.draws

    def order(self, draw: np.random.Generator) -> NDArray[np.int64]:
        """Return an event of each user that is drawn."""
        starts_U = self.interactions.starts_U
        user_E = self.active[draw.integers(0, len(self.active), self.draws)]
        count_E = starts_U[user_E + 1] - starts_U[user_E]
        return starts_U[user_E] + draw.integers(0, count_E)


class PrefixExamples(TaughtExamples):
    """Every history with an item that followed it, cut to its newest items."""

    def __init__(
        self,
        interactions: Interactions,
        reading: Reading,
        ranks: Ranks,
        device: torch.device,
        *,
        longest: int,
    ) -> None:
        super().__init__(interactions, reading, ranks, device)
        first_E = np.repeat(interactions.starts_U[:-1], np.diff(interactions.starts_U))
        place_E = np.arange(len(interactions))
        self.target_E = place_E[place_E > first_E]
        """Event of each example that is to be foretold."""
        self.length_E = np.minimum(self.target_E - first_E[self.target_E], longest)

    @property
    def rows(self) -> int:
        """Events that are not the first of their user."""
        return len(self.target_E)

    def batch(self, example_B: NDArray[np.int64], draw: np.random.Generator) -> Prefixes:  # noqa: ARG002
        """Return histories and what followed."""
        target_B, length_B = self.target_E[example_B], self.length_E[example_B]
        item_E = self.interactions.item_E
        return Prefixes(
            padded(item_E, target_B - length_B, length_B),
            torch.from_numpy(length_B),
            torch.from_numpy(item_E[target_B].astype(np.int64)),
        )


class SequenceExamples(TaughtExamples):
    """Every user with two events or more once, all but the newest of its items beside what followed each."""

    def __init__(
        self,
        interactions: Interactions,
        reading: Reading,
        ranks: Ranks,
        device: torch.device,
        *,
        longest: int,
    ) -> None:
        super().__init__(interactions, reading, ranks, device)
        count_U = np.diff(interactions.starts_U)
        users = np.flatnonzero(count_U > 1)
        self.length_E = np.minimum(count_U[users] - 1, longest)
        self.start_E = interactions.starts_U[users + 1] - 1 - self.length_E

    @property
    def rows(self) -> int:
        """Users with two events or more."""
        return len(self.length_E)

    def batch(self, example_B: NDArray[np.int64], draw: np.random.Generator) -> Sequences:  # noqa: ARG002
        """Return sequences and the same a step later."""
        item_E = self.interactions.item_E
        start_B, length_B = self.start_E[example_B], self.length_E[example_B]
        return Sequences(
            padded(item_E, start_B, length_B),
            torch.from_numpy(length_B),
            padded(item_E, start_B + 1, length_B),
        )


class SetExamples(TaughtExamples):
    """Every user or basket once, with its distinct items."""

    def __init__(
        self, interactions: Interactions, reading: Reading, ranks: Ranks, device: torch.device
    ) -> None:
        super().__init__(interactions, reading, ranks, device)
        keys = np.unique(interactions.users() * interactions.num_items + interactions.item_E)
        self.item_E = (keys % interactions.num_items).astype(np.int32)
        count_U = np.bincount(keys // interactions.num_items, minlength=interactions.num_users)
        starts_U = np.concatenate([[0], count_U.cumsum()])
        active = np.flatnonzero(count_U)
        self.start_E, self.length_E = starts_U[active], count_U[active]

    @property
    def rows(self) -> int:
        """Users with an event."""
        return len(self.length_E)

    def batch(self, example_B: NDArray[np.int64], draw: np.random.Generator) -> Sets:  # noqa: ARG002
        """Return the items of users."""
        length_B = self.length_E[example_B]
        return Sets(
            padded(self.item_E, self.start_E[example_B], length_B), torch.from_numpy(length_B)
        )


_TRIES = 100
"""Draws of an item before one of the user's own is taken: who has nearly all has nothing to be taught."""
