"""The run folder: naming, completeness, whole files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headwater.feature_store.errors import OutputError, RunError
from headwater.pipelines.job import Job, parse_job
from headwater.pipelines.output import write_whole
from headwater.pipelines.runs.run import create_run, newest_run, open_run


@pytest.fixture
def job() -> Job:
    return parse_job(
        {
            "name": "clicks",
            "data": {"train": "a.parquet", "valid": "b.parquet"},
            "features": {"label": "y", "columns": [{"name": "user", "encoder": "vocabulary"}]},
            "model": {"type": "dnn", "hidden": [8]},
            "train": {"seed": 7},
        }
    )


def test_run_keeps_the_resolved_job(tmp_path: Path, job: Job) -> None:
    run = create_run(job, tmp_path)
    assert run.path.parent == tmp_path / "clicks"
    again = open_run(run.path)
    assert again.job == job
    assert again.job.model.settings() == {"hidden": [8]}


def test_runs_of_one_second_get_folders_of_their_own(tmp_path: Path, job: Job) -> None:
    paths = [create_run(job, tmp_path).path for _ in range(3)]
    assert len(set(paths)) == 3
    assert sorted(paths) == paths


def test_newest_run_is_the_newest_complete_one(tmp_path: Path, job: Job) -> None:
    first, second, _third = (create_run(job, tmp_path) for _ in range(3))
    first.write("metrics.json", {})
    second.write("metrics.json", {})
    assert newest_run("clicks", tmp_path).path == second.path


def test_no_complete_run_says_what_to_do(tmp_path: Path, job: Job) -> None:
    with pytest.raises(RunError, match="Train one first"):
        newest_run("clicks", tmp_path)
    run = create_run(job, tmp_path)
    with pytest.raises(RunError, match=f"--resume {run.path}"):
        newest_run("clicks", tmp_path)
    with pytest.raises(RunError, match="Training has not ended"):
        run.read("metrics.json")


def test_other_folder_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"holds no job\.toml"):
        open_run(tmp_path)


def test_json_of_a_run_has_no_nan(tmp_path: Path, job: Job) -> None:
    run = create_run(job, tmp_path)
    run.write("metrics.json", {"valid": {"auc": float("nan"), "all": [float("inf"), 1.0]}})
    assert run.read("metrics.json") == {"valid": {"auc": None, "all": [None, 1.0]}}


def test_log_is_one_object_a_line(tmp_path: Path, job: Job) -> None:
    run = create_run(job, tmp_path)
    run.log("epoch ended", epoch=1, auc=0.5)
    run.log("epoch ended", epoch=2, auc=float("nan"))
    lines = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    assert [(line["event"], line["epoch"], line["auc"]) for line in lines] == [
        ("epoch ended", 1, 0.5),
        ("epoch ended", 2, None),
    ]


def test_file_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"absent/x\.json: cannot be written"):
        write_whole(tmp_path / "absent" / "x.json", b"{}")
