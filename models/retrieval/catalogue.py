"""Cross-entropy over a whole catalogue, in blocks of rows.

n rows, N items, D dimension, b rows of a block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from headwater.feature_store.schema import FIRST_CODE

_BLOCK_NUMBERS = 2**23
"""Logits that are kept at a time."""


def catalogue_loss(vector_nD: Tensor, item_ND: Tensor, target_n: Tensor) -> Tensor:
    """Return the sum over rows of -log softmax of the target's score among all known items, a scalar.

    Rows 0 and 1 of items, missing and unknown, take no part. At most 32 MiB of scores are kept at a time in
    float32, or those of one row, and none for the backward pass: the gradients are made in the forward pass.
    """
    return _loss(vector_nD.to(item_ND.dtype), item_ND, target_n)


class _CatalogueLoss(torch.autograd.Function):
    """Keeps its gradients instead of scores."""

    @staticmethod
    def forward(ctx: Any, vector_nD: Tensor, item_ND: Tensor, target_n: Tensor) -> Tensor:
        is_learning = any(ctx.needs_input_grad)
        vector_grad_nD, item_grad_ND = torch.zeros_like(vector_nD), torch.zeros_like(item_ND)
        known_ND, known_grad_ND = item_ND[FIRST_CODE:], item_grad_ND[FIRST_CODE:]
        loss = vector_nD.new_zeros(())
        block = max(1, _BLOCK_NUMBERS // len(item_ND))
        with torch.autocast(vector_nD.device.type, enabled=False):
            for start in range(0, len(vector_nD), block):
                rows = slice(start, start + block)
                share_bN = vector_nD[rows] @ known_ND.T
                own_b1 = target_n[rows, None] - FIRST_CODE
                most_b1 = share_bN.amax(1, keepdim=True)
                loss += (most_b1 - share_bN.gather(1, own_b1)).sum()
                share_bN.sub_(most_b1).exp_()
                sum_b1 = share_bN.sum(1, keepdim=True)
                loss += sum_b1.log().sum()
                if is_learning:
                    share_bN /= sum_b1
                    share_bN.scatter_add_(1, own_b1, -torch.ones_like(sum_b1))
                    vector_grad_nD[rows] = share_bN @ known_ND
                    known_grad_ND.addmm_(share_bN.T, vector_nD[rows])
        ctx.save_for_backward(vector_grad_nD, item_grad_ND)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        vector_grad_nD, item_grad_ND = ctx.saved_tensors
        return vector_grad_nD * grads[0], item_grad_ND * grads[0], None


def _loss(vector_nD: Tensor, item_ND: Tensor, target_n: Tensor) -> Tensor:
    return _CatalogueLoss.apply(vector_nD, item_ND, target_n)
