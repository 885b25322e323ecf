"""Contrast of two views of a batch, and the margin regulariser of MCLRec.

B sequences, R = 2B rows of both views, D dimension.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Similarity = Literal["dot", "cosine"]


def likeness(a_BD: Tensor, b_BD: Tensor, kind: Similarity, temperature: float) -> Tensor:
    """Return the similarities of all rows of both views, (R, R)."""
    both_RD = torch.cat([a_BD, b_BD])
    if kind == "cosine":
        both_RD = nn.functional.normalize(both_RD)
    return both_RD @ both_RD.T / temperature


def pair_contrast(like_RR: Tensor) -> Tensor:
    """Return the mean over rows of -log softmax of the own other view among all rows but itself."""
    own_RR = torch.eye(len(like_RR), dtype=torch.bool, device=like_RR.device)
    return (like_RR.masked_fill(own_RR, -torch.inf).logsumexp(1) - _partners(like_RR)).mean()


def regulariser(like_RR: Tensor, form: Literal["code", "paper"]) -> Tensor:
    """Return the penalty of gaps between partners and others; 0 for a single sequence.

    Its thresholds are of each row in the code's form, of the whole batch in the paper's.
    """
    size = len(like_RR)
    if size <= 2:
        return like_RR.new_zeros(())
    row_R = torch.arange(size, device=like_RR.device) % (size // 2)
    # Masks, as picking entries out of the matrix takes several times as long as all else here.
    own_RR = row_R == row_R[:, None]
    pos_R = _partners(like_RR)
    most_R = like_RR.masked_fill(own_RR, -torch.inf).amax(1)
    if form == "code":
        low, high = torch.minimum(pos_R, most_R), torch.maximum(pos_R, most_R)[:, None]
    else:
        low = torch.minimum(pos_R.min(), most_R.max())
        high = torch.maximum(pos_R.min(), most_R.max())
    pushed = (high - like_RR).relu().masked_fill(own_RR, 0.0).sum() / (size * (size - 2))
    return (pos_R - low).relu().mean() + pushed


def _partners(like_RR: Tensor) -> Tensor:
    half = len(like_RR) // 2
    return torch.cat([like_RR.diagonal(half), like_RR.diagonal(-half)])
