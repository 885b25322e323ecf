"""EASE (Steck, WWW 2019): the linear model from all other items to one, by its closed form.

With G = X^T X + l2 I and P its inverse, the weight from i to j is -P_ij / P_jj, and none from j to itself.
G is dense: 4 bytes an entry, inverted in its place.

U rows of users, N rows of items, C items of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt
from scipy import sparse
from scipy.linalg import get_lapack_funcs

from headwater.feature_store.errors import JobError, TrainingError
from headwater.models.retrieval.interactions import Interactions
from headwater.models.retrieval.neighbours import (
    BLOCK,
    CSR,
    NeighboursConfig,
    NeighboursModel,
    cooccurrences,
    degrees,
)


class EASEConfig(NeighboursConfig):
    """Settings of EASE."""

    l2: float = Field(default=500.0, gt=0)
    """Weight of the squared weights: the more, the nearer to counts of common users."""
    max_bytes: PositiveInt = 4_000_000_000
    """Memory that the dense matrix of all items may take, 4 bytes an entry."""


class EASE(NeighboursModel):
    """Weights of the ridge regression of each item on all others."""

    config_class = EASEConfig
    config: EASEConfig

    def __init__(self, config: EASEConfig, interactions: Interactions) -> None:
        super().__init__(config, interactions)
        if self.num_bytes > config.max_bytes:
            raise JobError(
                f"model.max_bytes: {self.num_items:,} items take a dense matrix of {self.num_bytes:,} "
                f"bytes, more than {config.max_bytes:,}. Raise it where the memory is there, leave out rare "
                "items by interactions.min_item_count, or choose 'item_knn' or 'rp3beta'."
            )

    @property
    def num_bytes(self) -> int:
        """Bytes of the dense matrix."""
        return 4 * self.num_items**2

    def solve(self, note: Callable[[str], None]) -> None:
        """Compute all weights, and keep the largest; the memory is stated first."""
        note(f"{self.num_items:,} items take a dense matrix of {self.num_bytes / 1e9:.2f} GB")
        super().solve(note)

    def weights(self, matrix_UN: CSR) -> Iterator[CSR]:
        """Yield the weights of the regressions of a block's items, (C, N)."""
        inverse_NN = self._inverse(matrix_UN)
        scale_N = -1 / inverse_NN.diagonal()
        at_once = max(1, BLOCK // self.num_items)
        for start in range(0, self.num_items, at_once):
            stop = min(start + at_once, self.num_items)
            square_CC = np.tril(inverse_NN[start:stop, start:stop], -1)
            parts = (
                inverse_NN[start:stop, :start],
                square_CC + square_CC.T,
                inverse_NN[stop:, start:stop].T,
            )
            yield sparse.csr_array(np.concatenate(parts, 1) * scale_N[start:stop, None])

    def _inverse(self, matrix_UN: CSR) -> NDArray[np.float32]:
        """Return P, of which only the lower triangle and the diagonal are right."""
        gram_NN = np.zeros((self.num_items, self.num_items), np.float32, order="F")
        for item_W, block_CN in cooccurrences(matrix_UN, np.ones(self.num_users)):
            gram_NN[item_W, block_CN.indices] = block_CN.data
        _, users_N = degrees(matrix_UN)
        np.fill_diagonal(gram_NN, users_N + self.config.l2)
        # Column-major and overwritten: LAPACK makes no copy.
        potrf, potri = get_lapack_funcs(("potrf", "potri"), dtype=np.float32)
        factor_NN, failed = potrf(gram_NN, lower=1, clean=0, overwrite_a=1)
        if not failed:
            inverse_NN, failed = potri(factor_NN, lower=1, overwrite_c=1)
            if not failed:
                return inverse_NN
        raise TrainingError(
            f"ease: in float32 the matrix of items is singular with model.l2 = {self.config.l2:g}. Raise it."
        )
