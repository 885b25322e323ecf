"""The commands that carry a job from raw logs to a release. Each is thin: it calls the Python API.

All take a job file and `--set key.path=value`, or `--run RUN` for a run that exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from headwater.feature_store.errors import JobError, RunError
from headwater.pipelines.console import emit, note, to_json
from headwater.pipelines.options import AsJson, Csv, Set

if TYPE_CHECKING:
    from headwater.pipelines.job import Job
    from headwater.pipelines.runs.run import Run


def run(job: Path, *, set: Set = None, json: AsJson = False) -> None:  # noqa: A002
    """Prepare the data, train, evaluate, export: a job from raw logs to a release.

    Parameters
    ----------
    job
        Job file (TOML).
    """
    from headwater.pipelines import export, prepare, train

    declared = _load_sound(job, set)
    trained = train(declared, prepare(declared))
    result = evaluate_and_report(trained)
    ending, told = _ending(trained)
    result, lines = {**result, **ending}, [summary(result), *told]
    release = result["release"] = export(trained)
    lines += [f"release  {release}", f"serve it with: headwater serve {release.parent.parent}"]
    emit(result, as_json=json, text="\n".join(lines))


def prepare(job: Path, *, set: Set = None, json: AsJson = False) -> None:  # noqa: A002
    """Fit the encoders and write encoded shards; equal prepared data is used again.

    Parameters
    ----------
    job
        Job file (TOML).
    """
    from headwater.pipelines import prepare as prepare_job

    prepared = prepare_job(_load(job, set))
    emit({"prepared": prepared.path}, as_json=json, text=f"prepared {prepared.path}")


def train(
    job: Path | None = None,
    *,
    resume: Path | None = None,
    set: Set = None,  # noqa: A002
    json: AsJson = False,
) -> None:
    """Train a model, on data that is prepared first where it is not, or go on with a stopped run.

    Parameters
    ----------
    job
        Job file (TOML).
    resume
        Run folder to go on with; its own job is used.
    """
    from headwater.pipelines import prepare as prepare_job
    from headwater.pipelines import train as train_job
    from headwater.pipelines.checking.validation import require_sound
    from headwater.pipelines.ranks import find_ranks
    from headwater.pipelines.runs.run import open_run

    if (job is None) == (resume is None):
        raise JobError("train: give either a job file or --resume RUN.")
    if resume is not None:
        if set:
            raise JobError("train: --set cannot change a run that is resumed.")
        run = open_run(resume)
        require_sound(run.job, resume)
        trained = train_job(run.job, prepare_job(run.job), run=run, resume=True)
    else:
        assert job is not None
        declared = _load_sound(job, set)
        trained = train_job(declared, prepare_job(declared))
    if not find_ranks().is_first:
        return  # which alone has the metrics, and of several results one is enough
    ending, told = _ending(trained)
    text = "\n".join([f"run {trained.path}", *told])
    emit({"run": trained.path, **ending}, as_json=json, text=text)


def search(job: Path, *, set: Set = None, json: AsJson = False) -> None:  # noqa: A002
    """Search for the architecture of a model that has one to find, and stop before its training.

    Parameters
    ----------
    job
        Job file (TOML).
    """
    from headwater.pipelines import prepare as prepare_job
    from headwater.pipelines import train as train_job

    declared = _load_sound(job, set)
    found = train_job(declared, prepare_job(declared), search_only=True)
    result: dict[str, Any] = {"run": found.path}
    lines = [f"searched {found.path}", f"train it with: headwater train --resume {found.path}"]
    if found.architectures:
        architecture = result["architecture"] = found.architecture
        lines[0] = f"architecture {architecture}"
        lines.append(f"or in another run with: --set model.architecture={architecture}")
    emit(result, as_json=json, text="\n".join(lines))


def evaluate(
    job: Path | None = None,
    *,
    run: Path | None = None,
    set: Set = None,  # noqa: A002
    json: AsJson = False,
) -> None:
    """Measure a run on its validation and test data, and write its report.

    Parameters
    ----------
    job
        Job file (TOML): its newest complete run is taken.
    run
        Run folder, instead of a job file.
    """
    trained, _ = _trained(job, run, set)
    result = evaluate_and_report(trained)
    emit(result, as_json=json, text=summary(result))


def export(
    job: Path | None = None,
    *,
    run: Path | None = None,
    releases: Path = Path("releases"),
    set: Set = None,  # noqa: A002
    json: AsJson = False,
) -> None:
    """Write a run as a release: an ONNX graph that takes raw features, checked against torch.

    Parameters
    ----------
    job
        Job file (TOML): its newest complete run is taken, and its present `[export]` section.
    run
        Run folder, instead of a job file.
    releases
        Folder of all releases.
    """
    from headwater.pipelines import export as export_run

    trained, declared = _trained(job, run, set, may_change="export.")
    release = export_run(trained, releases, settings=declared.export)
    emit({"release": release}, as_json=json, text=f"release {release}")


def report(*runs: Path, json: AsJson = False) -> None:
    """Write the HTML report of one run, or compare several.

    Parameters
    ----------
    runs
        Run folders, or one job file (TOML): then its newest complete run. Of several, files among them,
        folders of `headwater tune` and runs that were not evaluated are left out, so that
        `runs/<job name>/*` may be given.
    """
    from headwater.pipelines import compare_runs, write_report

    if not runs:
        raise JobError("report: give a job file, one run folder, or several to compare.")
    chosen = [_run_folder(runs[0])] if len(runs) == 1 else _evaluated(runs)
    if len(chosen) == 1:
        page = write_report(chosen[0])
        emit({"report": page}, as_json=json, text=f"report {page}")
    else:
        comparison = compare_runs(chosen)
        emit(
            {"runs": comparison.rows, "report": comparison.page},
            as_json=json,
            text=f"{comparison.text}\nreport {comparison.page}",
        )


def _run_folder(path: Path) -> Path:
    """Return a run's folder as given, or that of the newest complete run of a job file."""
    from headwater.pipelines.runs.run import newest_run

    if path.suffix != ".toml":
        return path
    found = newest_run(_load(path, None).name).path
    note(f"run      {found}")
    return found


def _evaluated(paths: Sequence[Path]) -> list[Path]:
    """Return the runs that can be compared; RunError where there is none."""
    from headwater.pipelines.runs.run import EVALUATION, TUNING

    chosen: list[Path] = []
    for path in paths:
        if path.is_file() or (path / TUNING).is_file():
            continue
        if (path / "job.toml").is_file() and not (path / EVALUATION).is_file():
            note(
                f"{path}: left out, it was not evaluated yet. Go on with `headwater train --resume "
                f"{path}` if training has not ended, then `headwater evaluate --run {path}`."
            )
            continue
        chosen.append(path)
    if not chosen:
        raise RunError("report: none of the paths is a run that was evaluated.")
    return chosen


def score(release: Path, source: str, out: Path, *, csv: Csv = None, json: AsJson = False) -> None:
    """Score the rows of a file with a release, without torch.

    Parameters
    ----------
    release
        Release folder, or the folder of a model: then its newest version.
    source
        Parquet, CSV or NDJSON file with the release's raw columns.
    out
        Parquet or CSV file to write: the same rows with their scores.
    """
    from headwater.pipelines import score as score_file
    from headwater.pipelines.job import read_settings

    written = read_settings(csv, "--csv") if csv else None
    result = score_file(release, source, out, csv=written)
    emit(result, as_json=json, text=f"{result['rows']:,} rows scored to {out}")


def recommend(
    release: Path, source: str, out: Path, *, k: int = 10, csv: Csv = None, json: AsJson = False
) -> None:
    """Recommend items to the users, histories or baskets of a file with a release, without torch.

    Parameters
    ----------
    release
        Release folder, or the folder of a model: then its newest version.
    source
        Parquet, CSV or NDJSON file with a query a row: the column of the user, or the items of a history,
        a list, under the name of the item.
    out
        Parquet file to write: the same rows with `items`, `scores` and `known`.
    k
        Items of an answer.
    """
    from headwater.pipelines import recommend as recommend_file
    from headwater.pipelines.job import read_settings

    written = read_settings(csv, "--csv") if csv else None
    result = recommend_file(release, source, out, k=k, csv=written)
    emit(result, as_json=json, text=f"{result['queries']:,} queries answered in {out}")


def schema(*, json: AsJson = False) -> None:
    """Print the JSON Schema of the job file, for editors."""
    from headwater.pipelines.job_schema import job_schema

    result = job_schema()
    emit(result, as_json=json, text=msgspec.json.format(to_json(result), indent=2))


def _load(job: Path, overrides: list[str] | None) -> Job:
    from headwater.pipelines import load_job

    return load_job(job, overrides or ())


def _load_sound(job: Path, overrides: list[str] | None) -> Job:
    """Return a job whose settings can train here; JobError has a line for each that cannot."""
    from headwater.pipelines.checking.validation import require_sound

    declared = _load(job, overrides)
    require_sound(declared, job)
    return declared


def _trained(
    job: Path | None, run: Path | None, overrides: list[str] | None, *, may_change: str = "none"
) -> tuple[Run, Job]:
    """Return a run that exists, and its job as declared now: by the job file, or by the run itself.

    Settings that training has fixed are all but those that start with `may_change`. `--set` may not
    change them in a run that is named; a run that is found by its job's name may differ in them from
    the job file, and a note says so.
    """
    from headwater.pipelines.job import dump_job
    from headwater.pipelines.reporting.compare import differences
    from headwater.pipelines.resolved import resolve
    from headwater.pipelines.runs.run import newest_run, open_run

    if (job is None) == (run is None):
        raise JobError("give either a job file or --run RUN.")
    if run is not None:
        found = open_run(run)
        declared = _load(found.path / "job.toml", overrides)
    else:
        assert job is not None
        declared = _load(job, overrides)
        found = newest_run(declared.name)
    changed = [
        key
        for key in differences([dump_job(found.job), dump_job(resolve(declared))])
        if not key.startswith(may_change)
    ]
    note(f"run      {found.path}")
    if changed and job is None:
        raise JobError(f"--set: {', '.join(changed)} cannot change once {run} is trained.")
    if changed:
        note(f"it was trained with other settings than {job} has now: {', '.join(changed)}")
    return found, declared


def evaluate_and_report(run: Run) -> dict[str, Any]:
    """Measure a run and write its report; the result is what `run` and `evaluate` print as JSON."""
    from headwater.pipelines import evaluate as evaluate_run
    from headwater.pipelines import write_report

    found = evaluate_run(run)
    page = write_report(run.path)
    return {
        "run": run.path,
        "report": page,
        "metrics": found.metrics,
        "rows_per_second": found.training.rows_per_second,
        "peak_rss_mb": found.training.peak_rss_mb,
    }


def _ending(run: Run) -> tuple[dict[str, Any], list[str]]:
    """Return why training ended, for JSON, and lines of text where it should go on."""
    training = run.metrics.training
    ending = {"stopped": training.stopped, "still_improving": training.still_improving}
    return ending, [] if training.remedy is None else [training.remedy]


def summary(result: dict[str, Any]) -> str:
    """Return the metrics as a table, a row a metric and a column a split."""
    metrics = result["metrics"]
    names = list(next(iter(metrics.values())))
    lines = ["metric".ljust(24) + "".join(split.rjust(12) for split in metrics)]
    for name in names:
        values = (metrics[split].get(name) for split in metrics)
        cells = "".join(("-" if v is None or isnan(v) else f"{v:.5g}").rjust(12) for v in values)
        lines.append(name.ljust(24) + cells)
    lines.append(f"run      {result['run']}")
    lines.append(f"report   {result['report']}")
    return "\n".join(lines)
