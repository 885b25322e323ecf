"""The run folder: naming, completeness, whole files."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from headwater.feature_store.errors import OutputError, RunError
from headwater.pipelines.job import Job, parse_job
from headwater.pipelines.output import write_whole
from headwater.pipelines.runs.records import Epoch, RunMetrics, TrainingRecord
from headwater.pipelines.runs.run import METRICS, create_run, newest_run, open_run


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
    (first.path / METRICS).write_text("{}")
    (second.path / METRICS).write_text("{}")
    assert newest_run("clicks", tmp_path).path == second.path


def test_no_complete_run_says_what_to_do(tmp_path: Path, job: Job) -> None:
    with pytest.raises(RunError, match="Train one first"):
        newest_run("clicks", tmp_path)
    run = create_run(job, tmp_path)
    with pytest.raises(RunError, match=f"--resume {run.path}"):
        newest_run("clicks", tmp_path)
    with pytest.raises(RunError, match="Training has not ended"):
        _ = run.metrics


def test_other_folder_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"holds no job\.toml"):
        open_run(tmp_path)


def test_metrics_of_a_run_have_no_nan(tmp_path: Path, job: Job) -> None:
    run = create_run(job, tmp_path)
    metrics = run_metrics(valid={"auc": float("nan"), "logloss": 0.5})
    run.write(METRICS, metrics)
    assert run.metrics.of("valid") == {"auc": None, "logloss": 0.5}
    assert run.metrics.of("test") is None
    run.write(METRICS, replace(metrics, metrics={"test": {"auc": float("inf")}}))
    assert run.metrics.of("test") == {"auc": None}


def test_metrics_of_the_version_before_are_read(tmp_path: Path, job: Job) -> None:
    run = create_run(job, tmp_path)
    metrics = msgspec.to_builtins(run_metrics(valid={"auc": 0.5}))
    del metrics["format_version"], metrics["metrics"]
    old = metrics | {"valid": {"auc": 0.6}, "test": {"auc": 0.7}, "rows_per_second": 2.0}
    (run.path / METRICS).write_text(json.dumps(old))
    assert run.metrics.metrics == {"valid": {"auc": 0.6}, "test": {"auc": 0.7}}
    assert run.metrics.training.rows_per_second == 2.0


def test_damaged_metrics_are_refused_by_name(tmp_path: Path, job: Job) -> None:
    run = create_run(job, tmp_path)
    (run.path / METRICS).write_text('{"format_version": 2')
    with pytest.raises(RunError, match=r"metrics\.json: damaged"):
        _ = run.metrics


def run_metrics(valid: dict[str, float | None]) -> RunMetrics:
    epoch = Epoch(
        epoch=1,
        step=3,
        train_loss=0.7,
        valid=valid,
        lr_sparse=1e-3,
        lr_dense=1e-3,
        seconds=1.0,
        rows_per_second=2.0,
        improved=True,
    )
    training = TrainingRecord(
        epochs=1,
        best_epoch=1,
        steps=3,
        stopped="epochs",
        monitor="auc",
        best=0.5,
        seconds=1.0,
        rows_per_second=2.0,
        peak_rss_mb=60.0,
        peak_cuda_mb=None,
        parameters=9,
        device="cpu",
        precision="float32",
        seed=1,
        world_size=1,
    )
    return RunMetrics(training=training, history=[epoch], prepared="prepared/x", schema_hash="0")


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
