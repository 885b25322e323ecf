"""The stage that a phase of training runs on: its folder, networks of the job, and descents that resume."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from headwater.models.base import ModelConfig
from headwater.models.phases import Keep, Phase
from headwater.models.placement.place import place
from headwater.models.placement.placement import Placement
from headwater.models.placement.settings import LearnSettings
from headwater.models.registry import may_add_columns
from headwater.models.strategy import OneLoss, Strategy
from headwater.models.tables.embeddings import Mode
from headwater.pipelines.console import Progress, note
from headwater.pipelines.family import Reading, family_of
from headwater.pipelines.job import Job
from headwater.pipelines.job_model import with_columns, with_model
from headwater.pipelines.output import write_whole, writing
from headwater.pipelines.prepared import load_prepared
from headwater.pipelines.preparing.prepare import prepare
from headwater.pipelines.ranks import Ranks, shared
from headwater.pipelines.resolved import how_tables_learn, job_network, learn_settings
from headwater.pipelines.runs.checkpoint import CHECKPOINT, Checkpoints
from headwater.pipelines.runs.run import PHASES, Run
from headwater.pipelines.training.loop import AfterEpoch, Loop

if TYPE_CHECKING:
    from headwater.feature_store.encoders import Declared
    from headwater.pipelines.family import Examples
    from headwater.pipelines.prepared import Prepared, SplitName

DONE = "done"
"""Empty file in the folder of a phase that has ended."""


@dataclass(frozen=True, slots=True)
class Training:
    """All that the phases of one training share."""

    job: Job
    prepared: Prepared
    """Data with the columns of the job's model, which the first phase reads."""
    examples: Mapping[tuple[SplitName, bool], Examples]
    """Its opened splits, each with and without the numbers of rows."""
    run: Run
    device: torch.device
    ranks: Ranks
    config: ModelConfig
    """The model's settings in the job."""
    phases: tuple[Phase, ...]
    """Phases that the model declares."""
    after_epoch: AfterEpoch | None = None
    """Called after each epoch of the last phase."""

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
    prepared: Prepared = field(init=False)
    """Data of the network that was built last."""
    examples: dict[tuple[SplitName, bool], Examples] = field(
        default_factory=dict["tuple[SplitName, bool]", "Examples"], init=False
    )
    """Its opened splits."""

    @property
    def config(self) -> ModelConfig:
        """The model's settings in the job."""
        return self.training.config

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return self.training.job.train.seed

    @property
    def learn(self) -> LearnSettings:
        """The settings of `[train]`."""
        return learn_settings(self.training.job)

    @property
    def mode(self) -> Mode:
        """Table mode of the job."""
        return how_tables_learn(self.training.job)[0]

    @property
    def features(self) -> Sequence[Declared]:
        """The features that the job declares."""
        return self.training.job.features.columns

    @property
    def folder(self) -> Path:
        """Folder of the phase, which exists; the run's own for the last phase."""
        folder = self.training.folder(self.number)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def write(self, name: str, content: bytes) -> None:
        """Write an artefact into the folder, whole and durably, once for all ranks; OutputError else."""
        if self.training.ranks.is_first:
            write_whole(self.folder / name, content)

    def earlier(self, phase: str) -> Path:
        """Return the folder of a phase before this one, by its name."""
        names = [each.name for each in self.training.phases[: self.number]]
        return self.training.folder(names.index(phase))

    def build(self, config: ModelConfig, mode: Mode | None = None) -> Placement:
        """Return an untrained network with these settings, as `models.phases.Stage` says."""
        training = self.training
        job = with_model(training.job, config)
        self.prepared = data_of(job, training.prepared, training.ranks)
        same = self.prepared is training.prepared
        self.examples = dict(training.examples) if same else {}
        if training.is_last(self.number) and training.ranks.is_first:
            training.run.record_model(job)
        network = job_network(job, self.prepared, mode)
        return place(network, training.device, self.learn)

    def load(self, placement: Placement, phase: str) -> None:
        """Give a network the weights that a descent of an earlier phase ended with."""
        _load_best(placement, self.earlier(phase))

    def batches(self, split: Literal["train", "valid"], *, epoch: int = 0) -> Iterator[Any]:
        """Return the batches of a split; those of train in the order of an epoch, from 0."""
        return self._open(split).epoch(epoch)

    def steps(self) -> int:
        """Return the steps of an epoch of training."""
        return -(-self._open("train").rows // self.training.job.train.batch_size)

    def descend(
        self,
        placement: Placement,
        strategy: Strategy[Any],
        *,
        keep: Keep,
        epochs: int | None = None,
    ) -> None:
        """Train a network to the plateau or the last epoch, as `models.phases.Stage` says."""
        assert strategy.placement is placement, "a strategy trains the network that it was made for"
        loop = self._loop(strategy, keep, epochs)
        if self.resumes:
            loop.resume()
        loop.train()
        self.ended = loop
        if loop.kept < len(loop.history) and not self.training.is_last(self.number):
            # Of the last phase the checkpoint has them, and reading it again would double the memory.
            _load_best(placement, self.folder)

    def keep(self, placement: Placement) -> None:
        """Measure a network that needs no descent, and end with its weights."""
        self.ended = self._loop(OneLoss(placement, self.learn), "last", None)
        self.ended.solved()

    def _loop(self, strategy: Strategy[Any], keep: Keep, epochs: int | None) -> Loop:
        training = self.training
        return Loop(
            training.job,
            self.prepared,
            {
                "train": self._open("train", numbered=strategy.reads_numbers),
                "valid": self._open("valid"),
            },
            training.run,
            strategy,
            training.ranks,
            folder=self.folder,
            keep=keep,
            epochs=epochs,
            after_epoch=training.after_epoch if training.is_last(self.number) else None,
        )

    def evaluate(self, score: Callable[[Any], Tensor]) -> list[Mapping[str, float]]:
        """Return the validation metrics of candidates, as `models.phases.Stage` says."""
        measure_all = family_of(self.training.job).measure_all
        assert measure_all is not None, "a phase that compares candidates is of a family that can"
        with torch.no_grad():
            return measure_all(score, self.batches("valid"))

    def monitored(self, values: Mapping[str, float]) -> float:
        """Return what `train.monitor` says of metrics, to be maximised."""
        job = self.training.job
        family = family_of(job)
        return family.monitored(values, family.monitor_of(job))

    def progress(self, description: str, total: int, unit: str) -> Progress:
        """Return a bar of progress, as a context manager."""
        shown = self.training.ranks.is_first
        return Progress(description, total=total, unit=unit, closing=False, shown=shown)

    def note(self, text: str) -> None:
        """Tell the user something."""
        if self.training.ranks.is_first:
            note(text)

    def _open(self, split: SplitName, *, numbered: bool = False) -> Examples:
        key = (split, numbered)
        if key not in self.examples:
            training = self.training
            self.examples[key] = open_split(
                training.job,
                self.prepared,
                split,
                training.ranks,
                training.device,
                numbered=numbered,
            )
        return self.examples[key]


def data_of(job: Job, prepared: Prepared, ranks: Ranks) -> Prepared:
    """Return `prepared` where it has the columns of the job's model, else what has, beside it.

    That is prepared where it is not there yet; every rank must call it.
    """
    if not may_add_columns(job.model.type):
        return prepared
    wanted = [column.name for column in with_columns(job).features.columns]
    if wanted == [column.name for column in prepared.schema.columns]:
        return prepared
    root = prepared.path.parent
    return load_prepared(shared(prepare(job, root).path if ranks.is_first else None, ranks))


def open_split(
    job: Job,
    prepared: Prepared,
    split: SplitName,
    ranks: Ranks,
    device: torch.device,
    *,
    numbered: bool = False,
) -> Examples:
    """Return the batches of a split as training reads them."""
    reading = Reading(
        job.train.batch_size,
        seed=job.train.seed,
        shuffle_rows=job.train.shuffle_rows if split == "train" else None,
        # Once on each machine.
        verify=ranks.local_rank == 0,
        numbered=numbered,
    )
    return family_of(job).examples(job, prepared, split, reading, ranks, device)


def run_phases(training: Training, *, resume: bool, search_only: bool = False) -> Loop | None:
    """Carry all phases to their end, and return the last descent; `resume` passes over those that ended.

    With `search_only` the last one, which trains the network of the run, is left out.
    """
    ended: Loop | None = None
    for number, phase in enumerate(training.phases):
        done = training.folder(number) / DONE
        is_last = training.is_last(number)
        if (search_only and is_last) or (resume and not is_last and done.is_file()):
            continue
        stage = TrainingStage(training, number, resumes=resume)
        if len(training.phases) > 1 and training.ranks.is_first:
            training.run.log("phase started", number=number + 1, phase=phase.name)
        phase.run(stage)
        training.ranks.barrier()
        if not is_last and training.ranks.is_first:
            write_whole(done, b"")
        ended = stage.ended
    return ended


def _load_best(placement: Placement, folder: Path) -> None:
    parts = Checkpoints(folder / CHECKPOINT).load("best")
    assert parts is not None, "every epoch leaves a checkpoint"
    placement.load_weights(parts["network"]["weights"])
