"""Evaluation of a run: its best checkpoint on validation and test rows.

Writes `scores/`, `metrics.json` and `evaluation.json`; `docs/metrics.md` has their layout.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch

from headwater.pipelines.arguments import list_of, refused
from headwater.pipelines.evaluation.records import DataSummary, Rates
from headwater.pipelines.family import Scoring, family_of
from headwater.pipelines.prepared import SPLITS, Prepared, SplitName, load_prepared
from headwater.pipelines.ranks import Ranks
from headwater.pipelines.runs.records import RunMetrics
from headwater.pipelines.runs.run import EVALUATION, METRICS, Run, as_run
from headwater.pipelines.runs.trained import load_trained


def evaluate(run: Run | Path | str, splits: Sequence[SplitName] = ("valid", "test")) -> RunMetrics:
    """Measure a complete run and return its `metrics.json`, which this writes with `evaluation.json`.

    The run may be given by its folder. A split that the job does not have is left out. RunError where
    training has not ended, where the checkpoint is damaged, or where the prepared data is of another
    schema; ShardError where a shard is corrupt; DataError where the validation rows have one class only.
    """
    run = as_run(run, "evaluate: run")
    expected = "a list of 'train', 'valid' and 'test'"
    splits = list_of(splits, "evaluate: splits", expected)
    for split in splits:
        if split not in SPLITS:
            raise refused(split, "evaluate: splits", expected)
    metrics = run.metrics
    prepared = load_prepared(Path(metrics.prepared))
    placement = load_trained(run, prepared, _device(run))
    family = family_of(run.job)
    scoring = Scoring(run.trained_job, placement, prepared, Ranks(), run.scores)
    statistics = prepared.statistics
    evaluation = family.evaluate(
        scoring,
        [split for split in splits if split in prepared.splits],
        {
            "family": family.name,
            "name": run.job.name,
            "model": run.job.model.type,
            "headwater_version": importlib.metadata.version("headwater"),
            "training": metrics.training,
            "data": DataSummary(
                rows={split: counts.rows for split, counts in statistics.splits.items()},
                time_range_ms=statistics.time_range_ms,
            ),
            "history": metrics.history,
            "rates": _rates(prepared),
        },
    )
    run.write(EVALUATION, evaluation)
    found = {split: each.metrics for split, each in evaluation.splits.items()}
    metrics = msgspec.structs.replace(metrics, metrics={**metrics.metrics, **found})
    run.write(METRICS, metrics)
    return metrics


def _rates(prepared: Prepared) -> list[Rates]:
    """Return the share of missing and of unknown rows by column and split."""
    splits = prepared.statistics.splits
    return [
        Rates(
            column=column.name,
            split=split,
            missing=found.columns[column.name].missing / found.rows,
            unknown=None if column.is_dense else found.columns[column.name].unknown / found.rows,
        )
        for column in prepared.schema.columns
        for split, found in splits.items()
    ]


def _device(run: Run) -> torch.device:
    """Return the run's kind of device, or the CPU where this machine has no other."""
    if run.job.train.device != "cpu" and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
