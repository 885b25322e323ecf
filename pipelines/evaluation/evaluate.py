"""Evaluation of a run: its best checkpoint on validation and test rows.

Writes `scores/`, `metrics.json` and `evaluation.json`; `docs/metrics.md` has their layout.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from headwater.feature_store.reader import Reader
from headwater.feature_store.shards import ShardSet
from headwater.models.batch import Batch
from headwater.models.placement.place import Placement
from headwater.pipelines.arguments import list_of, refused
from headwater.pipelines.evaluation.importance import (
    MAX_ROWS,
    concatenate,
    gate_values,
    permutation_importance,
)
from headwater.pipelines.evaluation.predict import predict
from headwater.pipelines.evaluation.scores import Scores, slice_columns
from headwater.pipelines.evaluation.summary import summarise
from headwater.pipelines.loader import Loader
from headwater.pipelines.prepared import SPLITS, Prepared, SplitName, load_prepared
from headwater.pipelines.runs.run import Run, as_run
from headwater.pipelines.runs.trained import load_trained

FORMAT_VERSION = 1
_BLOCKS_OF_SAMPLE = 64


def evaluate(
    run: Run | Path | str, splits: Sequence[SplitName] = ("valid", "test")
) -> dict[str, Any]:
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
    metrics = run.read("metrics.json")
    prepared = load_prepared(Path(metrics["prepared"]))
    device = _device(run)
    placement = load_trained(run, prepared.schema, device)
    columns = [column for column, _ in slice_columns(prepared.schema)]
    summaries: dict[str, Any] = {}
    for split in splits:
        if split not in prepared.splits:
            continue
        scores = score_split(run, placement, prepared, split, device)
        if split == "valid":
            scores.require_both_classes()
        summaries[split] = summarise(scores, columns)
        metrics[split] = summaries[split]["metrics"]
    # Hashed once: scoring the split has done it.
    sample = _sample(prepared.dataset("valid", verify="valid" not in splits), device)
    importance = permutation_importance(placement.logit, sample, prepared.schema)
    run.write(
        "evaluation.json",
        {
            "format_version": FORMAT_VERSION,
            "name": run.job.name,
            "model": run.job.model.type,
            "headwater_version": importlib.metadata.version("headwater"),
            "training": metrics["training"],
            "data": _data(prepared),
            "history": metrics["history"],
            "splits": summaries,
            "importance": importance and {"split": "valid", **importance},
            "rates": _rates(prepared),
            "gates": gate_values(placement.network, sample, prepared.schema),
        },
    )
    run.write("metrics.json", metrics)
    return metrics


def score_split(
    run: Run,
    placement: Placement,
    prepared: Prepared,
    split: SplitName,
    device: torch.device,
) -> Scores:
    """Score all rows of a split into the run's `scores/`."""
    data = prepared.dataset(split)
    reader = Reader(data, run.job.train.batch_size, seed=0, shuffle=False)
    batches = Loader(reader, device).epoch(0)
    scores = predict(placement, batches, prepared.schema, run.scores, split, rows=len(data))
    assert scores is not None
    return scores


def _sample(data: ShardSet, device: torch.device) -> Batch:
    """Return at most `MAX_ROWS` rows from many places of a split, the same each time."""
    rows = min(MAX_ROWS, len(data))
    reader = Reader(data, rows, seed=0, shuffle=True, buffer_rows=_BLOCKS_OF_SAMPLE * 1024)
    return concatenate([next(Loader(reader, device, prefetch=1).epoch(0))], rows)


def _data(prepared: Prepared) -> dict[str, Any]:
    """Return how many rows each split has, and from when to when training goes."""
    found = prepared.statistics
    rows = {split: counts.rows for split, counts in found.splits.items()}
    return {"rows": rows, "time_range_ms": found.time_range_ms}


def _rates(prepared: Prepared) -> list[dict[str, Any]]:
    """Return the share of missing and of unknown rows by column and split."""
    splits = prepared.statistics.splits
    return [
        {
            "column": column.name,
            "split": split,
            "missing": found.columns[column.name].missing / found.rows,
            "unknown": None if column.is_dense else found.columns[column.name].unknown / found.rows,
        }
        for column in prepared.schema.columns
        for split, found in splits.items()
    ]


def _device(run: Run) -> torch.device:
    """Return the run's kind of device, or the CPU where this machine has no other."""
    if run.job.train.device != "cpu" and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
