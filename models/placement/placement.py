"""A network on its devices, and its weights: all that evaluation and export need of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from headwater.models.network import Network
from headwater.models.placement.state import copy_over, plain, spread


class TableOptimizer(Protocol):
    """The optimiser that fused tables have for themselves."""

    param_groups: list[dict[str, Any]]

    def zero_grad(self) -> None:
        """Drop gradients."""
        ...

    def step(self) -> None:
        """Hand changed learning rates on; the backward pass has updated the tables."""
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """Return the state by parameter."""
        ...


class Placement:
    """The result of `models.placement.place`: `module(batch)` gives the logit and what was looked up.

    `network` holds the same weights unwrapped.
    """

    def __init__(
        self,
        network: Network,
        module: nn.Module,
        device: torch.device,
        fused: TableOptimizer | None = None,
    ) -> None:
        self.network = network
        self.module = module
        self.device = device
        self.fused = fused
        """The optimiser of fused tables, where they learn."""

    def logit(self, batch: Any) -> Tensor:
        """Return the logit of a batch, (B,)."""
        return self.module(batch)[0]

    def weights(self) -> dict[str, Any]:
        """Return the live weights by name.

        In one process they are plain tensors, for `torch.save`. On more ranks tables are
        ShardedTensors, for torch.distributed.checkpoint, which loads into this very dict.
        """
        return plain(self.network.state_dict())

    def load_weights(self, weights: Mapping[str, Any]) -> None:
        """Restore what `weights` gave, whole or not, bit by bit; RunError where it does not fit."""
        own = "model."
        self.network.model.make_room(
            {name.removeprefix(own): each for name, each in weights.items() if name.startswith(own)}
        )
        live = self.weights()
        with torch.no_grad():
            copy_over(live, spread(weights, live), "model")
