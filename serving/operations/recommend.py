"""Recommending: retrieve, filter, rank, re-rank; each stage is timed, and none changes versions midway.

    query -> retrieve (filter inside) -> rank by a scorer -> re-rank for diversity -> the k best

A query of which training knew nothing is answered by popularity, within the filter, and says so.

I items, C candidates of a query.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from headwater.serving.admission import Turn
from headwater.serving.errors import Misfit, RequestError
from headwater.serving.kinds.scorer import Scorer
from headwater.serving.operations.rank import join_context
from headwater.serving.operations.rerank import mmr
from headwater.serving.operations.score import score
from headwater.serving.service import Service
from headwater.serving.tensors import Arrays

if TYPE_CHECKING:
    from headwater.serving.kinds.retriever import Found, Retriever

UNKNOWN = "nothing is known of the query: answered by popularity"

Places = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Query:
    """Who asks."""

    asked: Any
    """A user, or the items of a history or a basket."""
    seen: Sequence[Any] | None = None
    """Items that are no answer; None for those of the query, where the release is of that mind."""
    context: Arrays = field(default_factory=dict[str, Any])
    """Tensors of one row for the ranker."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What the answers to all queries of a call should be."""

    k: int = 10
    candidates: int = 200
    """Items that are retrieved where they are ranked or re-ranked afterwards."""
    conditions: Mapping[str, Any] = field(default_factory=dict[str, Any])
    allow: Sequence[Any] | None = None
    block: Sequence[Any] = ()
    ranker: Scorer | None = None
    diversity: float = 0.0
    explain: bool = False


@dataclass(slots=True)
class Item:
    """An item of an answer; what is None was not asked for."""

    item: Any
    score: float
    retrieval_score: float | None = None
    retrieval_rank: int | None = None
    """From 1."""
    rank_score: float | None = None
    nearest: Any = None
    """Item of the query's history that it is most like."""
    likeness: float | None = None
    """Cosine with it."""


@dataclass(slots=True)
class Answer:
    """The items of one query, the best first."""

    items: list[Item]
    fallback: str | None = None
    """Reason why they are not by the model."""


async def recommend(
    service: Service, turn: Turn, retriever: Retriever, queries: Sequence[Query], wish: Wish
) -> list[Answer]:
    """Return an answer a query, in order.

    Raises `RequestError` for a wrong filter, a ranker that lacks a column, or diversity without vectors, and
    what `Turn.take` does.
    """
    if wish.diversity > 0 and retriever.vectors is None:
        raise RequestError(
            f"$.diversity: model {retriever.manifest.name!r} has no vectors of items to compare"
        )
    if wish.ranker is not None:
        _require_columns(retriever, wish.ranker, queries)
    arrays = _arrays(retriever, queries)
    mask = _mask(retriever, wish)
    dropped = [_dropped(retriever, query) for query in queries]
    further = wish.ranker is not None or wish.diversity > 0
    number = max(wish.k, wish.candidates) if further else wish.k
    name = retriever.manifest.name
    turn.check_size(len(queries))
    turn.take(name, len(queries))

    def retrieve() -> tuple[list[Found], Places]:
        return retriever.answer(arrays, number, allowed=mask, dropped=dropped)

    with _timed(service, "retrieve"):
        found, known = await service.batcher.call(retrieve, name, len(queries))
    unknown = int(np.count_nonzero(known == 0))
    if unknown:
        service.metrics.answered_by_popularity(name, unknown)
    answers: list[Answer] = []
    for query, each, is_known in zip(queries, found, known.tolist(), strict=True):
        items = await _answer(service, turn, retriever, query, each, wish)
        answers.append(Answer(items, None if is_known else UNKNOWN))
    return answers


async def _answer(
    service: Service, turn: Turn, retriever: Retriever, query: Query, found: Found, wish: Wish
) -> list[Item]:
    """Return the items of one query from its candidates."""
    place_C, retrieved_C = found
    score_C = retrieved_C
    if wish.ranker is not None and len(place_C):
        with _timed(service, "rank"):
            score_C = await _ranked(service, turn, retriever, wish.ranker, query, place_C)
        order = np.argsort(-score_C, kind="stable")
    else:
        order = np.arange(len(place_C))
    if wish.diversity > 0:
        with _timed(service, "rerank"):
            unit_CD = retriever.unit(place_C[order])
            order = order[mmr(score_C[order], unit_CD, wish.k, wish.diversity)]
    order = order[: wish.k]
    items = [Item(retriever.items.ids[place_C[place]], float(score_C[place])) for place in order]
    if wish.explain:
        history = retriever.own_items(query.asked)
        for item, place in zip(items, order.tolist(), strict=True):
            item.retrieval_rank = place + 1
            item.retrieval_score = float(retrieved_C[place])
            if wish.ranker is not None:
                item.rank_score = item.score
            if retriever.vectors is not None and len(history):
                likeness = retriever.unit(history) @ retriever.unit(place_C[[place]])[0]
                nearest = int(np.argmax(likeness))
                item.nearest = retriever.items.ids[history[nearest]]
                item.likeness = float(likeness[nearest])
    return items


async def _ranked(
    service: Service,
    turn: Turn,
    retriever: Retriever,
    ranker: Scorer,
    query: Query,
    place_C: Places,
) -> npt.NDArray[np.float32]:
    """Return the ranker's scores of candidates, whose columns are those of the items."""
    candidates: Arrays = {}
    for name, column in ranker.signature.inputs.items():
        if name in retriever.items.columns and name not in query.context:
            try:
                candidates |= retriever.items.arrays(
                    name, column.dtype, place_C, is_list=column.is_list
                )
            except Misfit as fault:
                raise fault.at(
                    f"items.arrow of {retriever.manifest.name!r}: column {name!r}"
                ) from None
    arrays = join_context(candidates, query.context, len(place_C), ranker.signature)
    return await score(service, turn, ranker, arrays, len(place_C))


def _require_columns(retriever: Retriever, ranker: Scorer, queries: Sequence[Query]) -> None:
    """Raise `RequestError` for the inputs of a ranker that neither the items nor a query's context have."""
    for number, query in enumerate(queries):
        known = {*retriever.items.columns, *query.context}
        absent = [name for name in ranker.signature.inputs if name not in known]
        if absent:
            raise RequestError(
                f"$.queries[{number}]: ranker {ranker.manifest.name!r} needs {', '.join(map(repr, absent))}: "
                f"the items of {retriever.manifest.name!r} have no such column; give it in `context`, null "
                "where it is missing"
            )


def _arrays(retriever: Retriever, queries: Sequence[Query]) -> Arrays:
    try:
        return retriever.arrays([query.asked for query in queries])
    except RequestError as error:
        raise RequestError(f"$.queries: {error}") from None


def _mask(retriever: Retriever, wish: Wish) -> npt.NDArray[np.bool_] | None:
    """Return the items that may be answered to all queries; None for every one."""
    if not wish.conditions and wish.allow is None and not wish.block:
        return None
    items = retriever.items
    mask_I = items.mask(wish.conditions, "$.filter")
    if wish.allow is not None:
        allowed_I = np.zeros(len(items), np.bool_)
        allowed_I[items.places(wish.allow)] = True
        mask_I &= allowed_I
    mask_I[items.places(wish.block)] = False
    return mask_I


def _dropped(retriever: Retriever, query: Query) -> Places:
    if query.seen is None:
        return retriever.masked(query.asked)
    return np.unique(retriever.items.places(query.seen))


@contextmanager
def _timed(service: Service, stage: str) -> Generator[None]:
    start_s = time.perf_counter()
    yield
    service.metrics.stage_done(stage, time.perf_counter() - start_s)
