"""Records of a training, as `metrics.json` and `evaluation.json` hold them (`docs/metrics.md`)."""

from __future__ import annotations

import msgspec

Values = dict[str, float | None]
"""Metrics by name; None where one is not defined."""


class Epoch(msgspec.Struct, frozen=True, kw_only=True):
    """One epoch of training, and the validation after it."""

    epoch: int
    """From 1."""
    step: int
    """Steps since the start of training."""
    train_loss: float | None
    """Mean over the epoch of the loss, without penalties; None where there was no step."""
    valid: Values
    lr_sparse: float
    lr_dense: float
    seconds: float
    """Time spent in steps."""
    rows_per_second: float
    improved: bool


class TrainingRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One training as a whole."""

    epochs: int
    best_epoch: int
    steps: int
    stopped: str
    """`plateau`, `epochs`, or `solved` where nothing was descended."""
    still_improving: bool = False
    monitor: str
    best: float | None
    """Value of the monitor at the best epoch, to be maximised."""
    seconds: float
    """Time spent in steps."""
    rows_per_second: float
    peak_rss_mb: float
    peak_cuda_mb: float | None
    parameters: int
    device: str
    precision: str
    seed: int
    world_size: int

    @property
    def remedy(self) -> str | None:
        """Advice on a training that `epochs` ended while it still improved; None for others."""
        if not self.still_improving:
            return None
        return (
            f"still improving: train.epochs = {self.epochs} ended training, and its last epoch was the best "
            f"by {self.monitor}. Train again with more, as --set train.epochs={2 * self.epochs}"
        )


class RunMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """`metrics.json`: written when training ends, and again by an evaluation."""

    format_version: int = 2
    training: TrainingRecord
    history: list[Epoch]
    metrics: dict[str, Values] = {}
    """By split, once the run was evaluated."""
    prepared: str
    """Folder of the prepared data."""
    schema_hash: str

    def of(self, split: str) -> Values | None:
        """Return the metrics of a split, before an evaluation of the best epoch; None where unknown."""
        found = self.metrics.get(split)
        if found is None and split == "valid":
            return self.history[self.training.best_epoch - 1].valid
        return found


def read_run_metrics(content: bytes) -> RunMetrics:
    """Return `metrics.json` of this format or the one before; msgspec's errors for what it is not."""
    values = msgspec.json.decode(content)
    if isinstance(values, dict) and "format_version" not in values:
        # Format 1 had the metrics of each split, and some of `training`, at the top.
        metrics = {split: values[split] for split in ("valid", "test") if split in values}
        values = {**values, "metrics": metrics, "format_version": 2}
    return msgspec.convert(values, RunMetrics)
