"""Concave, rising curves through the means of arms.

A rising concave function on the arms a_1 < .. < a_K is a sum of min(a, a_k) / a_k with weights that are not
negative, and a constant. The weights of least squares, each mean counted as often as its arm was seen, come
from coordinate descent that starts where the last fit ended.
"""

from __future__ import annotations

import numpy as np

from headwater.models.budgets.grid import Floats

_SWEEPS = 4
_RIDGE = 1e-6


class ConcaveFit:
    """Fits of R x C curves; its weights, shape (R, C, K), are its state."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.weight_RCK = np.zeros(shape)

    def fit(self, arm_K: Floats, mean_RCK: Floats, count_RCK: Floats) -> Floats:
        """Return the fitted values at the arms, shape (R, C, K)."""
        basis_KK = _basis(arm_K)
        weight_KRC = np.moveaxis(self.weight_RCK, 2, 0).copy()
        gram_KRCK = np.einsum("ki,rci,li->krcl", basis_KK, count_RCK, basis_KK, optimize=True)
        pull_RCK = (count_RCK * mean_RCK) @ basis_KK.T
        rest_RCK = pull_RCK - np.einsum("krcl,krc->rcl", gram_KRCK, weight_KRC)
        for _ in range(_SWEEPS):
            for k in range(len(arm_K)):
                size_RC = gram_KRCK[k, :, :, k] + _RIDGE
                moved = np.maximum(0, weight_KRC[k] + rest_RCK[..., k] / size_RC) - weight_KRC[k]
                weight_KRC[k] += moved
                rest_RCK -= gram_KRCK[k] * moved[..., None]
        self.weight_RCK = np.ascontiguousarray(np.moveaxis(weight_KRC, 0, 2))
        return self.weight_RCK @ basis_KK

    def insert_midpoints(self) -> None:
        """Make room for an arm between each two, without weight."""
        coarse = self.weight_RCK
        self.weight_RCK = np.zeros((*coarse.shape[:2], 2 * coarse.shape[2] - 1))
        self.weight_RCK[..., ::2] = coarse


def _basis(arm_K: Floats) -> Floats:
    """Return the basis at the arms, shape (K, K): row 0 the constant, row k min(a, a_k) / a_k."""
    basis_KK = np.ones((len(arm_K), len(arm_K)))
    basis_KK[1:] = np.minimum(arm_K, arm_K[1:, None]) / arm_K[1:, None]
    return basis_KK
