"""The report of a retrieval model: every section, from a summary as evaluation makes it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path

import msgspec
import numpy as np
import pytest

from headwater.pipelines import family
from headwater.pipelines.evaluation.ranking import Ranked
from headwater.pipelines.evaluation.ranking_metrics import METRICS
from headwater.pipelines.evaluation.records import DataSummary
from headwater.pipelines.evaluation.retrieval_records import RetrievalEvaluation, RetrievalSplit
from headwater.pipelines.evaluation.retrieval_summary import Catalogue, summarise_ranking
from headwater.pipelines.families.ctr import CTR
from headwater.pipelines.reporting import report
from headwater.pipelines.reporting.retrieval_panels import retrieval_panels
from headwater.pipelines.runs.records import Epoch, TrainingRecord

EVIL = "<script>alert('x')</script>"
JOB = """
name = "toy"

[data]
source = "rows.parquet"
"""


def split_of(users: int) -> RetrievalSplit:
    rng = np.random.default_rng(users)
    item_QK = np.stack([2 + rng.permutation(30)[:20] for _ in range(users)]).astype(np.int32)
    relevant_QR = np.stack([2 + np.sort(rng.permutation(50)[:2]) for _ in range(users)])
    relevant_QR[0, 0] = 1
    ranked = Ranked(
        52,
        np.arange(users),
        item_QK,
        (item_QK[:, :, None] == relevant_QR[:, None]).any(2),
        np.full(users, 2),
        relevant_QR.astype(np.int32).ravel(),
    )
    catalogue = Catalogue(
        events_N=np.maximum(0, 45 - np.arange(52)),
        known_Q=1 + np.arange(users) % 10,
        history=lambda row: range(2, 2 + row),
        user_name=lambda row: f"user {row}",
        item_name=lambda row: EVIL if row == 2 else f"item {row}",
    )
    return summarise_ranking(
        ranked, catalogue, [10, 20], rows=3 * users, users_without_items=7, masked=["train"]
    )


def evaluation_of(splits: dict[str, RetrievalSplit], *, epochs: int = 3) -> RetrievalEvaluation:
    history = [
        Epoch(
            epoch=epoch,
            step=epoch,
            train_loss=1 / epoch,
            valid={"ndcg@10": 0.1 * epoch, "recall@10": 0.2},
            lr_sparse=0.01,
            lr_dense=0.01,
            seconds=1.0,
            rows_per_second=10.0,
            improved=True,
        )
        for epoch in range(1, 1 + epochs)
    ]
    training = TrainingRecord(
        epochs=epochs,
        best_epoch=epochs,
        steps=epochs,
        stopped="plateau",
        monitor="ndcg@10",
        best=0.3,
        seconds=1.0,
        rows_per_second=10.0,
        peak_rss_mb=100.0,
        peak_cuda_mb=None,
        parameters=10,
        device="cpu",
        precision="float32",
        seed=1,
        world_size=1,
    )
    return RetrievalEvaluation(
        family="retrieval",
        name="toy",
        model="sasrec",
        headwater_version="0.1.0",
        training=training,
        data=DataSummary(rows={"train": 10}, time_range_ms=None),
        history=history,
        splits=splits,
        rates=[],
    )


Write = Callable[[RetrievalEvaluation], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Return a function that writes an evaluation into a run, and returns the report's page."""
    record = dataclasses.replace(
        CTR,
        name="retrieval",
        metrics=METRICS,
        headline=("ndcg@10", "recall@10"),
        evaluation=RetrievalEvaluation,
        facts=lambda job: [("user", "user_id")],
        panels=lambda evaluation, run: retrieval_panels(evaluation),  # pyright: ignore[reportArgumentType]
    )
    monkeypatch.setitem(family.FAMILIES, "retrieval", "")
    monkeypatch.setattr(report, "find_family", lambda name: record)

    def written(evaluation: RetrievalEvaluation) -> str:
        (tmp_path / "job.toml").write_text(JOB)
        (tmp_path / "evaluation.json").write_bytes(msgspec.json.encode(evaluation))
        return report.write_report(tmp_path).read_text(encoding="utf-8")

    return written


def test_report_has_every_section_and_ten_users(write: Write) -> None:
    page = write(evaluation_of({"valid": split_of(40), "test": split_of(60)}))
    anchors = re.findall(r'<h2 id="(\w+)">', page)
    assert anchors == [
        "trained", "metrics", "learning", "ranking", "popularity", "slices", "users", "job",
    ]  # fmt: skip
    text = unescape(re.sub(r"<[^>]+>", " ", page))
    for words in ("NDCG@10, test rows", "popularity_bias@20", "user 59", "1 to 2 events"):
        assert words in text
    assert page.count("<img") == 4
    assert len(re.findall(r'<td class="name">user \d+</td>', page)) == 10
    assert "1 unknown" in text
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_report_of_a_split_without_users_and_of_no_epoch_leaves_pictures_out(write: Write) -> None:
    empty = split_of(5)
    empty = msgspec.structs.replace(empty, users=0, curves=[], slices=[], examples=[])
    page = write(evaluation_of({"valid": empty}, epochs=0))
    assert re.findall(r'<h2 id="(\w+)">', page) == ["trained", "metrics", "ranking", "job"]
    assert "<img" not in page
