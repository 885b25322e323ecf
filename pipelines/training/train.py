"""Training: a job and its prepared data become a run, one way for all click models.

What could be refused is looked at first, then the network is assembled and the loop runs. With the same
seed, data and thread count the weights are the same bit by bit, also after a kill and `--resume`.
`docs/training.md` has the details.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from headwater.feature_store.errors import DataError, RunError
from headwater.models.network import draft_model, least_rows
from headwater.pipelines.arguments import checked, path_of
from headwater.pipelines.console import note
from headwater.pipelines.job import Job, read_model, require_job
from headwater.pipelines.prepared import Prepared, SplitName
from headwater.pipelines.ranks import find_ranks, shared, start_ranks
from headwater.pipelines.resolved import resolve
from headwater.pipelines.runs.run import RUNS, Run, as_run, create_run
from headwater.pipelines.training.denormals import flush_denormals
from headwater.pipelines.training.loop import Loop
from headwater.pipelines.training.settings import check_settings
from headwater.pipelines.training.stage import Training, run_phases

if TYPE_CHECKING:
    from headwater.feature_store.shards import ShardSet


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
    device = check_settings(job, ranks)
    if resume:
        if run is None:
            raise RunError("train: resume: give the run to go on with, as `run`.")
        if run.is_complete:
            note(f"{run.path}: training is complete, nothing is left to do")
            return run
    start_ranks(ranks, device)
    model = draft_model(prepared.schema, *read_model(job.model.type, job.model.settings()))
    data: dict[SplitName, ShardSet] = {
        split: prepared.dataset(split, verify=ranks.local_rank == 0) for split in ("train", "valid")
    }
    least = ranks.world_size * least_rows(model)
    if (found := len(data["train"])) < least:
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
        try:
            ended = run_phases(Training(job, prepared, data, run, device, ranks), resume=resume)
        except KeyboardInterrupt:
            note(f"stopped; go on with: headwater train --resume {run.path}")
            raise
        if ranks.is_first:
            _write_metrics(run, prepared, ended)
    return run


def _write_metrics(run: Run, prepared: Prepared, ended: Loop) -> None:
    training = ended.record
    run.write(
        "metrics.json",
        {
            "valid": ended.history[ended.kept - 1]["valid"],
            "history": ended.history,
            "training": training,
            "rows_per_second": training["rows_per_second"],
            "peak_rss_mb": training["peak_rss_mb"],
            "peak_cuda_mb": training["peak_cuda_mb"],
            "parameters": training["parameters"],
            "prepared": str(prepared.path.resolve()),
            "schema_hash": prepared.schema.hash,
        },
    )
