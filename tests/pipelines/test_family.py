"""The seam of families, by one of a few lines: prepared, trained, evaluated, reported, released, loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from headwater.feature_store.errors import JobError
from headwater.models.base import Model, ModelConfig
from headwater.models.phases import Descend, Phase
from headwater.models.strategy import OneLoss
from headwater.pipelines.evaluation.evaluate import evaluate
from headwater.pipelines.evaluation.records import Evaluation, SplitEvaluation
from headwater.pipelines.families import ctr
from headwater.pipelines.family import FAMILIES, Examples, Family, Metric, Reading, Scoring
from headwater.pipelines.job import Job
from headwater.pipelines.prepared import Prepared, SplitName
from headwater.pipelines.release.export import export
from headwater.pipelines.release.scorer import write_scorer
from headwater.pipelines.reporting.compare import compare_runs
from headwater.pipelines.reporting.report import write_report
from headwater.pipelines.training.diagnose import non_finite_loss
from headwater.pipelines.training.train import train
from headwater.serving.kinds.scorer import Scorer
from headwater.serving.release import load_release

TinyJob = Callable[..., Job]


class Sum(Model):
    """The sum of all embeddings, taught by squared error."""

    family: ClassVar[Any] = "tiny"
    config_class = ModelConfig

    @classmethod
    def phases(cls, config: ModelConfig) -> tuple[Phase, ...]:
        return (Descend(OneLoss),)

    def forward(self, emb_BFD: Tensor) -> Tensor:
        return emb_BFD.sum((1, 2))

    def loss(self, output: Tensor, batch: Any) -> Tensor:
        return (output.sigmoid() - batch.label_B).square().sum()


def brier(scoring: Scoring, batches: Examples, _: SplitName) -> Mapping[str, float]:
    scoring.placement.module.eval()
    total = rows = 0.0
    with torch.no_grad():
        for batch in batches.epoch(0):
            output = scoring.placement.logit(batch)
            total += float(scoring.placement.network.model.loss(output, batch))
            rows += len(batch)
    return {"brier": total / rows}


def evaluate_splits(
    scoring: Scoring, splits: Sequence[SplitName], common: Mapping[str, Any]
) -> Evaluation:
    found: dict[str, SplitEvaluation] = {}
    for split in splits:
        batches = ctr.examples(
            scoring.job,
            scoring.prepared,
            split,
            Reading(scoring.job.train.batch_size),
            scoring.ranks,
            scoring.placement.device,
        )
        metrics = dict(brier(scoring, batches, split))
        found[split] = SplitEvaluation(rows=batches.rows, metrics={**metrics})
    return Evaluation(**common, splits=found)


TINY = Family(
    name="tiny",
    metrics={"brier": Metric("Brier score", "mean squared error of the probability", "low")},
    monitor="brier",
    headline=("brier",),
    problems=lambda job: [],
    network=ctr.network,
    least_rows=ctr.rows_of_a_step,
    examples=ctr.examples,
    measure=brier,
    measure_all=ctr.measure_all,
    non_finite=non_finite_loss,
    evaluate=evaluate_splits,
    evaluation=Evaluation,
    facts=lambda job: [],
    panels=lambda evaluation, run: [],
    release=write_scorer,
)


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "tiny", f"{__name__}:TINY")


def test_a_family_of_its_own_goes_the_whole_way(
    tiny_job: TinyJob, tiny_prepared: Prepared, tmp_path: Path
) -> None:
    job = tiny_job(model={"type": f"{__name__}:Sum"}, epochs=2, sparse={"lr": 0.01})
    run = train(job, tiny_prepared, runs=tmp_path / "runs")
    assert run.job.train.monitor == run.metrics.training.monitor == "brier"
    first, second = (epoch.valid["brier"] or 0.0 for epoch in run.metrics.history)
    assert second < first < 0.25
    metrics = evaluate(run).metrics
    assert metrics["valid"]["brier"] == pytest.approx(second)
    assert metrics.keys() == {"valid", "test"}
    page = write_report(run).read_text()
    assert "mean squared error of the probability" in page
    assert f"{metrics['test']['brier']:.5f}" in page
    release = export(run, tmp_path / "releases")
    assert load_release(release, Scorer).manifest.metrics["test"].keys() == {"brier"}


def test_a_monitor_that_the_family_lacks_is_refused_by_name(
    tiny_job: TinyJob, tiny_prepared: Prepared, tmp_path: Path
) -> None:
    job = tiny_job(model={"type": f"{__name__}:Sum"}, monitor="auc")
    with pytest.raises(JobError, match=r"train\.monitor: 'auc' is no metric of a tiny model"):
        train(job, tiny_prepared, runs=tmp_path)
    job = tiny_job(model={"type": "fm"}, monitor="auc-loglos")
    with pytest.raises(JobError, match=r"'loglos' is no metric .* Did you mean 'logloss'\?"):
        train(job, tiny_prepared, runs=tmp_path)
    assert not list(tmp_path.iterdir())


def test_runs_of_two_families_are_compared_only_among_themselves(
    tiny_job: TinyJob, tiny_prepared: Prepared, tmp_path: Path
) -> None:
    runs = [
        train(tiny_job(model={"type": name}, epochs=1), tiny_prepared, runs=tmp_path)
        for name in (f"{__name__}:Sum", "fm")
    ]
    for run in runs:
        evaluate(run, ["valid"])
    with pytest.raises(Exception, match="runs of one family of models can be compared"):
        compare_runs(runs)
    comparison = compare_runs([runs[0]])
    assert comparison.metrics == ["valid brier"]
