"""Click models: rows with a label, the logit of a click, and metrics of ranking and calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from headwater.feature_store.reader import BUFFER_ROWS, Reader
from headwater.models.batch import Batch
from headwater.models.network import Network, build_network, draft_model, least_rows
from headwater.models.tables.embeddings import Mode
from headwater.pipelines.evaluation.importance import (
    MAX_ROWS,
    concatenate,
    gate_values,
    permutation_importance,
)
from headwater.pipelines.evaluation.metrics import METRICS, Measured
from headwater.pipelines.evaluation.predict import predict
from headwater.pipelines.evaluation.records import ClickEvaluation, ClickSplit, Evaluation
from headwater.pipelines.evaluation.scores import Scores, slice_columns
from headwater.pipelines.evaluation.summary import summarise
from headwater.pipelines.family import Examples, Family, Panel, Reading, Scoring, Trained
from headwater.pipelines.job import Job
from headwater.pipelines.job_model import job_model
from headwater.pipelines.loader import Loader
from headwater.pipelines.prepared import Prepared, SplitName
from headwater.pipelines.ranks import Ranks
from headwater.pipelines.training.diagnose import non_finite_loss
from headwater.serving.manifest import Manifest

_BLOCKS_OF_SAMPLE = 64


def problems(job: Job) -> list[str]:
    """Return what a job lacks for a click model."""
    features = job.features
    if job.interactions is not None:
        return [
            (
                f"model.type: {job.model.type!r} foretells a label: declare [features] in place of "
                "[interactions], or choose a retrieval model."
            )
        ]
    if job.data.items is not None:
        return [
            (
                "data.items: the items of a click model are columns of its rows. Join the table by "
                "[[data.join]] instead."
            )
        ]
    grouped = "gauc" in (job.train.monitor or "").split("-")
    if not grouped or features.group or features.user:
        return []
    return [
        (
            "train.monitor: 'gauc' needs groups of rows, but neither features.group nor "
            "features.user is set. Set one of them, or train.monitor = 'auc'."
        )
    ]


def network(job: Job, prepared: Prepared, mode: Mode) -> Network:
    """Return the untrained network of a job."""
    model_class, config = job_model(job)
    declared = [column.name for column in job.features.columns]
    return build_network(prepared.schema, model_class, config, mode, job.train.seed, declared)


def rows_of_a_step(job: Job, prepared: Prepared | None) -> int:
    """Return how many rows a process needs for a step."""
    model_class, config = job_model(job)
    declared = [column.name for column in job.features.columns]
    if prepared is not None:
        return least_rows(draft_model(prepared.schema, model_class, config, declared))
    with torch.device("meta"):
        return least_rows(model_class(config, num_features=len(declared)))


def examples(
    job: Job,  # noqa: ARG001
    prepared: Prepared,
    split: SplitName,
    reading: Reading,
    ranks: Ranks,
    device: torch.device,
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
        numbered=reading.numbered,
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


def measure_all(
    score: Callable[[Batch], Tensor], batches: Iterable[Batch]
) -> list[Mapping[str, float]]:
    """Return the metrics of C candidates whose logits `score` gives of a batch, (C, B)."""
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    groups: list[Tensor] = []
    for batch in batches:
        logits.append(score(batch).float().cpu())
        labels.append(batch.label_B.cpu())
        groups += [] if batch.group_B is None else [batch.group_B.cpu()]
    label_N = torch.cat(labels).to(torch.uint8).numpy()
    group_N = torch.cat(groups).numpy() if groups else None
    return [
        Measured.of(label_N, logit_N, group_N).values for logit_N in torch.cat(logits, 1).numpy()
    ]


def evaluate_splits(
    scoring: Scoring, splits: Sequence[SplitName], common: Mapping[str, Any]
) -> Evaluation:
    """Measure splits, and explain the network by a sample of the validation rows."""
    prepared, device = scoring.prepared, scoring.placement.device
    reading = Reading(scoring.job.train.batch_size)
    columns = [column for column, _ in slice_columns(prepared.schema)]
    summaries: dict[str, ClickSplit] = {}
    for split in splits:
        batches = examples(scoring.job, prepared, split, reading, scoring.ranks, device)
        scores = _score(scoring, batches, split)
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


def facts(job: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what a report says of label and features."""
    features = [column["name"] for column in job["features"]["columns"]]
    label = ("label", job["features"]["label"])
    return [label, (f"{len(features)} features", ", ".join(features))]


def panels(evaluation: Evaluation, run: Path) -> Iterable[Panel]:
    """Yield the sections of a click model's report."""
    # Training has no use for the libraries of pictures and graphs, which take 80 MB.
    from headwater.pipelines.reporting.click_panels import click_panels
    from headwater.pipelines.reporting.search_panels import search_panels

    yield from click_panels(cast("ClickEvaluation", evaluation))
    yield from search_panels(run)


def release(trained: Trained, manifest: Manifest, folder: Path) -> Manifest:
    """Write the graph of a click model, as `Family.release` says."""
    from headwater.pipelines.release.scorer import write_scorer

    return write_scorer(trained, manifest, folder)


CTR = Family(
    name="ctr",
    metrics=METRICS,
    monitor="auc",
    headline=("auc", "gauc", "logloss"),
    problems=problems,
    network=network,
    least_rows=rows_of_a_step,
    examples=examples,
    measure=measure_split,
    non_finite=non_finite_loss,
    evaluate=evaluate_splits,
    evaluation=ClickEvaluation,
    facts=facts,
    panels=panels,
    release=release,
    measure_all=measure_all,
)
