"""Click models: rows with a label, the logit of a click, and metrics of ranking and calibration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch

from headwater.feature_store.reader import BUFFER_ROWS, Reader
from headwater.models.batch import Batch
from headwater.pipelines.evaluation.importance import (
    MAX_ROWS,
    concatenate,
    gate_values,
    permutation_importance,
)
from headwater.pipelines.evaluation.metrics import METRICS
from headwater.pipelines.evaluation.predict import predict
from headwater.pipelines.evaluation.records import ClickEvaluation, ClickSplit, Evaluation
from headwater.pipelines.evaluation.scores import Scores, slice_columns
from headwater.pipelines.evaluation.summary import summarise
from headwater.pipelines.family import Examples, Family, Panel, Reading, Scoring
from headwater.pipelines.job import Job
from headwater.pipelines.loader import Loader
from headwater.pipelines.prepared import Prepared, SplitName
from headwater.pipelines.ranks import Ranks
from headwater.pipelines.release.scorer import write_scorer
from headwater.pipelines.reporting.click_panels import click_panels
from headwater.pipelines.training.diagnose import non_finite_loss

_BLOCKS_OF_SAMPLE = 64


def problems(job: Job) -> list[str]:
    """Return what a job lacks for a click model."""
    features = job.features
    grouped = "gauc" in (job.train.monitor or "").split("-")
    if not grouped or features.group or features.user:
        return []
    return [
        (
            "train.monitor: 'gauc' needs groups of rows, but neither features.group nor "
            "features.user is set. Set one of them, or train.monitor = 'auc'."
        )
    ]


def examples(
    prepared: Prepared, split: SplitName, reading: Reading, ranks: Ranks, device: torch.device
) -> Loader:
    """Return the batches of a split."""
    reader = Reader(
        prepared.dataset(split, verify=reading.verify),
        reading.batch_size,
        seed=reading.seed,
        shuffle=reading.shuffle_rows is not None,
        buffer_rows=reading.shuffle_rows or BUFFER_ROWS,
        rank=ranks.rank,
        world_size=ranks.world_size,
    )
    return Loader(reader, device)


def measure_split(
    scoring: Scoring, batches: Examples, split: SplitName
) -> Mapping[str, float] | None:
    """Return the metrics of a split on rank 0; DataError where it has one class only."""
    scores = _score(scoring, batches, split)
    if scores is None:
        return None
    scores.require_both_classes()
    return scores.measured().values


def evaluate_splits(
    scoring: Scoring, splits: Sequence[SplitName], common: Mapping[str, Any]
) -> Evaluation:
    """Measure splits, and explain the network by a sample of the validation rows."""
    prepared, device = scoring.prepared, scoring.placement.device
    reading = Reading(scoring.batch_size)
    columns = [column for column, _ in slice_columns(prepared.schema)]
    summaries: dict[str, ClickSplit] = {}
    for split in splits:
        scores = _score(scoring, examples(prepared, split, reading, scoring.ranks, device), split)
        assert scores is not None, "an evaluation runs in one process"
        if split == "valid":
            scores.require_both_classes()
        summaries[split] = summarise(scores, columns)
    # Hashed once: scoring the split has done it.
    sample = _sample(prepared, device, verify="valid" not in splits)
    return ClickEvaluation(
        **common,
        splits=summaries,
        importance=permutation_importance(
            scoring.placement.logit, sample, prepared.schema, split="valid"
        ),
        gates=gate_values(scoring.placement.network, sample, prepared.schema),
    )


def _score(scoring: Scoring, batches: Examples, split: SplitName) -> Scores | None:
    return predict(
        scoring.placement,
        batches.epoch(0),
        scoring.prepared.schema,
        scoring.folder,
        split,
        rows=batches.rows,
        ranks=scoring.ranks,
    )


def _sample(prepared: Prepared, device: torch.device, *, verify: bool) -> Batch:
    """Return at most `MAX_ROWS` rows from many places of the validation rows, the same each time."""
    data = prepared.dataset("valid", verify=verify)
    rows = min(MAX_ROWS, len(data))
    reader = Reader(data, rows, seed=0, shuffle=True, buffer_rows=_BLOCKS_OF_SAMPLE * 1024)
    return concatenate([next(Loader(reader, device, prefetch=1).epoch(0))], rows)


def panels(evaluation: Evaluation) -> Iterable[Panel]:
    """Return the sections of a click model's report."""
    return click_panels(cast("ClickEvaluation", evaluation))


CTR = Family(
    name="ctr",
    metrics=METRICS,
    monitor="auc",
    headline=("auc", "gauc", "logloss"),
    problems=problems,
    examples=examples,
    measure=measure_split,
    non_finite=non_finite_loss,
    evaluate=evaluate_splits,
    evaluation=ClickEvaluation,
    panels=panels,
    release=write_scorer,
)
