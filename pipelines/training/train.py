"""Training: a job and its prepared data become a run, one way for all models.

What could be refused is looked at first, then the network is assembled and the loop runs. With the same
seed, data and thread count the weights are the same bit by bit, also after a kill and `--resume`.
`docs/training.md` has the details.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from headwater.feature_store.errors import DataError, JobError, RunError
from headwater.models.network import draft_model, least_rows
from headwater.pipelines.arguments import checked, path_of
from headwater.pipelines.console import note
from headwater.pipelines.family import Examples, Reading, find_family
from headwater.pipelines.job import Job, read_model, require_job
from headwater.pipelines.prepared import Prepared, SplitName
from headwater.pipelines.ranks import Ranks, find_ranks, shared, start_ranks
from headwater.pipelines.resolved import resolve, training_device
from headwater.pipelines.rules.settings import setting_problems
from headwater.pipelines.runs.records import RunMetrics
from headwater.pipelines.runs.run import METRICS, RUNS, Run, as_run, create_run
from headwater.pipelines.training.denormals import flush_denormals
from headwater.pipelines.training.loop import Loop
from headwater.pipelines.training.stage import Training, run_phases


@flush_denormals()
def train(
    job: Job,
    prepared: Prepared,
    *,
    run: Run | Path | str | None = None,
    resume: bool = False,
    runs: Path | str = RUNS,
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
    model_class, config = read_model(job.model.type, job.model.settings())
    model = draft_model(prepared.schema, model_class, config)
    family = find_family(model_class.family)
    examples: dict[SplitName, Examples] = {
        split: family.examples(prepared, split, _reading(job, split, ranks), ranks, device)
        for split in ("train", "valid")
    }
    least = ranks.world_size * least_rows(model)
    if (found := examples["train"].rows) < least:
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
            job, prepared, examples, run, device, ranks, config, model_class.phases(config)
        )
        try:
            ended = run_phases(training, resume=resume)
        except KeyboardInterrupt:
            note(f"stopped; go on with: headwater train --resume {run.path}")
            raise
        if ranks.is_first:
            _write_metrics(run, prepared, ended)
    return run


def _reading(job: Job, split: SplitName, ranks: Ranks) -> Reading:
    return Reading(
        job.train.batch_size,
        seed=job.train.seed,
        shuffle_rows=job.train.shuffle_rows if split == "train" else None,
        # Once on each machine.
        verify=ranks.local_rank == 0,
    )


def _write_metrics(run: Run, prepared: Prepared, ended: Loop) -> None:
    assert ended.record is not None, "its training has ended"
    metrics = RunMetrics(
        training=ended.record,
        history=ended.history,
        prepared=str(prepared.path.resolve()),
        schema_hash=prepared.schema.hash,
    )
    run.write(METRICS, metrics)
