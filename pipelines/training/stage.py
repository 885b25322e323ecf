"""The stage that a phase of training runs on: its folder, networks of the job, and descents that resume."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from headwater.models.base import ModelConfig
from headwater.models.phases import Keep, Phase
from headwater.models.placement.place import place
from headwater.models.placement.placement import Placement
from headwater.models.placement.settings import LearnSettings
from headwater.models.strategy import Strategy
from headwater.pipelines.job import Job
from headwater.pipelines.output import write_whole, writing
from headwater.pipelines.ranks import Ranks
from headwater.pipelines.resolved import job_network, learn_settings
from headwater.pipelines.runs.checkpoint import Checkpoints
from headwater.pipelines.runs.run import Run
from headwater.pipelines.training.loop import Loop

if TYPE_CHECKING:
    from headwater.pipelines.family import Examples
    from headwater.pipelines.prepared import Prepared, SplitName

PHASES = "phases"
DONE = "done"
"""Empty file in the folder of a phase that has ended."""


@dataclass(frozen=True, slots=True)
class Training:
    """All that the phases of one training share."""

    job: Job
    prepared: Prepared
    examples: Mapping[SplitName, Examples]
    run: Run
    device: torch.device
    ranks: Ranks
    config: ModelConfig
    """The model's settings in the job."""
    phases: tuple[Phase, ...]
    """Phases that the model declares."""

    def is_last(self, number: int) -> bool:
        """Return whether a phase, by its number from 0, trains the network of the run."""
        return number == len(self.phases) - 1

    def folder(self, number: int) -> Path:
        """Return the folder of a phase, by its number from 0; the last one's is the run itself."""
        if self.is_last(number):
            return self.run.path
        return self.run.path / PHASES / f"{number + 1}-{self.phases[number].name}"


@dataclass(slots=True)
class TrainingStage:
    """The `models.phases.Stage` of one phase, on the data and the machine of one training."""

    training: Training
    number: int
    """Number of the phase, from 0."""
    resumes: bool
    """True to go on from checkpoints that are there."""
    ended: Loop | None = field(default=None, init=False)
    """The last descent."""

    @property
    def config(self) -> ModelConfig:
        """The model's settings in the job."""
        return self.training.config

    @property
    def learn(self) -> LearnSettings:
        """The settings of `[train]`."""
        return learn_settings(self.training.job)

    @property
    def folder(self) -> Path:
        """Folder of the phase, which exists; the run's own for the last phase."""
        folder = self.training.folder(self.number)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def earlier(self, phase: str) -> Path:
        """Return the folder of a phase before this one, by its name."""
        names = [each.name for each in self.training.phases[: self.number]]
        return self.training.folder(names.index(phase))

    def build(self, config: ModelConfig) -> Placement:
        """Return an untrained network with these settings, placed to learn."""
        training = self.training
        network = job_network(training.job, training.prepared.schema, config)
        return place(network, training.device, self.learn)

    def descend(self, placement: Placement, strategy: Strategy[Any], *, keep: Keep) -> None:
        """Train a network to the plateau or the last epoch, as `models.phases.Stage` says."""
        assert strategy.placement is placement, "a strategy trains the network that it was made for"
        training = self.training
        loop = Loop(
            training.job,
            training.prepared,
            training.examples,
            training.run,
            strategy,
            training.ranks,
            folder=self.folder,
            keep=keep,
        )
        if self.resumes:
            loop.resume()
        loop.train()
        self.ended = loop
        if loop.kept < len(loop.history) and not training.is_last(self.number):
            # Of the last phase the checkpoint has them, and reading it again would double the memory.
            parts = Checkpoints(loop.checkpoints.folder).load("best")
            assert parts is not None, "every epoch leaves a checkpoint"
            placement.load_weights(parts["network"]["weights"])


def run_phases(training: Training, *, resume: bool) -> Loop:
    """Carry all phases to their end, and return the last descent; `resume` passes over those that ended."""
    ended: Loop | None = None
    for number, phase in enumerate(training.phases):
        done = training.folder(number) / DONE
        is_last = training.is_last(number)
        if resume and not is_last and done.is_file():
            continue
        stage = TrainingStage(training, number, resumes=resume)
        if len(training.phases) > 1 and training.ranks.is_first:
            training.run.log("phase started", number=number + 1, phase=phase.name)
        phase.run(stage)
        training.ranks.barrier()
        if not is_last and training.ranks.is_first:
            write_whole(done, b"")
        ended = stage.ended
    assert ended is not None, "the last phase trains the network of the run"
    return ended
