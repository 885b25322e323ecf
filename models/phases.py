"""Phases of training: named, resumable stages, for procedures of more than one loss and one optimiser.

A model declares its phases. Each runs on a `Stage`, which the training code makes and lends to it, so that
nothing here imports upwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from torch import Tensor

from headwater.models.base import ModelConfig
from headwater.models.placement.placement import Placement
from headwater.models.placement.settings import LearnSettings
from headwater.models.strategy import Strategy
from headwater.models.tables.embeddings import Mode

if TYPE_CHECKING:
    from headwater.feature_store.encoders import Declared

Keep = Literal["best", "last"]
"""Epoch whose weights a descent ends with."""


class Bar(AbstractContextManager[Any], Protocol):
    """Progress of one piece of work."""

    def advance(self, count: int = 1) -> None:
        """Count units as done."""
        ...


class Stage(Protocol):
    """Folder, settings, networks and training that the training code lends to a phase."""

    @property
    def config(self) -> ModelConfig:
        """The model's settings in the job."""
        ...

    @property
    def seed(self) -> int:
        """Seed of the run."""
        ...

    @property
    def learn(self) -> LearnSettings:
        """The settings by which networks learn."""
        ...

    @property
    def mode(self) -> Mode:
        """Table mode of the job."""
        ...

    @property
    def features(self) -> Sequence[Declared]:
        """The features that the job declares."""
        ...

    @property
    def folder(self) -> Path:
        """Folder of the phase, for artefacts; the run's own for the last phase."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Write an artefact into the folder, whole and durably, once for all ranks."""
        ...

    def earlier(self, phase: str) -> Path:
        """Return the folder of a phase before this one, by its name."""
        ...

    def build(self, config: ModelConfig, mode: Mode | None = None) -> Placement:
        """Return an untrained network with these settings, placed to learn, and open its prepared data.

        Its tables are of the job's mode when `mode` is absent. What the phase does after it, it does on this
        network's data: its columns, prepared first where they are not. In the last phase these settings are
        recorded as the run's.
        """
        ...

    def load(self, placement: Placement, phase: str) -> None:
        """Give a network the weights that a descent of an earlier phase ended with."""
        ...

    def batches(self, split: Literal["train", "valid"], *, epoch: int = 0) -> Iterator[Any]:
        """Return the batches of a split; those of train in the order of an epoch, from 0."""
        ...

    def steps(self) -> int:
        """Return the steps of an epoch of training."""
        ...

    def descend(
        self,
        placement: Placement,
        strategy: Strategy[Any],
        *,
        keep: Keep,
        epochs: int | None = None,
    ) -> None:
        """Train to the plateau or the last epoch, from the phase's latest checkpoint where there is one.

        With `epochs` it trains for just so many, at the same learning rates, whatever validation says.
        Afterwards the placement has the weights of the epoch that `keep` names; in the last phase only the
        run's checkpoint has them.
        """
        ...

    def keep(self, placement: Placement) -> None:
        """Measure a network that needs no descent, and end with its weights."""
        ...

    def evaluate(self, score: Callable[[Any], Tensor]) -> list[Mapping[str, float]]:
        """Return the validation metrics of C candidates, whose logits `score` gives of a batch: (C, B).

        The validation data is read once.
        """
        ...

    def monitored(self, values: Mapping[str, float]) -> float:
        """Return what `train.monitor` says of metrics, to be maximised."""
        ...

    def progress(self, description: str, total: int, unit: str) -> Bar:
        """Return a bar of progress, as a context manager."""
        ...

    def note(self, text: str) -> None:
        """Tell the user something."""
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

    @property
    def mode(self) -> Mode | None:
        """Table mode of its networks; None for the job's."""
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
    mode: Mode | None = None

    @property
    def strategies(self) -> tuple[type[Strategy[Any]], ...]:
        """The one strategy."""
        return (self.strategy,)

    def run(self, stage: Stage) -> None:
        """Carry the phase to its end."""
        self.train(stage, stage.config)

    def train(self, stage: Stage, config: ModelConfig) -> None:
        """Train a network with these settings of its model."""
        placement = stage.build(config, self.mode)
        stage.descend(placement, self.strategy(placement, stage.learn), keep=self.keep)
