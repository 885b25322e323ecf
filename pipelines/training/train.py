"""Training: a job and its prepared data become a run, one way for all models.

What could be refused is looked at first, then the network is assembled and the loop runs. With the same
seed, data and thread count the weights are the same bit by bit, also after a kill and `--resume`.
`docs/training.md` has the details.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from headwater.feature_store.errors import DataError, JobError, RunError
from headwater.pipelines.arguments import checked, path_of
from headwater.pipelines.console import note
from headwater.pipelines.family import Examples, family_of
from headwater.pipelines.job import Job, require_job
from headwater.pipelines.job_model import job_model
from headwater.pipelines.prepared import Prepared, SplitName
from headwater.pipelines.ranks import find_ranks, shared, start_ranks
from headwater.pipelines.resolved import resolve, training_device
from headwater.pipelines.rules.settings import setting_problems
from headwater.pipelines.runs.records import RunMetrics
from headwater.pipelines.runs.run import METRICS, RUNS, Run, as_run, create_run
from headwater.pipelines.training.denormals import flush_denormals
from headwater.pipelines.training.loop import AfterEpoch, Loop
from headwater.pipelines.training.stage import Training, data_of, open_split, run_phases


@flush_denormals()
def train(
    job: Job,
    prepared: Prepared,
    *,
    run: Run | Path | str | None = None,
    resume: bool = False,
    runs: Path | str = RUNS,
    search_only: bool = False,
    after_epoch: AfterEpoch | None = None,
) -> Run:
    """Train a job's model on its prepared data and return the complete run.

    Parameters
    ----------
    run
        Run to train, or its folder; a new one in `runs` when absent.
    resume
        Go on from the latest checkpoint of `run`, or from the start where it has none yet.
    runs
        Folder of all runs.
    search_only
        Stop before the last phase, which trains the network of the run: what the phases before it found is
        in their folders, and `resume` goes on. JobError for a model that has nothing to search for.
    after_epoch
        Called after each epoch of the last phase, with all that are done; what it raises ends training.

    Raises JobError for a setting that cannot train here, DataError where training rows are too few for a
    step or validation rows have one class only, RunError where `run` does not fit or another process
    trains it, TrainingError on a non-finite loss, OutputError on a full disk.
    """
    job = require_job(job, "train: job")
    prepared = checked(
        prepared, Prepared, "train: prepared", "Prepared, as prepare(job) returns it"
    )
    runs = path_of(runs, "train: runs")
    run = None if run is None else as_run(run, "train: run")
    ranks = find_ranks()
    if problems := setting_problems(job, ranks):
        raise JobError("\n".join(problems))
    device = training_device(job, ranks)
    if resume:
        if run is None:
            raise RunError("train: resume: give the run to go on with, as `run`.")
        if run.is_complete:
            note(f"{run.path}: training is complete, nothing is left to do")
            return run
    start_ranks(ranks, device)
    prepared = data_of(job, prepared, ranks)
    model_class, config = job_model(job)
    phases = model_class.phases(config)
    if search_only and len(phases) == 1:
        raise JobError(
            f"model.type: {job.model.type!r} has nothing left to search for. Use `headwater train`."
        )
    family = family_of(job)
    splits: tuple[SplitName, ...] = ("train", "valid")
    examples: dict[tuple[SplitName, bool], Examples] = {
        (split, False): open_split(job, prepared, split, ranks, device) for split in splits
    }
    least = ranks.world_size * family.least_rows(job, prepared)
    if (found := examples["train", False].rows) < least:
        raise DataError(
            f"{prepared.path / 'train'}: found {found} {'row' if found == 1 else 'rows'}, expected at least "
            f"{least}, without which there is no step of training. Give more training rows."
        )
    # Only now: what could be refused has been looked at, and a refusal leaves no empty run.
    if run is None:
        ranks.barrier()
        job = resolve(job)
        run = shared(create_run(job, runs) if ranks.is_first else None, ranks)
    with run.training() if ranks.is_first else nullcontext():
        training = Training(
            job, prepared, examples, run, device, ranks, config, phases, after_epoch
        )
        try:
            ended = run_phases(training, resume=resume, search_only=search_only)
        except KeyboardInterrupt:
            note(f"stopped; go on with: headwater train --resume {run.path}")
            raise
        if ranks.is_first and not search_only:
            assert ended is not None, "the last phase trains the network of the run"
            _write_metrics(run, ended)
    return run


def _write_metrics(run: Run, ended: Loop) -> None:
    assert ended.record is not None, "its training has ended"
    prepared = ended.prepared
    metrics = RunMetrics(
        training=ended.record,
        history=ended.history,
        prepared=str(prepared.path.resolve()),
        schema_hash=prepared.schema.hash,
    )
    run.write(METRICS, metrics)
