"""The jobs of Headwater, and its Python API.

    from headwater.pipelines import evaluate, export, load_job, prepare, score, train

    job = load_job("job.toml", ["train.seed=7"])
    run = train(job, prepare(job))
    evaluate(run)
    release = export(run)
    score(release, "new_rows.parquet", "scored.parquet")

A run or a release may be given by its folder, and every folder as text or as a Path: `evaluate("runs/x/..")`.
The commands call these same functions. Each is imported when it is first used: `headwater --help` and
`headwater serve` load neither torch nor polars.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headwater.pipelines.evaluation.evaluate import evaluate
    from headwater.pipelines.job import Job, load_job
    from headwater.pipelines.preparing.prepare import prepare
    from headwater.pipelines.release.export import export
    from headwater.pipelines.reporting.compare import compare_runs
    from headwater.pipelines.reporting.report import write_report
    from headwater.pipelines.scoring.recommend import recommend
    from headwater.pipelines.scoring.score import score
    from headwater.pipelines.training.train import train
    from headwater.pipelines.tuning.tune import tune

__all__ = [
    "Job",
    "compare_runs",
    "evaluate",
    "export",
    "load_job",
    "prepare",
    "recommend",
    "score",
    "train",
    "tune",
    "write_report",
]

_MODULE_OF = {
    "Job": "job",
    "compare_runs": "reporting.compare",
    "evaluate": "evaluation.evaluate",
    "export": "release.export",
    "load_job": "job",
    "prepare": "preparing.prepare",
    "recommend": "scoring.recommend",
    "score": "scoring.score",
    "train": "training.train",
    "tune": "tuning.tune",
    "write_report": "reporting.report",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
