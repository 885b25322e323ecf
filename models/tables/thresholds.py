"""Learned thresholds of a merged table: a row counts while its norm is above the threshold of its column.

As in OptEmbed (Lyu et al., CIKM 2022, arXiv 2208.04482): rows are kept by a step function, whose gradient is
replaced by one of longer reach, so that it moves rows and thresholds alike.

N rows of a merged table, F tables, D dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

Norm = Literal[1, 2]


class RowThresholds(nn.Module):
    """Zeroes the rows of a merged table whose norm is not above the threshold of their column.

    Thresholds start at 0, where every row counts that is not zero.
    """

    column_N: Tensor

    def __init__(self, starts: Sequence[int], norm: Norm, device: torch.device) -> None:
        """Make a threshold for each table; `starts` are their first rows, and the end."""
        super().__init__()
        self.norm: Norm = norm
        sizes = [stop - start for start, stop in pairwise(starts)]
        self.threshold_F = nn.Parameter(torch.zeros(len(sizes), device=device))
        column_N = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        self.register_buffer("column_N", column_N.to(device), persistent=False)

    def forward(self, weight_ND: Tensor) -> Tensor:
        """Return the rows, zero where they do not count."""
        return weight_ND * self.mask(weight_ND).unsqueeze(1)

    def mask(self, weight_ND: Tensor) -> Tensor:
        """Return 1 for a row that counts, else 0, (N,)."""
        norm_N = torch.linalg.vector_norm(weight_ND, ord=self.norm, dim=1)
        return step(norm_N - self.threshold_F.index_select(0, self.column_N))


def step(z: Tensor) -> Tensor:
    """Return 1 where z > 0, else 0, with a gradient of 2 - 4|z| up to |z| = .4, and .4 from there to 1."""
    return _Step.apply(z)  # pyright: ignore[reportReturnType]


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return (z > 0).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        far = z.abs()
        slope = torch.where(far <= 0.4, 2 - 4 * far, torch.where(far <= 1, 0.4, 0.0))
        return grad_outputs[0] * slope
