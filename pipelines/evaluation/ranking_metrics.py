"""Metrics at k of ranked answers, as `docs/metrics.md` defines them.

Q queries, K answers of each, N rows of items, E relevant items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headwater.pipelines.evaluation.ranking import Ranked
from headwater.pipelines.family import Metric

MAX_K = 200
"""The largest k of a metric."""

PerQuery = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingMetric(Metric):
    """A metric at k that is the mean of what each query has."""

    of: Callable[[Ranked, int], PerQuery]
    """Its value of each query at k, (Q,)."""


def recall(ranked: Ranked, k: int) -> PerQuery:
    """Return hits over the number of relevant items."""
    return _hits(ranked, k) / ranked.num_relevant_Q


def ndcg(ranked: Ranked, k: int) -> PerQuery:
    """Return the sum of 1 / log2(1 + place) over hits, over that of min(k, relevant) hits at the top.

    Source: Jarvelin and Kekalainen (2002), of relevance 0 or 1.
    """
    hit_QK = ranked.hit_QK[:, :k]
    weight_K = 1 / np.log2(np.arange(2, k + 2))
    gain_Q: PerQuery = hit_QK @ weight_K[: hit_QK.shape[1]]
    most_Q: NDArray[np.int64] = np.minimum(ranked.num_relevant_Q, k)
    best_Q: PerQuery = np.cumsum(weight_K)[most_Q - 1]
    return gain_Q / best_Q


def hit_rate(ranked: Ranked, k: int) -> PerQuery:
    """Return 1 with a hit, else 0."""
    return (_hits(ranked, k) > 0).astype(np.float64)


def mrr(ranked: Ranked, k: int) -> PerQuery:
    """Return 1 over the place of the first hit, 0 without one."""
    hit_QK = ranked.hit_QK[:, :k]
    return hit_QK.any(1) / (hit_QK.argmax(1) + 1)


def precision(ranked: Ranked, k: int) -> PerQuery:
    """Return hits over k, however many answers there are."""
    return _hits(ranked, k) / k


def average_precision(ranked: Ranked, k: int) -> PerQuery:
    """Return the sum of the precision at each hit, over the number of relevant items, as trec_eval has it."""
    hit_QK = ranked.hit_QK[:, :k]
    so_far_QK = np.cumsum(hit_QK, axis=1, dtype=np.int32)
    total_Q = (hit_QK * so_far_QK) @ (1 / np.arange(1, hit_QK.shape[1] + 1))
    return total_Q / ranked.num_relevant_Q


def _hits(ranked: Ranked, k: int) -> NDArray[np.int64]:
    return np.count_nonzero(ranked.hit_QK[:, :k], axis=1)


def coverage(ranked: Ranked, k: int) -> float:
    """Return the share of the catalogue that is answered to anyone."""
    answered_N = np.zeros(ranked.num_items, np.bool_)
    answered_N[ranked.item_QK[:, :k]] = True
    return float(np.count_nonzero(answered_N[2:])) / max(1, ranked.num_items - 2)


def novelty(ranked: Ranked, k: int, events_N: NDArray[np.int64]) -> PerQuery:
    """Return the mean over answers of -log2 of the item's share of training events; NaN without an answer.

    `events_N` counts the training events of each item; an item without any counts as one. Source:
    self-information, as Vargas and Castells (RecSys 2011) have it.
    """
    surprise_N = -np.log2(np.maximum(events_N, 1) / max(1, events_N.sum()))
    return _mean_of_answers(ranked, k, surprise_N)


def answered_popularity(ranked: Ranked, k: int, events_N: NDArray[np.int64]) -> PerQuery:
    """Return the mean over answers of the item's training events; NaN without an answer."""
    return _mean_of_answers(ranked, k, events_N.astype(np.float64))


def taken_popularity(ranked: Ranked, events_N: NDArray[np.int64]) -> PerQuery:
    """Return the mean over relevant items of their training events, 0 for unknown ones."""
    event_E = np.where(ranked.relevant_E > 1, events_N[ranked.relevant_E], 0)
    query_E = np.repeat(np.arange(len(ranked)), ranked.num_relevant_Q)
    return np.bincount(query_E, event_E, minlength=len(ranked)) / ranked.num_relevant_Q


def _mean_of_answers(ranked: Ranked, k: int, value_N: NDArray[np.float64]) -> PerQuery:
    item_QK = ranked.item_QK[:, :k]
    value_N = value_N.copy()
    value_N[0] = 0  # no answer
    with np.errstate(invalid="ignore"):
        return value_N[item_QK].sum(1) / np.count_nonzero(item_QK, axis=1)


@dataclass(frozen=True, slots=True)
class Measures:
    """Metrics of ranked answers: the values of queries, and their means by name."""

    of_queries: Mapping[str, PerQuery]
    """By name as `recall@20`; NaN where a query has none."""
    values: Mapping[str, float]
    """Means over queries, and the metrics of all queries together; NaN where not defined."""


def measure(ranked: Ranked, ks: Iterable[int], events_N: NDArray[np.int64]) -> Measures:
    """Return all metrics at each k; `events_N` counts the training events of each item."""
    ks = list(ks)
    of_queries = {
        f"{name}@{k}": metric.of(ranked, k) for name, metric in RELEVANCE.items() for k in ks
    }
    values = {name: mean(value_Q) for name, value_Q in of_queries.items()}
    taken = mean(taken_popularity(ranked, events_N))
    for k in ks:
        values[f"coverage@{k}"] = coverage(ranked, k) if len(ranked) else np.nan
    for k in ks:
        of_queries[f"novelty@{k}"] = novelty(ranked, k, events_N)
        values[f"novelty@{k}"] = mean(of_queries[f"novelty@{k}"])
    for k in ks:
        answered = mean(answered_popularity(ranked, k, events_N))
        values[f"popularity_bias@{k}"] = answered / taken if taken > 0 else np.nan
    return Measures(of_queries, values)


def mean(value_Q: PerQuery) -> float:
    """Return the mean of the values that are numbers, NaN where there is none."""
    defined = value_Q[np.isfinite(value_Q)]
    return float(defined.mean()) if len(defined) else np.nan


RELEVANCE: Mapping[str, RankingMetric] = {
    "recall": RankingMetric(
        label="recall",
        meaning="share of a user's test items among its first {k}",
        of=recall,
    ),
    "ndcg": RankingMetric(
        label="NDCG",
        meaning="the same, with more weight for early places; 1 is the best order",
        of=ndcg,
    ),
    "hit_rate": RankingMetric(
        label="hit rate",
        meaning="share of users with a test item among their first {k}",
        of=hit_rate,
    ),
    "mrr": RankingMetric(
        label="MRR",
        meaning="1 over the place of the first test item, 0 beyond {k}",
        of=mrr,
    ),
    "precision": RankingMetric(
        label="precision",
        meaning="share of the first {k} that are test items",
        of=precision,
    ),
    "map": RankingMetric(
        label="MAP",
        meaning="precision at each test item among the first {k}, over the number of test items",
        of=average_precision,
    ),
}
"""The metrics that say how well answers meet what users took."""

_CATALOGUE: Mapping[str, Metric] = {
    "coverage": Metric("coverage", "share of the catalogue among the first {k} of anyone"),
    "novelty": Metric("novelty", "bits of surprise of an item among the first {k}"),
    "popularity_bias": Metric(
        "popularity bias",
        "popularity of the first {k} over that of test items; above 1 it leans on popular items",
        1.0,
    ),
}


def metrics_at(ks: Iterable[int]) -> Mapping[str, Metric]:
    """Return the record of each metric at each k by its name, as `recall@20`, in the order of tables."""
    ks = list(ks)
    return {
        f"{name}@{k}": Metric(f"{metric.label}@{k}", metric.meaning.format(k=k), metric.best)
        for name, metric in (*RELEVANCE.items(), *_CATALOGUE.items())
        for k in ks
    }


METRICS = metrics_at(range(1, MAX_K + 1))
"""By name, of every k that a job may name."""
