"""The answers of a retrieval model to queries, over the full catalogue, and which of them are relevant.

Q queries, B queries of a block, N rows of items, K answers of a query, E relevant items, D dimension. Scores
are made block by block, so that memory never grows with queries times items.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headwater.feature_store.errors import TrainingError
from headwater.feature_store.schema import FIRST_CODE, UNKNOWN_CODE
from headwater.models.retrieval.base import ScoreModel, VectorModel
from headwater.models.retrieval.interactions import Interactions, Queries
from headwater.pipelines.teaching.histories import runs

BLOCK_BYTES = 1 << 24
"""Bytes of the scores of a block; one query is a block where its scores take more."""

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Ranked:
    """The answers to queries, in order; only queries with a relevant item have a row."""

    num_items: int
    """Rows of items, with those for missing and unknown."""
    query_Q: Rows
    """Place of each query among all that were asked."""
    item_QK: NDArray[np.int32]
    """Items answered, the best first, then zeros where there are fewer than K."""
    hit_QK: NDArray[np.bool_]
    """Whether the answer is relevant."""
    num_relevant_Q: Rows
    """Relevant items of each query, at least 1; unknown ones count."""
    relevant_E: NDArray[np.int32]
    """The relevant items, query by query, each once and ascending; an unknown one as often as it came."""

    def __len__(self) -> int:
        return len(self.query_Q)

    @property
    def num_unknown(self) -> int:
        """Relevant items that training never saw, which no answer can name."""
        return int(np.count_nonzero(self.relevant_E == UNKNOWN_CODE))

    def where(self, chosen_Q: NDArray[np.bool_]) -> Self:
        """Return the chosen queries alone."""
        return replace(
            self,
            query_Q=self.query_Q[chosen_Q],
            item_QK=self.item_QK[chosen_Q],
            hit_QK=self.hit_QK[chosen_Q],
            num_relevant_Q=self.num_relevant_Q[chosen_Q],
            relevant_E=self.relevant_E[np.repeat(chosen_Q, self.num_relevant_Q)],
        )

    def among(self, items_N: NDArray[np.bool_]) -> Self:
        """Return the same answers where only the chosen items count as relevant, and the queries with any."""
        kept_E = items_N[self.relevant_E]
        query_E = np.repeat(np.arange(len(self)), self.num_relevant_Q)
        number_Q = np.bincount(query_E[kept_E], minlength=len(self))
        narrowed = replace(
            self,
            hit_QK=self.hit_QK & items_N[self.item_QK],
            num_relevant_Q=number_Q,
            relevant_E=self.relevant_E[kept_E],
        )
        return narrowed.where(number_Q > 0)


def rank(
    model: VectorModel | ScoreModel,
    asked: Iterable[Queries],
    *,
    relevant: Interactions,
    seen: Interactions,
    k: int,
    device: torch.device,
) -> Ranked:
    """Return the `k` best items of each query, without those that it has `seen`.

    `relevant` and `seen` are by query, in the order in which they are asked: queries without a relevant item
    are left out of what is returned. A relevant item that is also seen can not be answered, and stays in the
    number of relevant ones. Vectors of items are computed once, and the mode of the model stays as it was.
    TrainingError where a score is not a number.
    """
    has_any_Q = np.diff(relevant.starts_U) > 0
    query_Q = np.flatnonzero(has_any_Q)
    number_Q, relevant_E = _distinct(relevant)
    starts_Q = np.append(0, np.cumsum(number_Q))
    items = np.empty((len(number_Q), min(k, relevant.num_items)), np.int32)
    hits = np.empty(items.shape, np.bool_)
    asked_so_far, done = 0, 0
    was_training = model.training
    model.eval()
    with torch.no_grad():
        model.refresh()
        for score_BN in _scores(model, asked, relevant.num_items, device):
            part = slice(asked_so_far, asked_so_far + len(score_BN))
            asked_so_far = part.stop
            kept_B = has_any_Q[part]
            if not kept_B.all():
                score_BN = score_BN[torch.from_numpy(kept_B).to(device)]
            block = slice(done, done + len(score_BN))
            done = block.stop
            place_S, item_S = _events(seen.starts_U, seen.item_E, query_Q[block])
            score_BN[_on(place_S, device), _on(item_S, device)] = -torch.inf
            item_BK = top_k(score_BN, k)
            place_S, item_S = _events(starts_Q, relevant_E, np.arange(block.start, block.stop))
            relevant_BN = torch.zeros(score_BN.shape, dtype=torch.bool, device=device)
            relevant_BN[_on(place_S, device), _on(item_S, device)] = True
            relevant_BN[:, :FIRST_CODE] = False
            items[block] = item_BK.cpu().numpy()
            hits[block] = relevant_BN.gather(1, item_BK).cpu().numpy()
    model.train(was_training)
    assert asked_so_far == len(has_any_Q), "every query has a row of relevant items"
    return Ranked(relevant.num_items, query_Q, items, hits, number_Q, relevant_E)


def top_k(score_BN: Tensor, k: int) -> Tensor:
    """Return the items of the `k` largest scores, (B, K) int64; of equal scores the lower row comes first.

    Rows 0 and 1 and scores of minus infinity, which a caller gives to what must not be answered, are no
    answers: a query with fewer than `k` has zeros at the end, and K is at most N. Scores are overwritten at
    rows 0 and 1. TrainingError where a score is not a number.
    """
    score_BN[:, :FIRST_CODE] = -torch.inf
    num_items = score_BN.shape[1]
    k = min(k, num_items)
    # One more than asked shows whether a tie crosses the end, where `topk` may have kept any of them.
    best_BK, item_BK = score_BN.topk(min(k + 1, num_items))
    if best_BK[:, :1].isnan().any():  # the largest of all, for `topk`
        raise TrainingError(
            "The model gave scores that are not numbers. Lower train.dense.lr, and train again."
        )
    last_B = best_BK[:, k - 1]
    crosses_B = (best_BK[:, k:] == last_B[:, None]).any(1) & (last_B > -torch.inf)
    best_BK, item_BK = best_BK[:, :k], item_BK[:, :k]
    tied_R = (best_BK[:, 1:] == best_BK[:, :-1]).any(1).nonzero()[:, 0]
    if len(tied_R):
        item_RK, order_RK = item_BK[tied_R].sort(1)
        score_RK, order_RK = (
            best_BK[tied_R].gather(1, order_RK).sort(dim=1, descending=True, stable=True)
        )
        item_BK[tied_R] = item_RK.gather(1, order_RK)
        best_BK[tied_R] = score_RK
    if crosses_B.any():
        place_R = crosses_B.nonzero()[:, 0]
        # Few at once: ties are counted over all items.
        for some_R in place_R.split(max(1, BLOCK_BYTES // (8 * num_items))):
            is_last_RK = best_BK[some_R] == last_B[some_R, None]
            tied_RN = score_BN[some_R] == last_B[some_R, None]
            tied_RN &= tied_RN.cumsum(1, dtype=torch.int32) <= is_last_RK.sum(1, keepdim=True)
            kept_RK = item_BK[some_R]
            kept_RK[is_last_RK] = tied_RN.nonzero()[:, 1]
            item_BK[some_R] = kept_RK
    return item_BK.masked_fill(best_BK == -torch.inf, 0)


def _scores(
    model: VectorModel | ScoreModel, asked: Iterable[Queries], num_items: int, device: torch.device
) -> Iterator[Tensor]:
    """Yield the scores of queries in blocks of bounded bytes, to be overwritten."""
    at_once = max(1, BLOCK_BYTES // (4 * num_items))
    if isinstance(model, VectorModel):
        item_ND = model.items()
        for batch in asked:
            for query_BD in model.queries(batch.to(device)).split(at_once):
                yield (query_BD @ item_ND.T).float()
    else:
        for batch in asked:
            moved = batch.to(device)
            for start in range(0, len(moved), at_once):
                part = slice(start, start + at_once)
                block = Queries(moved.user_B[part], moved.item_BL[part], moved.length_B[part])
                # A model may give a view of what it keeps.
                yield model.scores(block).to(torch.float32, copy=True)


def _distinct(relevant: Interactions) -> tuple[Rows, NDArray[np.int32]]:
    """Return how many relevant items each query that has any has, and the items, as `Ranked` holds them."""
    place_E, item_E = relevant.users(), relevant.item_E
    order_E = np.argsort(place_E * relevant.num_items + item_E, kind="stable")
    place_E, item_E = place_E[order_E], item_E[order_E]
    again_E = np.zeros(len(item_E), np.bool_)
    again_E[1:] = (
        (place_E[1:] == place_E[:-1]) & (item_E[1:] == item_E[:-1]) & (item_E[1:] != UNKNOWN_CODE)
    )
    number_U = np.bincount(place_E[~again_E])
    return number_U[number_U > 0], item_E[~again_E]


def _events(
    starts_U: Rows, item_E: NDArray[np.int32], row_B: Rows
) -> tuple[Rows, NDArray[np.int32]]:
    """Return the events of rows, in their order: the place of each row among `row_B`, and the item."""
    place_S, event_S = runs(starts_U[row_B], starts_U[row_B + 1] - starts_U[row_B])
    return place_S, item_E[event_S]


def _on(rows: NDArray[np.integer], device: torch.device) -> Tensor:
    return torch.from_numpy(rows).to(device, torch.int64)
