"""Families of models: the one place that says what a kind of model asks of data, metrics, report and release.

Steps ask the family of a job and never which kind of model it is. A family's record lies in `families/`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import polars as pl
    from torch import Tensor

    from headwater.feature_store.errors import TrainingError
    from headwater.feature_store.schema import Schema
    from headwater.models.network import Network
    from headwater.models.placement.placement import Placement
    from headwater.models.tables.embeddings import Mode
    from headwater.pipelines.evaluation.records import Evaluation
    from headwater.pipelines.job import Job
    from headwater.pipelines.prepared import Prepared, SplitName
    from headwater.pipelines.ranks import Ranks
    from headwater.serving.manifest import Manifest

FAMILIES = {
    "ctr": "headwater.pipelines.families.ctr:CTR",
    "retrieval": "headwater.pipelines.families.retrieval:RETRIEVAL",
}
"""Name to `module:NAME` of the record, imported when it is used."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of a family, as monitor, report and comparison read it."""

    label: str
    meaning: str
    best: Literal["high", "low"] | float = "high"
    """The best value: a high one, a low one, or the one nearest to a number."""
    undefined: str = ""
    """Reason why it may not be defined on validation rows, and the remedy."""

    def gain(self, value: float) -> float:
        """Return the value so that more is better."""
        if isinstance(self.best, float):
            return -abs(value - self.best)
        return value if self.best == "high" else -value


class Examples(Protocol):
    """Batches of a split for one rank."""

    @property
    def rows(self) -> int:
        """Rows of the split, of all ranks."""
        ...

    def epoch(self, number: int, start_batch: int = 0) -> Iterator[Any]:
        """Yield the batches of an epoch, from 0, from `start_batch` on."""
        ...


@dataclass(frozen=True, slots=True)
class Reading:
    """Settings by which a split is read."""

    batch_size: int
    seed: int = 0
    shuffle_rows: int | None = None
    """Rows among which training shuffles; None for the order of the shards."""
    verify: bool = True
    """Compare shards with their hashes."""
    numbered: bool = False
    """Give each row its number in the data."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """A network of a job and the prepared data that it is measured on."""

    job: Job
    placement: Placement
    prepared: Prepared
    ranks: Ranks
    folder: Path
    """Folder of the scored rows."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained network on the CPU, and the data by which its release is proven."""

    network: Network
    schema: Schema
    job: Job
    sample: pl.DataFrame
    """Real normalised raw rows, and the label."""
    valid: Callable[[], Examples] | None = None
    """Validation rows, by which int8 is measured, or the queries of a log; the sample when absent."""
    items: Path | None = None
    """Table of the items of a log, in the order of their rows."""


@dataclass(frozen=True, slots=True)
class Panel:
    """A section of a report: a template of `reporting/templates/` and what it shows."""

    anchor: str
    title: str
    template: str
    shown: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Family:
    """Everything in which a family of models differs from the others."""

    name: str
    metrics: Mapping[str, Metric]
    """By name, in the order of tables."""
    monitor: str
    """Default of `train.monitor`."""
    headline: tuple[str, ...]
    """The few metrics of a line of the log."""
    problems: Callable[[Job], list[str]]
    """Lines for what a job lacks or has wrong, beside the rules for all families."""
    network: Callable[[Job, Prepared, Mode], Network]
    """The untrained network of a job on the CPU; JobError for a wrong `[model]` setting."""
    least_rows: Callable[[Job, Prepared | None], int]
    """Rows that a process needs for a step; JobError where the model asks for what its data lacks."""
    examples: Callable[[Job, Prepared, SplitName, Reading, Ranks, Any], Examples]
    """Batches of a split, on a device: of train those that teach, of others what is measured."""
    measure: Callable[[Scoring, Examples, SplitName], Mapping[str, float] | None]
    """Metrics of a split, on rank 0; every rank must call it. DataError where nothing can be measured."""
    non_finite: Callable[..., TrainingError]
    """The error for a loss that is not finite, with cause and remedy: `non_finite_loss` of training."""
    evaluate: Callable[[Scoring, Sequence[SplitName], Mapping[str, Any]], Evaluation]
    """The evaluation of splits, with the fields that all families share."""
    evaluation: type[Evaluation]
    """Its type, to read it from its file."""
    facts: Callable[[Mapping[str, Any]], list[tuple[str, str]]]
    """What a report says of the features of a resolved job, as label and text."""
    panels: Callable[[Evaluation, Path], Iterable[Panel]]
    """Sections of the report, in order; the path is that of the run."""
    release: Callable[[Trained, Manifest, Path], Manifest]
    """Write the files of a release into a folder, proven, and add to its manifest kind, graphs, artefacts and
    parity; JobError for a wrong `[export]` setting."""
    measure_all: (
        Callable[[Callable[[Any], Tensor], Iterable[Any]], list[Mapping[str, float]]] | None
    ) = None
    """Metrics of C candidates, whose outputs of a batch a function gives, (C, B); batches are read once. None
    where no model of the family searches among candidates."""

    def why_undefined(self, values: Mapping[str, float], monitor: str) -> str:
        """Return why the monitor has no value, and the remedy."""
        name = next(each for each in monitor.split("-") if not isfinite(values[each]))
        return self.metrics[name].undefined or f"{name} is not defined on these rows."

    def monitor_of(self, job: Job) -> str:
        """Return what decides in training: `train.monitor`, or the default of the family."""
        return job.train.monitor or self.monitor

    def monitored(self, values: Mapping[str, float], monitor: str) -> float:
        """Return the value to be maximised: the gain of a metric, or of several joined by '-', summed."""
        return sum(self.metrics[name].gain(values[name]) for name in monitor.split("-"))


def find_family(name: str) -> Family:
    """Return the record of a family."""
    module, _, attribute = FAMILIES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def family_of(job: Job) -> Family:
    """Return the family of a job's model; JobError where there is no such model."""
    from headwater.models.registry import load_model

    return find_family(load_model(job.model.type).family)
