"""Summary of a split's ranked answers: metrics, slices, popularity and examples, as the report draws them.

Q queries, N rows of items, I known items from the most popular on; `docs/metrics.md` has the layout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from headwater.feature_store.schema import UNKNOWN_CODE
from headwater.pipelines.evaluation.bootstrap import mean_intervals
from headwater.pipelines.evaluation.ranking import Ranked
from headwater.pipelines.evaluation.ranking_metrics import RELEVANCE, mean, measure
from headwater.pipelines.evaluation.retrieval_records import (
    Curve,
    Decile,
    PopularityCurve,
    RankingSlice,
    RetrievalSplit,
    Shown,
    UserExample,
)

COLD_EVENTS = 10
"""An item of fewer training events is cold."""
_CURVES = ("recall", "ndcg", "hit_rate", "precision")
_CURVE_KS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 40, 50, 70, 100, 150, 200)
_GROUPS = 5
_POINTS = 100
_EXAMPLES = 10
_ITEMS_OF_EXAMPLE = 10


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Facts on users and items beside the answers."""

    events_N: NDArray[np.int64]
    """Training events of each item."""
    known_Q: NDArray[np.int64]
    """Training events of each query's user, or the items of its history or basket."""
    history: Callable[[int], Sequence[int]]
    """Known items of the query of a row, the oldest first."""
    user_name: Callable[[int], str]
    """Name of the query of a row."""
    item_name: Callable[[int], str]


def summarise_ranking(
    ranked: Ranked,
    catalogue: Catalogue,
    ks: Sequence[int],
    *,
    rows: int,
    users_without_items: int,
    masked: Sequence[str],
) -> RetrievalSplit:
    """Return everything the report shows of a split; `rows` are its events.

    `catalogue.known_Q` has an entry for each query of `ranked`.
    """
    found = measure(ranked, ks, catalogue.events_N)
    deciles, popularity = _popularity(ranked, catalogue.events_N)
    return RetrievalSplit(
        rows=rows,
        metrics={**found.values},
        intervals=mean_intervals(found.of_queries),
        users=len(ranked),
        users_without_items=users_without_items,
        test_items=len(ranked.relevant_E),
        unknown_items=ranked.num_unknown,
        masked=list(masked),
        top_k=ranked.item_QK.shape[1],
        curves=_curves(ranked, max(ks)),
        slices=_slices(ranked, catalogue, ks),
        deciles=deciles,
        popularity=popularity,
        examples=_examples(ranked, catalogue),
    )


def _curves(ranked: Ranked, largest: int) -> list[Curve]:
    """Return metrics at several k up to the largest that was asked for; none without users."""
    if not len(ranked):
        return []
    ks = [*(k for k in _CURVE_KS if k < largest), largest]
    return [
        Curve(metric=name, k=ks, value=[mean(RELEVANCE[name].of(ranked, k)) for k in ks])
        for name in _CURVES
    ]


def _slices(ranked: Ranked, catalogue: Catalogue, ks: Sequence[int]) -> list[RankingSlice]:
    """Return the metrics of warm, cold and unknown test items, and of users by what is known of them."""
    item_N = np.arange(ranked.num_items)
    is_cold_N = catalogue.events_N < COLD_EVENTS
    parts = [
        ("warm", ranked.among((item_N > 1) & ~is_cold_N)),
        ("cold", ranked.among((item_N > 1) & is_cold_N)),
        ("unknown", ranked.among(item_N == 1)),
    ]
    groups = _sparsity(catalogue.known_Q)
    return [
        *(_slice("items", name, part, ks) for name, part in parts if len(part)),
        *(_slice("users", name, ranked.where(chosen_Q), ks) for name, chosen_Q in groups),
    ]


def _slice(
    by: Literal["items", "users"], name: str, part: Ranked, ks: Sequence[int]
) -> RankingSlice:
    return RankingSlice(
        by=by,
        name=name,
        users=len(part),
        test_items=len(part.relevant_E),
        metrics={
            f"{each}@{k}": mean(metric.of(part, k))
            for each, metric in RELEVANCE.items()
            for k in ks
        },
    )


def _sparsity(known_Q: NDArray[np.int64]) -> list[tuple[str, NDArray[np.bool_]]]:
    """Return quintiles of users by their number of events; fewer groups where many are equal."""
    if not len(known_Q):
        return []
    inner = np.quantile(known_Q, np.arange(1, _GROUPS) / _GROUPS, method="lower")
    group_Q = np.searchsorted(np.unique(inner), known_Q, side="left")
    groups: list[tuple[str, NDArray[np.bool_]]] = []
    for group in np.unique(group_Q):
        chosen_Q = group_Q == group
        low, high = int(known_Q[chosen_Q].min()), int(known_Q[chosen_Q].max())
        groups.append((f"{low} events" if low == high else f"{low} to {high} events", chosen_Q))
    return groups


def _popularity(
    ranked: Ranked, events_N: NDArray[np.int64]
) -> tuple[list[Decile], PopularityCurve]:
    """Return how training events, test items and answers spread over items from the most popular on."""
    order_I = 2 + np.argsort(-events_N[2:], kind="stable")
    counts = [
        events_N,
        np.bincount(ranked.relevant_E, minlength=len(events_N)),
        np.bincount(ranked.item_QK.ravel(), minlength=len(events_N)),
    ]
    sums = [np.append(0, np.cumsum(count_N[order_I])) for count_N in counts]
    shares = [sum_I / max(1, sum_I[-1]) for sum_I in sums]
    cuts = np.arange(11) * len(order_I) // 10
    deciles = [
        Decile(
            items=int(stop - start),
            **{
                name: float(share_I[stop] - share_I[start])
                for name, share_I in zip(("events", "taken", "answered"), shares, strict=True)
            },
        )
        for start, stop in pairwise(cuts)
    ]
    # Closer together among the popular items, where the curves rise.
    points = np.unique((np.linspace(0, 1, _POINTS) ** 2 * len(order_I)).round().astype(np.int64))
    events, taken, answered = (share_I[points].tolist() for share_I in shares)
    return deciles, PopularityCurve(
        items=(points / max(1, len(order_I))).tolist(),
        events=events,
        taken=taken,
        answered=answered,
    )


def _examples(ranked: Ranked, catalogue: Catalogue) -> list[UserExample]:
    """Return some users from all over the split, with their newest items and what they would be shown."""
    ends_Q = np.cumsum(ranked.num_relevant_Q)
    examples: list[UserExample] = []
    for place in np.unique(np.linspace(0, len(ranked) - 1, min(_EXAMPLES, len(ranked))).round()):
        at = int(place)
        query = int(ranked.query_Q[at])
        taken = ranked.relevant_E[ends_Q[at] - ranked.num_relevant_Q[at] : ends_Q[at]]
        answers = [
            Shown(item=catalogue.item_name(int(item)), hit=bool(hit))
            for item, hit in zip(ranked.item_QK[at], ranked.hit_QK[at], strict=True)
            if item
        ]
        examples.append(
            UserExample(
                user=catalogue.user_name(query),
                history=_names(catalogue.history(query)[-_ITEMS_OF_EXAMPLE:], catalogue),
                test_items=_names(
                    taken[taken != UNKNOWN_CODE][:_ITEMS_OF_EXAMPLE].tolist(), catalogue
                ),
                unknown_items=int(np.count_nonzero(taken == UNKNOWN_CODE)),
                shown=answers[:_ITEMS_OF_EXAMPLE],
            )
        )
    return examples


def _names(items: Sequence[int], catalogue: Catalogue) -> list[str]:
    return [catalogue.item_name(int(item)) for item in items]
