"""Sections of the report of a retrieval model: learning, metrics at k, popularity, slices and users."""

from __future__ import annotations

from collections.abc import Iterable

from headwater.pipelines.evaluation.ranking_metrics import RELEVANCE
from headwater.pipelines.evaluation.retrieval_records import RetrievalEvaluation
from headwater.pipelines.evaluation.retrieval_summary import COLD_EVENTS
from headwater.pipelines.family import Panel
from headwater.pipelines.reporting import plots
from headwater.pipelines.reporting.report import last_split

_OF_LEARNING = ("ndcg", "recall", "hit_rate")
_OF_SLICES = ("recall", "ndcg", "hit_rate", "mrr")


def retrieval_panels(evaluation: RetrievalEvaluation) -> Iterable[Panel]:
    """Yield the sections that an evaluation has something for."""
    splits, training = evaluation.splits, evaluation.training
    name = last_split(evaluation)
    last = splits[name]
    k = training.monitor.partition("-")[0].partition("@")[2]
    if evaluation.history:
        learning = plots.learning_curves(
            evaluation.history,
            training.best_epoch,
            title=f"First {k} on validation rows",
            metrics={f"{each}@{k}": f"{RELEVANCE[each].label}@{k}" for each in _OF_LEARNING},
            rates={"lr_dense": "learning rate"},
        )
        shown = {"plot": learning, "unfinished": training.remedy}
        yield Panel("learning", "Learning", "learning.html.j2", shown)
    labels = {curve.metric: RELEVANCE[curve.metric].label for curve in last.curves}
    shown = {"splits": splits, "plot": plots.at_k(splits, labels) if labels else None}
    yield Panel("ranking", "Metrics at k", "ranking.html.j2", shown)
    if not last.users:
        return
    pictures = (
        ("Popularity of answers", plots.popularity(last)),
        ("Shares of each tenth of the catalogue", plots.long_tail(last)),
    )
    shown = {"top_k": last.top_k, "pictures": pictures}
    yield Panel("popularity", "Popularity of answers", "popularity.html.j2", shown)
    parts = [
        (title, rows)
        for title, by in (("test items", "items"), ("users", "users"))
        if (rows := [row for row in last.slices if row.by == by])
    ]
    columns = {f"{each}@{k}": f"{RELEVANCE[each].label}@{k}" for each in _OF_SLICES}
    shown = {"slices": parts, "columns": columns, "cold": COLD_EVENTS}
    yield Panel("slices", f"Slices of {name} rows", "ranking_slices.html.j2", shown)
    yield Panel(
        "users", "What users would be shown", "examples.html.j2", {"examples": last.examples}
    )
