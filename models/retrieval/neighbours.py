"""Base of item-item models: the score of an item is the sum of its weights from the items of a history.

Weights are sparse: each item keeps the largest of those that lead to it. Products of the interactions are
made in blocks of items, so that memory is bounded by the weights that are kept and a block.

U rows of users, N rows of items, B queries, L length of the longest history, C items of a block, W weights,
S distinct items of all histories of a batch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PositiveInt
from scipy import sparse
from torch import Tensor

from headwater.feature_store.schema import FIRST_CODE
from headwater.models.retrieval.interactions import Interactions, Queries, distinct
from headwater.models.retrieval.solve import SolvedConfig, SolvedModel

CSR = Any
"""A `scipy.sparse.csr_array`: scipy says nothing of its types."""
BLOCK = 1 << 22
"""Entries of a block of products or of scores."""


class NeighboursConfig(SolvedConfig):
    """Settings that item-item models share."""

    num_neighbours: PositiveInt = 100
    """Items whose presence in a history adds to the score of an item: those with the largest weights."""


class NeighboursModel(SolvedModel):
    """Weights from item to item, by the item that a history has (CSR).

    An item of a history counts once. A history without known items has scores of zero.
    """

    start_N: Tensor
    """Where the weights of each item begin, and the end of all: (N + 1,)."""
    item_W: Tensor
    """Item whose score each weight adds to."""
    weight_W: Tensor

    def __init__(self, config: NeighboursConfig, interactions: Interactions) -> None:
        super().__init__(config, interactions)
        self.num_neighbours = config.num_neighbours
        self.register_buffer("start_N", torch.zeros(self.num_items + 1, dtype=torch.int64))
        self.register_buffer("item_W", torch.zeros(0, dtype=torch.int32))
        self.register_buffer("weight_W", torch.zeros(0))

    @abstractmethod
    def weights(self, matrix_UN: CSR) -> Iterator[CSR]:
        """Yield the weights that lead to items, block after block in the order of items: CSR (C, N).

        `matrix_UN` has a 1 for each known user and item with an event. The diagonal is empty.
        """

    def solve(self, note: Callable[[str], None]) -> None:  # noqa: ARG002
        """Compute all weights, and keep the largest."""
        matrix_UN = user_items(self.interactions)
        blocks = [largest(each, self.num_neighbours) for each in self.weights(matrix_UN)]
        from_NN = sparse.csr_array(sparse.vstack(blocks, format="csr").T)
        device = self.weight_W.device
        self.start_N = torch.from_numpy(from_NN.indptr.astype(np.int64)).to(device)
        self.item_W = torch.from_numpy(from_NN.indices.astype(np.int32)).to(device)
        self.weight_W = torch.from_numpy(from_NN.data.astype(np.float32)).to(device)

    def scores(self, asked: Queries) -> Tensor:
        """Return the sums of the weights from the items of histories, (B, N), in time of those weights.

        On a GPU they add in no fixed order, and may differ in their last bits from run to run.
        """
        item_BL, counts_BL = distinct(asked.item_BL)
        query_S, item_S = counts_BL.nonzero()[:, 0], item_BL[counts_BL]
        first_S = self.start_N[item_S]
        number_S = self.start_N[item_S + 1] - first_S
        score_BN = self.weight_W.new_zeros(len(asked), self.num_items)
        most = int(number_S.max()) if len(number_S) else 0
        at_once = max(1, BLOCK // max(1, most))
        pieces = (each.split(at_once) for each in (query_S, first_S, number_S))
        for query_P, first_P, number_P in zip(*pieces, strict=True):
            skip_P = first_P - (number_P.cumsum(0) - number_P)
            weight_of = torch.arange(int(number_P.sum()), device=skip_P.device)
            weight_of += skip_P.repeat_interleave(number_P)
            place = query_P.repeat_interleave(number_P) * self.num_items + self.item_W[weight_of]
            score_BN.view(-1).index_add_(0, place, self.weight_W[weight_of])
        return score_BN


def user_items(interactions: Interactions) -> CSR:
    """Return a float32 matrix (U, N) that is 1 where a known user has an event with a known item."""
    user_E, item_E = interactions.users(), interactions.item_E
    known_E = (user_E >= FIRST_CODE) & (item_E >= FIRST_CODE)
    key_E = np.unique(user_E[known_E] * interactions.num_items + item_E[known_E])
    user_E, item_E = np.divmod(key_E, interactions.num_items)
    shape = (interactions.num_users, interactions.num_items)
    return sparse.csr_array((np.ones(len(key_E), np.float32), (user_E, item_E)), shape)


def degrees(matrix_UN: CSR) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the number of items of each user and the number of users of each item, int64."""
    items_U = np.diff(matrix_UN.indptr).astype(np.int64)
    return items_U, np.bincount(matrix_UN.indices, minlength=matrix_UN.shape[1])


def cooccurrences(
    matrix_UN: CSR, weight_U: NDArray[Any]
) -> Iterator[tuple[NDArray[np.int64], CSR]]:
    """Yield for blocks of items the sum of the weights of the users who have each other item too: (C, N).

    Beside it is the item, of all, to whose row each entry belongs. Zeros and the diagonal are no entries.
    """
    weighted_NU = sparse.csr_array(matrix_UN.T)
    weighted_NU.data = weight_U.astype(np.float32)[weighted_NU.indices]
    items_U, _ = degrees(matrix_UN)
    num_items = matrix_UN.shape[1]
    end_N = np.cumsum(np.minimum(matrix_UN.T @ items_U, num_items))
    start = 0
    while start < num_items:
        done = end_N[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(end_N, done + BLOCK, "right")))
        block_CN = weighted_NU[start:stop] @ matrix_UN
        row_W = _rows(block_CN) + start
        block_CN.data[row_W == block_CN.indices] = 0
        block_CN.eliminate_zeros()
        yield _rows(block_CN) + start, block_CN
        start = stop


def largest(block_CN: CSR, number: int) -> CSR:
    """Return the `number` largest entries of each row; of equal ones those of the lower columns."""
    starts_C = block_CN.indptr
    least_C = np.full(len(starts_C) - 1, -np.inf, np.float32)
    for row in np.flatnonzero(np.diff(starts_C) > number):
        of_row = block_CN.data[starts_C[row] : starts_C[row + 1]]
        least_C[row] = np.partition(of_row, -number)[-number]
    row_W = _rows(block_CN)
    kept = np.flatnonzero(block_CN.data >= least_C[row_W])
    kept = kept[np.lexsort((block_CN.indices[kept], -block_CN.data[kept], row_W[kept]))]
    rank = np.arange(len(kept)) - np.searchsorted(row_W[kept], row_W[kept])
    kept = kept[rank < number]
    entries = (block_CN.data[kept], (row_W[kept], block_CN.indices[kept]))
    return sparse.csr_array(entries, block_CN.shape)


def _rows(block_CN: CSR) -> NDArray[np.int64]:
    """Return the row of each entry."""
    return np.repeat(np.arange(block_CN.shape[0]), np.diff(block_CN.indptr))
