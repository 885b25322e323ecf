"""Contrast of two views of the same things (InfoNCE), in blocks of rows.

n things, D dimension, b rows of a block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def contrast(anchor_nD: Tensor, other_nD: Tensor, *, temperature: float, block: int) -> Tensor:
    """Return the sum over things of -log softmax of the cosine with its own other view among all others'.

    One direction: an anchor chooses among `other_nD`, its own included. Cosines are divided by `temperature`.
    No more than `block` * n of them are kept at a time, and none for the backward pass: the gradients of
    both views are made in the forward pass, by two products more.
    """
    unit_nD = nn.functional.normalize(anchor_nD)
    return _contrast(unit_nD, nn.functional.normalize(other_nD), temperature, block)


class _Contrast(torch.autograd.Function):
    """The loss of unit vectors; keeps its gradients instead of cosines."""

    @staticmethod
    def forward(
        ctx: Any, unit_nD: Tensor, other_nD: Tensor, temperature: float, block: int
    ) -> Tensor:
        is_learning = any(ctx.needs_input_grad)
        anchor_grad_nD, other_grad_nD = torch.zeros_like(unit_nD), torch.zeros_like(other_nD)
        loss = unit_nD.new_zeros(())
        with torch.autocast(unit_nD.device.type, enabled=False):
            for start in range(0, len(unit_nD), block):
                rows = slice(start, start + block)
                anchor_bD = unit_nD[rows] / temperature
                logit_bn = anchor_bD @ other_nD.T
                own_b = logit_bn.diagonal(start).clone()
                most_b1 = logit_bn.amax(1, keepdim=True)
                share_bn = logit_bn.sub_(most_b1).exp_()
                sum_b1 = share_bn.sum(1, keepdim=True)
                loss += (sum_b1.log() + most_b1).sum() - own_b.sum()
                if is_learning:
                    share_bn /= sum_b1
                    share_bn.diagonal(start).sub_(1)
                    anchor_grad_nD[rows] = share_bn @ other_nD / temperature
                    other_grad_nD.addmm_(share_bn.T, anchor_bD)
        ctx.save_for_backward(anchor_grad_nD, other_grad_nD)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        anchor_grad_nD, other_grad_nD = ctx.saved_tensors
        return anchor_grad_nD * grads[0], other_grad_nD * grads[0], None, None


def _contrast(unit_nD: Tensor, other_nD: Tensor, temperature: float, block: int) -> Tensor:
    return _Contrast.apply(unit_nD, other_nD.to(unit_nD.dtype), temperature, block)
