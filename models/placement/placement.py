"""A network on its devices, and its weights: what evaluation and export need of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from headwater.models.network import CTRNetwork
from headwater.models.placement.state import copy_over, plain, spread


class Placement:
    """What `models.placement.place` gives: `module(batch)` is the logit.

    `network` holds the same weights unwrapped.
    """

    def __init__(self, network: CTRNetwork, module: nn.Module, device: torch.device) -> None:
        self.network = network
        self.module = module
        self.device = device

    def weights(self) -> dict[str, Any]:
        """Return the live weights by name.

        In one process they are plain tensors, for `torch.save`. On more ranks tables are
        ShardedTensors, for torch.distributed.checkpoint, which loads into this very dict.
        """
        return plain(self.network.state_dict())

    def load_weights(self, weights: Mapping[str, Any]) -> None:
        """Restore what `weights` gave, whole or not, bit by bit; RunError where it does not fit."""
        live = self.weights()
        with torch.no_grad():
            copy_over(live, spread(weights, live), "model")
