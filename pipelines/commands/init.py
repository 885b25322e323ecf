"""`headwater init`: look at data and write a first job for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from headwater.feature_store.errors import JobError
from headwater.pipelines.console import emit
from headwater.pipelines.options import AsJson, Csv

if TYPE_CHECKING:
    from headwater.pipelines.first_job.guess import Guess


def init(
    *data: str,
    out: Path | None = None,
    label: str | None = None,
    force: Annotated[bool, Parameter(negative=())] = False,
    csv: Csv = None,
    json: AsJson = False,
) -> None:
    """Look at data files and write a first job for them, to be read and changed.

    Parameters
    ----------
    data
        Parquet, CSV, TSV or NDJSON files, globs or folders. Files named train, valid and test keep
        those parts; others are split.
    out
        Job file to write; by default named after the data, in the current folder.
    label
        Column to predict, where the guess is wrong or there is none: 0 and 1, yes and no, or a rating.
    force
        Overwrite the job file if it exists.
    """
    if not data:
        raise JobError("init: name a data file, as `headwater init clicks.parquet`.")
    from headwater.pipelines.first_job.write import write_job
    from headwater.pipelines.job import read_settings

    written = read_settings(csv or (), "--csv")
    path, guessed = write_job(data, out=out, label=label, force=force, csv=written)
    result = {
        "job": path,
        "label": guessed.label,
        "features": [encoder["name"] for encoder, _ in guessed.columns],
        "left_out": guessed.left_out,
    }
    emit(result, as_json=json, text=_summary(path, guessed))


def _summary(path: Path, guessed: Guess) -> str:
    lines = [f"wrote {path}: label {guessed.label}, {len(guessed.columns)} features"]
    lines += [f"  left out {name}: {why}" for name, why in guessed.left_out.items()]
    lines.append(f"next: headwater validate {path}")
    return "\n".join(lines)
