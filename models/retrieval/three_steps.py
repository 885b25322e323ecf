"""The training of MCLRec: of each batch the encoder learns, then the augmenters, then the encoder again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, cast

import torch
from torch import Tensor, nn

from headwater.models.placement.optimisers import start_adam
from headwater.models.placement.placement import Placement
from headwater.models.placement.settings import LearnSettings
from headwater.models.placement.state import copy_over
from headwater.models.retrieval.cl4srec import Encoded, Viewed
from headwater.models.retrieval.interactions import Prefixes
from headwater.models.strategy import Check, StepLoss, Strategy
from headwater.models.tables.embeddings import Mode


class Augmented(Protocol):
    """A model with augmenters."""

    augmenters: nn.ModuleList

    @property
    def contrasts(self) -> bool:
        """True where some contrast of views is a part of the loss."""
        ...

    def viewed(self, batch: Prefixes) -> Viewed:
        """Return a batch with two views of each history."""
        ...

    def loss(self, output: Encoded, batch: Viewed) -> Tensor:
        """Return the loss of the encoder, summed over rows."""
        ...

    def view_vectors(self, batch: Viewed) -> tuple[Tensor, Tensor]:
        """Return the vectors of the two views."""
        ...

    def learned_loss(self, first_BD: Tensor, second_BD: Tensor) -> Tensor:
        """Return the loss of the augmenters, a mean over rows."""
        ...


class ThreeSteps(Strategy[Prefixes]):
    """Update of the encoder, of the augmenters, and of the encoder, on the same views of a batch.

    The augmenters stay as they are in the first and third, the encoder in the second: its vectors of the
    views are computed anew, without gradients.
    """

    modes: ClassVar[tuple[Mode, ...]] = ("dense",)

    def __init__(self, placement: Placement, settings: LearnSettings) -> None:
        """Make an optimiser of the encoder, and one of the augmenters."""
        self.model = cast("Augmented", placement.network.model)
        self.weights = dict(self.model.augmenters.named_parameters())
        super().__init__(placement, settings, apart=list(self.weights.values()))
        self.adam = torch.optim.Adam(self.weights.values(), lr=settings.dense_lr)
        start_adam(self.adam)

    def step(self, batch: Prefixes, num_rows: int, check: Check) -> StepLoss:
        """Train on one batch."""
        views = self.model.viewed(batch)
        mean = self.descend_encoder(views, num_rows, check)
        if self.model.contrasts:
            self.descend_augmenters(views, check)
        self.descend_encoder(views, num_rows, check)
        return StepLoss(mean)

    def descend_encoder(self, views: Viewed, num_rows: int, check: Check) -> Tensor:
        """Update everything but the augmenters, and return the mean loss."""
        self.model.augmenters.requires_grad_(False)
        self.optimisers.zero_grad()
        output, looked = self.placement.module(views)
        mean = self.model.loss(output, views) / num_rows
        total = mean + self.optimisers.penalty(looked)
        check(total.detach())
        total.backward()
        self.optimisers.step(looked)
        self.model.augmenters.requires_grad_(True)
        return mean.detach()

    def descend_augmenters(self, views: Viewed, check: Check) -> None:
        """Update the augmenters alone."""
        self.adam.zero_grad()
        with torch.no_grad():
            first_BD, second_BD = self.model.view_vectors(views)
        loss = self.model.learned_loss(first_BD, second_BD)
        check(loss.detach())
        loss.backward()
        self.adam.step()

    def lr_scale(self, factor: float, floor: float) -> None:
        """Multiply all learning rates by `factor`, but not below `floor`."""
        super().lr_scale(factor, floor)
        for group in self.adam.param_groups:
            group["lr"] = self.rates["dense"]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of both optimisers."""
        return {**super().state_dict(), "augmenters": self._own_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        super().load_state_dict({key: each for key, each in state.items() if key != "augmenters"})
        with torch.no_grad():
            copy_over(self._own_state(), state["augmenters"], "augmenters")
        for group in self.adam.param_groups:
            group["lr"] = self.rates["dense"]

    def _own_state(self) -> dict[str, Any]:
        return {name: self.adam.state[weight] for name, weight in self.weights.items()}
