"""The training loop: epochs of steps, an evaluation and a checkpoint after each.

Everything that a later step depends on is in the checkpoint: weights, the strategy's state, place in the
data, generators, and the plateau rule.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor

from headwater.feature_store.errors import DataError, RunError
from headwater.models.network import count_parameters, least_rows
from headwater.models.phases import Keep
from headwater.models.placement.state import whole
from headwater.models.seeds import derive_seed
from headwater.models.strategy import Check, Strategy
from headwater.pipelines.console import Progress, note
from headwater.pipelines.family import Examples, Scoring, family_of
from headwater.pipelines.job import Job
from headwater.pipelines.ranks import Ranks, gathered, shared
from headwater.pipelines.runs.checkpoint import CHECKPOINT, Checkpoints
from headwater.pipelines.runs.records import Epoch, TrainingRecord
from headwater.pipelines.runs.run import Run
from headwater.pipelines.training.memory import keep_freed_memory, peak_cuda_mb, peak_rss_mb
from headwater.pipelines.training.plateau import Plateau

if TYPE_CHECKING:
    from headwater.pipelines.prepared import Prepared, SplitName

LOG_STEPS = 100
"""Steps between two lines of `log.jsonl`."""

AfterEpoch = Callable[[Sequence[Epoch]], None]
"""Takes all epochs that are done, after each one and before its checkpoint; what it raises ends training."""


@dataclass(slots=True)
class _Position:
    """Progress of training in plain values, which a checkpoint keeps beside tensors."""

    epoch: int = 1
    """The epoch that is being trained, from 1."""
    batch: int = 0
    """Batches of it that are done."""
    step: int = 0
    """Steps since the start."""
    rows: int = 0
    """Rows of this rank in the epoch so far."""
    loss_sum: float = 0.0
    """Sum over those rows of the loss, float64."""
    seconds: float = 0.0
    """Time spent in the steps of the epoch."""
    total_rows: int = 0
    """Rows of all ranks in epochs that are done."""
    total_seconds: float = 0.0
    """Time spent in the steps of epochs that are done."""
    history: list[Epoch] = field(default_factory=list[Epoch])
    """Epochs that are done."""

    def state(self) -> dict[str, Any]:
        """Return the position in plain values."""
        return msgspec.to_builtins(self)


class Loop:
    """The training of one network by one strategy: `train` ends it, from where `resume` has put it."""

    def __init__(
        self,
        job: Job,
        prepared: Prepared,
        examples: Mapping[SplitName, Examples],
        run: Run,
        strategy: Strategy[Any],
        ranks: Ranks,
        *,
        folder: Path,
        keep: Keep = "best",
        epochs: int | None = None,
        after_epoch: AfterEpoch | None = None,
    ) -> None:
        """Prepare to train; checkpoints go to `folder`, events to the log of `run`.

        With `epochs` it trains for just so many, at the same learning rates, whatever validation says.
        """
        self.after_epoch = after_epoch
        self.job, self.settings, self.prepared, self.run = job, job.train, prepared, run
        self.strategy, self.placement, self.ranks = strategy, strategy.placement, ranks
        self.device = self.placement.device
        self.keep = keep
        self.epochs = epochs or job.train.epochs
        self.has_plateau = epochs is None
        self.record: TrainingRecord | None = None
        """The record of the training, once it has ended."""
        self.family = family_of(job)
        self.monitor = self.family.monitor_of(job)
        self.examples = examples
        self.at = _Position()
        self.plateau = Plateau.of(self.settings)
        self.checkpoints = Checkpoints(folder / CHECKPOINT)
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.pending: list[tuple[Tensor, Any, int]] = []
        model = self.placement.network.model
        self.least_rows = ranks.world_size * least_rows(model)
        if self.settings.compile:
            model.compile()
        if self.device.type == "cpu":
            keep_freed_memory()
        # Only dropout draws from the global generator; each rank drops other units.
        torch.manual_seed(derive_seed(self.settings.seed, "training", str(ranks.rank)))

    # The loop

    def train(self) -> None:
        """Train until the plateau rule or the number of epochs ends it."""
        self._log(
            "training started",
            step=self.at.step,
            epoch=self.at.epoch,
            device=str(self.device),
            parameters=count_parameters(self.placement.network),
            threads=torch.get_num_threads(),
        )
        while self.at.epoch <= self.epochs and not self.is_over:
            self._train_epoch()
            self._end_epoch()
        self.record = self._record()
        self._log("training ended", **msgspec.structs.asdict(self.record))

    def solved(self) -> None:
        """Measure the network as it is, and end with its weights."""
        if not self.history:
            self._end_epoch()
        self.record = msgspec.structs.replace(
            self._record(), stopped="solved", still_improving=False
        )
        self._log("training ended", **msgspec.structs.asdict(self.record))

    def _train_epoch(self) -> None:
        self.placement.module.train()
        self.strategy.begin_epoch(self.at.epoch)
        batches = self.examples["train"].epoch(self.at.epoch - 1, self.at.batch)
        started_s = time.perf_counter()
        with Progress(
            f"epoch {self.at.epoch}",
            total=self.examples["train"].rows,
            unit="rows",
            closing=False,
            shown=self.ranks.is_first,
        ) as bar:
            bar.advance(self.at.rows * self.ranks.world_size)
            for batch in batches:
                self._step(batch)
                self.at.batch += 1
                bar.advance(len(batch) * self.ranks.world_size)
                if self.at.step % LOG_STEPS == 0 or self._saves_now():
                    self._settle()
                    self.at.seconds += time.perf_counter() - started_s
                    self._log_step()
                    if self._saves_now():
                        self._save(best=False)
                    started_s = time.perf_counter()
            self._settle()
        self.at.seconds += time.perf_counter() - started_s

    def _step(self, batch: Any) -> None:
        # The same on every rank, unlike the size of its own part of the batch.
        begin = self.at.batch * self.settings.batch_size
        rows = min(self.settings.batch_size, self.examples["train"].rows - begin)
        if rows < self.least_rows:
            # One row of a rank has no variance to normalise by; another epoch has it elsewhere.
            self._log("batch too small, skipped", step=self.at.step, epoch=self.at.epoch, rows=rows)
            return
        self.at.step += 1
        loss = self.strategy.step(batch, rows, self._check_of(batch))
        self.at.rows += len(batch)
        self.loss_sum.add_(loss.mean, alpha=rows / self.ranks.world_size)
        while len(self.pending) > 1:
            self._check(*self.pending.pop(0))

    def _end_epoch(self) -> None:
        """Evaluate, apply the plateau rule, record the epoch, and save."""
        rates = dict(self.strategy.rates)
        train_loss, rows = self._mean_loss()
        valid = self._evaluate()
        improved = self.plateau.update(self._monitored(valid), self.at.epoch)
        if self.has_plateau and not improved:
            self.strategy.lr_scale(self.settings.lr_factor, self.settings.min_lr)
        record = Epoch(
            epoch=self.at.epoch,
            step=self.at.step,
            train_loss=train_loss,
            valid={**valid},
            lr_sparse=rates["sparse"],
            lr_dense=rates["dense"],
            seconds=self.at.seconds,
            rows_per_second=rows / max(self.at.seconds, 1e-9),
            improved=improved,
        )
        self._log("epoch ended", **msgspec.structs.asdict(record))
        if self.ranks.is_first:
            note(self._line(record))
        done = self.at
        self.at = _Position(
            epoch=done.epoch + 1,
            step=done.step,
            total_rows=done.total_rows + rows,
            total_seconds=done.total_seconds + done.seconds,
            history=[*done.history, record],
        )
        self.loss_sum.zero_()
        self._tell_epochs()
        self._save(best=improved or self.keep == "last")

    def _tell_epochs(self) -> None:
        if self.after_epoch is not None:
            self.after_epoch(self.history)

    def _evaluate(self) -> dict[str, float]:
        if self.ranks.world_size > 1:
            # Each rank keeps batch statistics of its own rows; the checkpoint holds those of rank 0.
            for buffer in self.placement.network.model.buffers():
                dist.broadcast(buffer, 0)
        scoring = Scoring(self.job, self.placement, self.prepared, self.ranks, self.run.scores)
        found = self.family.measure(scoring, self.examples["valid"], "valid")
        values = None if found is None else dict(found)
        if values is not None and not math.isfinite(self._monitored(values)):
            raise DataError(f"valid: {self.family.why_undefined(values, self.monitor)}")
        return shared(values, self.ranks)

    def _monitored(self, values: Mapping[str, float]) -> float:
        """Return what is to be maximised."""
        return self.family.monitored(values, self.monitor)

    def _record(self) -> TrainingRecord:
        """Return how training ended."""
        at = self.at
        return TrainingRecord(
            epochs=len(at.history),
            best_epoch=self.kept,
            steps=at.step,
            stopped="plateau" if self.is_over else "epochs",
            still_improving=self.plateau.best_epoch == len(at.history),
            monitor=self.monitor,
            best=self.plateau.best,
            seconds=at.total_seconds,
            rows_per_second=at.total_rows / max(at.total_seconds, 1e-9),
            peak_rss_mb=peak_rss_mb(),
            peak_cuda_mb=peak_cuda_mb(),
            parameters=count_parameters(self.placement.network),
            device=str(self.device),
            precision=self.settings.precision,
            seed=self.settings.seed,
            world_size=self.ranks.world_size,
        )

    @property
    def is_over(self) -> bool:
        """True where the plateau rule ends training."""
        return self.has_plateau and self.plateau.stopped

    @property
    def history(self) -> list[Epoch]:
        """The epochs that are done."""
        return self.at.history

    @property
    def kept(self) -> int:
        """The epoch whose weights count, from 1."""
        return len(self.at.history) if self.keep == "last" else self.plateau.best_epoch

    # Checkpoints

    def _saves_now(self) -> bool:
        every = self.settings.checkpoint_steps
        return every is not None and self.at.step % every == 0

    def _save(self, *, best: bool) -> None:
        """Save everything that the next step depends on; every rank must call it."""
        self.at.loss_sum = float(self.loss_sum)
        state = whole({"model": self.placement.weights(), **self.strategy.state_dict()})
        generators = gathered(_generators(self.device), self.ranks)
        positions = gathered(self.at.state(), self.ranks)
        if self.ranks.is_first:
            started_s = time.perf_counter()
            weights = {"schema_hash": self.prepared.schema.hash, "weights": state.pop("model")}
            rest = {
                "data": self.prepared.path.name,
                "state": state,
                "generators": generators,
                "positions": positions,
                "plateau": self.plateau.state(),
            }
            self.checkpoints.save({"network": weights, "training": rest}, best=best)
            self._log(
                "checkpoint saved",
                step=self.at.step,
                epoch=self.at.epoch,
                seconds=time.perf_counter() - started_s,
                best=best,
            )
        self.ranks.barrier()

    def resume(self) -> None:
        """Take everything over from the latest checkpoint; RunError where it does not fit."""
        parts = self.checkpoints.load("latest")
        if parts is None:
            note(f"{self.run.path}: no checkpoint yet, training starts anew")
            return
        network, rest = parts["network"], parts["training"]
        if network["schema_hash"] != self.prepared.schema.hash:
            raise RunError(
                f"{self.run.path}: trained with schema {network['schema_hash'][:12]}, but the "
                f"prepared data has {self.prepared.schema.hash[:12]}: the data changed since. "
                "Train a new run."
            )
        if rest["data"] != self.prepared.path.name:
            raise RunError(
                f"{self.run.path}: trained on prepared data {rest['data'][:12]}, found "
                f"{self.prepared.path.name[:12]}: the data changed since. Train a new run, or give "
                "the input files back as they were."
            )
        if len(rest["positions"]) != self.ranks.world_size:
            raise RunError(
                f"{self.run.path}: trained by {len(rest['positions'])} processes, found "
                f"{self.ranks.world_size}. Start the same number, as batches depend on it."
            )
        self.placement.load_weights(network["weights"])
        self.strategy.load_state_dict(rest["state"])
        self.plateau = Plateau(**rest["plateau"])
        self.at = msgspec.convert(rest["positions"][self.ranks.rank], _Position)
        self.loss_sum.fill_(self.at.loss_sum)
        _set_generators(rest["generators"][self.ranks.rank], self.device)
        self._log("training resumed", step=self.at.step, epoch=self.at.epoch)
        if self.history:
            self._tell_epochs()

    # Parts of a step

    def _check_of(self, batch: Any) -> Check:
        """Return the check of a step's losses; not on a CPU they are looked at one loss later.

        So the host need not wait for the device.
        """
        step = self.at.step

        def check(total: Tensor) -> None:
            if self.device.type == "cpu":
                self._check(total, batch, step)
            else:
                self.pending.append((total, batch, step))

        return check

    def _check(self, loss: Tensor, batch: Any, step: int) -> None:
        if not math.isfinite(loss.item()):
            raise self.family.non_finite(
                self.placement.network,
                batch,
                self.prepared.schema,
                step=step,
                epoch=self.at.epoch,
                world_size=self.ranks.world_size,
            )

    def _settle(self) -> None:
        """Look at the losses that were put off."""
        while self.pending:
            self._check(*self.pending.pop(0))

    def _mean_loss(self) -> tuple[float | None, int]:
        """Return the mean loss of the epoch, None without a step, and its rows, over all ranks."""
        sums = torch.stack([self.loss_sum, torch.full_like(self.loss_sum, self.at.rows)])
        if self.ranks.world_size > 1:
            dist.all_reduce(sums)
        loss_sum, rows = sums.tolist()
        return loss_sum / rows if rows else None, int(rows)

    def _log_step(self) -> None:
        self._log(
            "step ended",
            step=self.at.step,
            epoch=self.at.epoch,
            train_loss=float(self.loss_sum) / max(self.at.rows, 1),
            rows_per_second=self.at.rows * self.ranks.world_size / max(self.at.seconds, 1e-9),
        )

    def _line(self, record: Epoch) -> str:
        """Return an epoch's record as one line; the last that `epochs` allows may still be an improvement."""
        valid = ", ".join(
            f"{name} {value:.5f}"
            for name in self.family.headline
            if (value := record.valid.get(name)) is not None
        )
        if record.train_loss is None:
            return f"valid {valid}"
        better = ", best so far" if record.improved else ""
        if better and self.has_plateau and record.epoch == self.epochs:
            better += ", still improving as train.epochs ends it"
        return (
            f"epoch {record.epoch}: train loss {record.train_loss:.5f}, valid {valid}, "
            f"{record.rows_per_second:,.0f} rows/s{better}"
        )

    def _log(self, event: str, **fields: Any) -> None:
        if self.ranks.is_first:
            self.run.log(event, **fields)


def _generators(device: torch.device) -> dict[str, Tensor]:
    found = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    return found


def _set_generators(states: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
