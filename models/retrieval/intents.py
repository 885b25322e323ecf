"""Soft prototypes of one side: each vector becomes the mixture of prototypes that it chooses.

n vectors, D dimension, K prototypes (intents), b rows of a block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_BLOCK = 4096
"""Rows whose choices are made at a time: with 128 intents they stay in the cache of a core."""


def mix_intents(vector_nD: Tensor, intent_DK: Tensor) -> Tensor:
    """Return softmax(X C) C^T for vectors X and prototypes C, (n, D), without keeping the choices, (n, K)."""
    return _MixIntents.apply(vector_nD.to(intent_DK.dtype), intent_DK)


class _MixIntents(torch.autograd.Function):
    """The mixture, in blocks of rows; the backward pass makes the choices again."""

    @staticmethod
    def forward(ctx: Any, vector_nD: Tensor, intent_DK: Tensor) -> Tensor:
        ctx.save_for_backward(vector_nD, intent_DK)
        mixed_nD = torch.empty_like(vector_nD)
        with torch.autocast(vector_nD.device.type, enabled=False):
            for rows in _blocks(vector_nD):
                choice_bK = torch.softmax(vector_nD[rows] @ intent_DK, 1)
                torch.mm(choice_bK, intent_DK.T, out=mixed_nD[rows])
        return mixed_nD

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        vector_nD, intent_DK = ctx.saved_tensors
        vector_grad_nD, intent_grad_DK = torch.empty_like(vector_nD), torch.zeros_like(intent_DK)
        for rows in _blocks(vector_nD):
            vector_bD, mixed_grad_bD = vector_nD[rows], grads[0][rows]
            choice_bK = torch.softmax(vector_bD @ intent_DK, 1)
            intent_grad_DK.addmm_(mixed_grad_bD.T, choice_bK)
            logit_grad_bK = torch.ops.aten._softmax_backward_data(
                mixed_grad_bD @ intent_DK, choice_bK, 1, choice_bK.dtype
            )
            intent_grad_DK.addmm_(vector_bD.T, logit_grad_bK)
            torch.mm(logit_grad_bK, intent_DK.T, out=vector_grad_nD[rows])
        return vector_grad_nD, intent_grad_DK


def _blocks(vector_nD: Tensor) -> list[slice]:
    return [slice(start, start + _BLOCK) for start in range(0, len(vector_nD), _BLOCK)]
