"""`headwater init`: look at data and write a first job for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from headwater.feature_store.errors import JobError
from headwater.pipelines.console import emit
from headwater.pipelines.options import AsJson, Csv

if TYPE_CHECKING:
    from headwater.pipelines.first_job.guess import Guess
    from headwater.pipelines.first_job.log import Log


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
        Column to predict, where the guess is wrong or there is none: 0 and 1, yes and no, or a rating. Rows
        of users and items without a label are a log for a retrieval model unless this names one.
    force
        Overwrite the job file if it exists.
    """
    if not data:
        raise JobError("init: name a data file, as `headwater init clicks.parquet`.")
    from headwater.pipelines.first_job.log import Log
    from headwater.pipelines.first_job.write import write_job
    from headwater.pipelines.job import read_settings

    written = read_settings(csv or (), "--csv")
    path, found = write_job(data, out=out, label=label, force=force, csv=written)
    about, text = _of_log(found) if isinstance(found, Log) else _of_clicks(found)
    result = {"job": path, **about, "left_out": found.left_out}
    lines = [f"wrote {path}: {text}"]
    lines += [f"  left out {name}: {why}" for name, why in found.left_out.items()]
    lines.append(f"next: headwater validate {path}")
    emit(result, as_json=json, text="\n".join(lines))


def _of_clicks(guessed: Guess) -> tuple[dict[str, Any], str]:
    features = [encoder["name"] for encoder, _ in guessed.columns]
    text = f"label {guessed.label}, {len(features)} features"
    return {"label": guessed.label, "features": features}, text


def _of_log(log: Log) -> tuple[dict[str, Any], str]:
    text = f"a log of {log.user} with {log.item}" + (f" by {log.time}" if log.time else "")
    return {"user": log.user, "item": log.item, "time": log.time}, text
