"""The index of a retriever: none for a small catalogue, else one of cells, tuned on the real vectors.

I items, D dimension, Q queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from headwater.pipelines.console import note

EXACT_ITEMS = 200_000
"""Up to so many items every vector is compared: 2.4 ms for 100,000 of 64 numbers."""
K = 100
LEAST_RECALL = 0.95
_TRAINED_ITEMS = 64
"""Items a cell that the centres are trained on."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """An index of cells, and what it finds."""

    nprobe: int
    """Cells that a query looks into: the fewest powers of two with the recall."""
    recall: float
    """Share of the 100 best items of the queries that it finds."""


def write_index(
    path: Path,
    vector_ID: NDArray[np.float32],
    query_QD: NDArray[np.float32],
    *,
    exact_items: int = EXACT_ITEMS,
) -> Tuned | None:
    """Write an IVF-Flat index of the vectors by inner product; nothing, and None, for at most `exact_items`.

    It is tuned on the queries to a recall of .95 at 100.
    """
    num_items, dim = vector_ID.shape
    if num_items <= exact_items:
        return None
    cells = 1 << round(np.log2(4 * np.sqrt(num_items)))
    index = faiss.index_factory(dim, f"IVF{cells},Flat", faiss.METRIC_INNER_PRODUCT)
    # Centres of length 1 would put the long vectors, which most queries find, into few cells.
    chosen = np.random.default_rng(0).permutation(num_items)[: cells * _TRAINED_ITEMS]
    index.train(vector_ID[np.sort(chosen)])
    index.add(vector_ID)
    exact = faiss.IndexFlatIP(dim)
    exact.add(vector_ID)
    _, best_QK = exact.search(query_QD, K)
    tuned = _tuned(index, query_QD, best_QK, cells)
    note(
        f"index    {cells:,} cells, {tuned.nprobe} of them a query: recall@{K} {tuned.recall:.3f} over "
        f"{len(query_QD):,} queries"
    )
    faiss.write_index(index, str(path))
    return tuned


def _tuned(index: Any, query_QD: NDArray[np.float32], best_QK: NDArray[Any], cells: int) -> Tuned:
    # faiss gives its classes keywords when it is imported, of which type checkers do not know.
    make: Any = faiss.SearchParametersIVF
    nprobe, recall = 1, 0.0
    while True:
        parameters = make(nprobe=nprobe)
        _, found_QK = index.search(query_QD, K, params=parameters)
        pairs = zip(found_QK, best_QK, strict=True)
        recall = float(np.mean([len(np.intersect1d(*pair)) / len(pair[1]) for pair in pairs]))
        if recall >= LEAST_RECALL or nprobe >= cells:
            return Tuned(nprobe, recall)
        nprobe *= 2
