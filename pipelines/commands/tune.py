"""`headwater tune`: search over settings of a job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from headwater.feature_store.errors import JobError
from headwater.pipelines.console import emit, table
from headwater.pipelines.options import AsJson, Set

if TYPE_CHECKING:
    from headwater.pipelines.tuning.tune import Tuning


def tune(
    job: Path | None = None,
    *,
    resume: Path | None = None,
    set: Set = None,  # noqa: A002
    json: AsJson = False,
) -> None:
    """Search over the settings that `[tune]` of a job names, by trials on its validation rows.

    Parameters
    ----------
    job
        Job file (TOML) with a section `[tune]`.
    resume
        Folder of a tuning to go on with; its own job is used, and `--set tune.trials=N` may raise the
        number of trials in all.
    """
    from headwater.pipelines import load_job
    from headwater.pipelines import tune as tune_job
    from headwater.pipelines.tuning.tune import tuned_job

    if (job is None) == (resume is None):
        raise JobError("tune: give either a job file or --resume FOLDER.")
    if resume is not None:
        declared = tuned_job(resume, set or ())
    else:
        assert job is not None
        declared = load_job(job, set or ())
    found = tune_job(declared, folder=resume)
    result = {
        "tune": found.path,
        "metric": found.metric,
        "best": msgspec.to_builtins(found.best),
        "job": found.best_job,
        "report": found.report,
        "trials": msgspec.to_builtins(found.trials),
    }
    emit(result, as_json=json, text=_text(found))


def _text(found: Tuning) -> str:
    """Return the trials as a table, and the best."""
    from headwater.pipelines.job_tuning import choice_text
    from headwater.pipelines.reporting.page import number

    rows = [
        {
            "trial": trial.number,
            "state": trial.state,
            found.metric: number(trial.metric),
            "epochs": trial.epochs,
            "seconds": round(trial.seconds, 1),
            **{key: choice_text(value) for key, value in trial.values.items()},
        }
        for trial in found.trials
    ]
    best = found.best
    lines = [
        table("Trials, measured on validation rows", rows),
        f"best     trial {best.number}, {found.metric} {number(best.metric)}",
        f"job      {found.best_job}",
        f"report   {found.report}",
        f"train and release it with: headwater run {found.best_job}",
    ]
    return "\n".join(lines)
