"""Tuning: trials of a job, one after the other, judged by validation rows alone.

runs/<job name>/tune-<UTC time>/
    tune.toml        the job with its `[tune]`
    optuna.db        trials that have ended
    trials/<number>/ a run each; only the best one's keeps its checkpoint
    best.toml        the resolved job of the best trial
    report.html
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from optuna.trial import Trial

from headwater.feature_store.errors import DataError, JobError, RunError, TrainingError
from headwater.pipelines.arguments import path_of
from headwater.pipelines.console import note
from headwater.pipelines.family import Family, family_of
from headwater.pipelines.job import Job, dump_job, load_job, require_job, with_values
from headwater.pipelines.job_tuning import Tune, choice_text
from headwater.pipelines.output import write_whole, writing
from headwater.pipelines.preparing.prepare import prepare
from headwater.pipelines.ranks import find_ranks
from headwater.pipelines.reporting.compare import differences
from headwater.pipelines.reporting.page import number
from headwater.pipelines.resolved import resolve
from headwater.pipelines.rules.settings import setting_problems
from headwater.pipelines.rules.tuning import tuning_problems
from headwater.pipelines.runs.checkpoint import CHECKPOINT
from headwater.pipelines.runs.records import Epoch
from headwater.pipelines.runs.run import RUNS, TUNING, Run, alone_in, new_folder
from headwater.pipelines.training.train import train
from headwater.pipelines.tuning.draw import draw, job_values
from headwater.pipelines.tuning.report import REPORT_NAME, write_tuning_report
from headwater.pipelines.tuning.trials import TrialRecord, Trials, best_of

BEST = "best.toml"
PREPARED = Path("prepared")


class Pruned(Exception):  # noqa: N818
    """Ends the training of a trial that lies below the median."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """A tuning that has ended."""

    path: Path
    metric: str
    trials: list[TrialRecord]
    best: TrialRecord

    @property
    def best_job(self) -> Path:
        """The job file with the best values."""
        return self.path / BEST

    @property
    def report(self) -> Path:
        """The HTML page."""
        return self.path / REPORT_NAME


def tune(
    job: Job,
    *,
    folder: Path | str | None = None,
    runs: Path | str = RUNS,
    prepared: Path | str = PREPARED,
) -> Tuning:
    """Search over the settings that `[tune]` of a job names; return all trials and the best.

    Parameters
    ----------
    folder
        Folder of a tuning to go on with: trials that have ended are not repeated, and one that was stopped
        goes on from its checkpoint. Its job must be `job`, but for `tune.trials`. When absent, a new one
        in `runs`.
    runs
        Folder of all runs.
    prepared
        Folder of all prepared data.

    A trial whose loss is not finite, that the memory of the device does not hold, or whose values do not go
    together is a failed trial; TrainingError where all are. Raises JobError for a wrong `[tune]`, RunError
    where `folder` is of another job or another process is at it, and what `prepare` and `train` raise else.
    """
    job = require_job(job, "tune: job")
    runs, prepared = path_of(runs, "tune: runs"), path_of(prepared, "tune: prepared")
    ranks = find_ranks()
    if job.tune is None:
        raise JobError("tune: the job has no [tune] section, which names the keys to search.")
    if ranks.world_size > 1:
        raise JobError(
            f"tune: it trains in one process, but {ranks.world_size} were started. Start one."
        )
    if problems := [*setting_problems(job, ranks), *tuning_problems(job, ranks)]:
        raise JobError("\n".join(problems))
    if folder is None:
        folder = new_folder(job, runs, "tune-", TUNING)
    else:
        folder = path_of(folder, "tune: folder")
        _require_same(folder, job)
    with alone_in(folder, "tuning"), Trials(folder) as trials:
        write_whole(folder / TUNING, dump_job(job).encode())
        tuner = _Tuner(job, job.tune, folder, prepared, trials)
        try:
            tuner.run()
        except KeyboardInterrupt:
            note(f"stopped; go on with: headwater tune --resume {folder}")
            raise
        return tuner.result()


def tuned_job(folder: Path, overrides: Sequence[str] = ()) -> Job:
    """Return the job of a tuning that was begun; RunError where a folder is none."""
    if not (folder / TUNING).is_file():
        raise RunError(
            f"{folder}: no tuning, it holds no {TUNING}. "
            "Expected a folder such as runs/<job name>/tune-<time>."
        )
    return load_job(folder / TUNING, overrides)


def _require_same(folder: Path, job: Job) -> None:
    """Raise RunError where a tuning was begun with another job."""
    changed = differences([dump_job(tuned_job(folder)), dump_job(job)])
    changed.pop("tune.trials", None)
    if changed:
        raise RunError(
            f"{folder}: begun with other settings: {', '.join(changed)}. Only tune.trials can change; "
            "begin a new tuning for others."
        )


class _Tuner:
    """The trials of one folder."""

    def __init__(self, job: Job, tune: Tune, folder: Path, prepared: Path, trials: Trials) -> None:
        self.job = job.model_copy(update={"tune": None})
        self.tune, self.folder, self.prepared, self.trials = tune, folder, prepared, trials
        self.family = family_of(job)
        self.metric = tune.metric or self.family.monitor_of(job)

    def run(self) -> None:
        """Carry out the trials that are left."""
        while (done := len(self.trials.frozen)) < self.tune.trials:
            trial = draw(self.tune, self.trials.frozen)
            values = job_values(self.tune, trial.params)
            note(f"trial {done + 1} of {self.tune.trials}: {_text(values)}")
            attempt = _Attempt(trial, self.family, self.metric)
            record = self._carry_out(attempt, done + 1, values)
            self.trials.add(trial, record, attempt.gains)
            note(f"trial {record.number}: {record.state}, {self.metric} {number(record.metric)}")
            self._drop_checkpoints()

    def result(self) -> Tuning:
        """Write the best job and the report, and return them; TrainingError without a complete trial."""
        records = self.trials.records
        best = best_of(records)
        if best is None:
            raise TrainingError(
                f"{self.folder}: all {len(records)} trials failed. The first one: {records[0].error}"
            )
        content = (Path(best.run) / "job.toml").read_bytes()
        write_whole(self.folder / BEST, content)
        write_tuning_report(
            self.folder, self.job.name, self.tune, self.family, self.metric, records
        )
        return Tuning(self.folder, self.metric, records, best)

    def _carry_out(
        self, attempt: _Attempt, trial_number: int, values: dict[str, Any]
    ) -> TrialRecord:
        """Train a trial, from its checkpoint where it has one, and return what became of it."""
        path = self.trials.run_folder(trial_number)
        state, error = "complete", None
        try:
            job = resolve(with_values(self.job, values))
            data = prepare(job, self.prepared)
            run, is_begun = _trial_run(path, job)
            train(job, data, run=run, resume=is_begun, after_epoch=attempt.judge)
            training = run.metrics
            attempt.take(training.history)
            kept = training.history[training.training.best_epoch - 1]
        except Pruned:
            state, kept = "pruned", attempt.epochs[-1]
        except (TrainingError, JobError, torch.OutOfMemoryError) as problem:
            state, kept, error = "failed", None, str(problem)
        return TrialRecord(
            number=trial_number,
            state=state,
            values=values,
            metric=None if kept is None else attempt.metric_of(kept),
            gain=None if kept is None else attempt.gain_of(kept),
            epochs=len(attempt.epochs),
            seconds=sum(epoch.seconds for epoch in attempt.epochs),
            run=str(path),
            error=error,
        )

    def _drop_checkpoints(self) -> None:
        """Remove weights and scores of all trials but the best: a tuning may have hundreds."""
        records = self.trials.records
        best = best_of(records)
        for record in records:
            if record is not best:
                for name in (CHECKPOINT, "scores"):
                    for folder in list(Path(record.run).rglob(name)):
                        shutil.rmtree(folder, ignore_errors=True)


class _Attempt:
    """Epochs of a trial in this process and before, and the judgement after each."""

    def __init__(self, trial: Trial, family: Family, metric: str) -> None:
        self.trial, self.family, self.metric = trial, family, metric
        self.epochs: list[Epoch] = []

    @property
    def gains(self) -> dict[int, float]:
        """The metric after each epoch, turned so that more is better."""
        return {epoch.epoch: self.gain_of(epoch) for epoch in self.epochs}

    def judge(self, epochs: Sequence[Epoch]) -> None:
        """Take the epochs that are done; Pruned where the trial should not go on."""
        self.take(epochs)
        if self.trial.should_prune():
            raise Pruned

    def take(self, epochs: Sequence[Epoch]) -> None:
        """Report the epochs that are new."""
        for epoch in epochs[len(self.epochs) :]:
            self.epochs.append(epoch)
            self.trial.report(self.gain_of(epoch), epoch.epoch)

    def gain_of(self, epoch: Epoch) -> float:
        """Return the metric after an epoch, so that more is better; DataError where it is undefined."""
        values = {name: math.nan if value is None else value for name, value in epoch.valid.items()}
        gain = self.family.monitored(values, self.metric)
        if not math.isfinite(gain):
            raise DataError(f"valid: {self.family.why_undefined(values, self.metric)}")
        return gain

    def metric_of(self, epoch: Epoch) -> float | None:
        """Return the metric after an epoch as it is; of several that are joined, the sum of their gains."""
        return epoch.valid.get(self.metric, self.gain_of(epoch))


def _trial_run(path: Path, job: Job) -> tuple[Run, bool]:
    """Return the run of a trial, and whether it was begun before; one of another job is removed.

    Another version of Optuna may draw another job than the one that was stopped.
    """
    file, content = path / "job.toml", dump_job(job).encode()
    is_begun = file.is_file() and file.read_bytes() == content
    if path.exists() and not is_begun:
        shutil.rmtree(path)
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    write_whole(file, content)
    return Run(path, job), is_begun


def _text(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {choice_text(value)}" for key, value in values.items())
