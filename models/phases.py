"""Phases of training: named, resumable stages, for procedures of more than one loss and one optimiser.

A model declares its phases. Each runs on a `Stage`, which the training code makes and lends to it, so that
nothing here imports upwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from headwater.models.base import ModelConfig
from headwater.models.placement.placement import Placement
from headwater.models.placement.settings import LearnSettings
from headwater.models.strategy import Strategy

Keep = Literal["best", "last"]
"""Epoch whose weights a descent ends with."""


class Stage(Protocol):
    """Folder, settings, networks and training that the training code lends to a phase."""

    @property
    def config(self) -> ModelConfig:
        """The model's settings in the job."""
        ...

    @property
    def learn(self) -> LearnSettings:
        """The settings by which networks learn."""
        ...

    @property
    def folder(self) -> Path:
        """Folder of the phase, for artefacts; the run's own for the last phase."""
        ...

    def earlier(self, phase: str) -> Path:
        """Return the folder of a phase before this one, by its name."""
        ...

    def build(self, config: ModelConfig) -> Placement:
        """Return an untrained network with these settings, placed to learn."""
        ...

    def descend(self, placement: Placement, strategy: Strategy[Any], *, keep: Keep) -> None:
        """Train to the plateau or the last epoch, from the phase's latest checkpoint where there is one.

        Afterwards the placement has the weights of the epoch that `keep` names; in the last phase only the
        run's checkpoint has them.
        """
        ...


class Phase(Protocol):
    """A named part of training, which goes on where it was stopped."""

    @property
    def name(self) -> str:
        """Name of the phase, of which its folder has its name."""
        ...

    @property
    def strategies(self) -> tuple[type[Strategy[Any]], ...]:
        """Strategies that it runs, whose table modes a job is checked for."""
        ...

    def run(self, stage: Stage) -> None:
        """Carry the phase to its end."""
        ...


@dataclass(frozen=True, slots=True)
class Descend:
    """Train one network by one strategy, with the settings of the job."""

    strategy: type[Strategy[Any]]
    name: str = "descend"
    keep: Keep = "best"

    @property
    def strategies(self) -> tuple[type[Strategy[Any]], ...]:
        """The one strategy."""
        return (self.strategy,)

    def run(self, stage: Stage) -> None:
        """Carry the phase to its end."""
        placement = stage.build(stage.config)
        stage.descend(placement, self.strategy(placement, stage.learn), keep=self.keep)
