"""Strategies of training: one step, its losses and optimisers, and what changes from epoch to epoch.

The training loop keeps epochs, ranks, checkpoints and the place in the data; a strategy is in the checkpoint.
Every draw of a strategy is a function of (seed, epoch, batch, rank), or is in its `state_dict`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from headwater.feature_store.errors import JobError
from headwater.models.placement.optimisers import Optimisers
from headwater.models.placement.placement import Placement
from headwater.models.placement.settings import LearnSettings
from headwater.models.placement.state import num_ranks
from headwater.models.tables.embeddings import Mode

B = TypeVar("B")

Check = Callable[[Tensor], None]
"""Raises TrainingError for a total loss that is not finite."""


@dataclass(frozen=True, slots=True)
class StepLoss:
    """Losses of a step, detached scalars: means over the rows of all ranks."""

    mean: Tensor
    """The loss without penalties, for the log."""


class Strategy(ABC, Generic[B]):
    """One way of training a placed network, step by step."""

    modes: ClassVar[tuple[Mode, ...]] = ("dense", "lazy", "fused")
    """Table modes that it can train. Fused tables update themselves at each backward pass, so a strategy that
    needs the sum of several passes leaves them out."""
    reads_numbers: ClassVar[bool] = False
    """Whether its batches have `row_B`, the number of each row in the training data."""

    def __init__(
        self,
        placement: Placement,
        settings: LearnSettings,
        *,
        apart: Collection[nn.Parameter] = (),
    ) -> None:
        """Make the optimisers; JobError for a table mode that the strategy cannot train.

        Weights that are `apart` have no optimiser, penalty or clipping here: the strategy trains them.
        """
        mode = placement.network.embeddings.mode
        if mode not in self.modes:
            raise JobError(mode_problem(type(self), mode))
        self.placement = placement
        self.settings = settings
        self.optimisers = Optimisers(placement, settings, apart)

    def begin_epoch(self, epoch: int) -> None:
        """Change what depends on the epoch, from 1: temperatures, sampled dimensions. By default nothing."""

    @abstractmethod
    def step(self, batch: B, num_rows: int, check: Check) -> StepLoss:
        """Train on a rank's part of a batch that has `num_rows` rows in all, by one or more updates.

        `check` gets each total loss, with penalties, before anything is updated by it.
        """

    @property
    def rates(self) -> dict[str, float]:
        """Learning rates now, by kind of weight."""
        return self.optimisers.lr

    def lr_scale(self, factor: float, floor: float) -> None:
        """Multiply the learning rates by `factor`, but not below `floor`."""
        self.optimisers.lr_scale(factor, floor)

    def state_dict(self) -> dict[str, Any]:
        """Return what the next step depends on besides weights: nested dicts of live tensors."""
        return self.optimisers.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave, bit by bit; RunError where it does not fit."""
        self.optimisers.load_state_dict(state)


class OneLoss(Strategy[Any]):
    """One pass, the model's loss with penalties, one update."""

    def step(self, batch: Any, num_rows: int, check: Check) -> StepLoss:
        """Train on one batch."""
        self.optimisers.zero_grad()
        with torch.autocast(
            self.placement.device.type,
            torch.bfloat16,
            enabled=self.settings.precision == "bfloat16",
        ):
            output, looked = self.placement.module(batch)
        # Ranks average their gradients, and their parts differ by up to one row: a mean over the
        # part would weigh rows differently.
        mean = self.placement.network.model.loss(output, batch) * (num_ranks() / num_rows)
        total = mean + self.optimisers.penalty(looked)
        check(total.detach())
        total.backward()
        self.optimisers.step(looked)
        return StepLoss(mean.detach())


def mode_problem(strategy: type[Strategy[Any]], mode: Mode) -> str:
    """Return why a strategy cannot train a table mode, and the remedy."""
    known = " or ".join(repr(each) for each in strategy.modes)
    return (
        f"train.sparse.mode: {mode!r} cannot be trained by {strategy.__name__}. "
        f"Set train.sparse.mode = {known}."
    )
