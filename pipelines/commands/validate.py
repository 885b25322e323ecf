"""`headwater validate`: check a job before hours of work are spent on it."""

from __future__ import annotations

from pathlib import Path

from headwater.pipelines.console import emit
from headwater.pipelines.options import AsJson, Set


def validate(job: Path, *, set: Set = None, json: AsJson = False) -> None:  # noqa: A002
    """Check a job and its data, and show the features and what the release will take in.

    Parameters
    ----------
    job
        Job file (TOML).
    """
    from headwater.pipelines.checking.validation import check_job
    from headwater.pipelines.job import load_job

    result = check_job(load_job(job, set or ()))
    result.require_none(job)
    emit(result.as_dict(job), as_json=json, text=result.text(job))
