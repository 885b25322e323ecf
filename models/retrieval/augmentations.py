"""Random changes of sequences: crop, mask, reorder (CL4SRec, ICDE 2022), all rows at once.

Draws are of torch's global generator, whose state a checkpoint holds.

B sequences, L length of the longest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NUM_OPERATORS = 3


@dataclass(frozen=True, slots=True)
class Shares:
    """Parts of a sequence that the operators keep, mask and shuffle."""

    crop: float
    mask: float
    reorder: float


@dataclass(frozen=True, slots=True)
class Altered:
    """Sequences as an operator left them: items (B, L), then zeros, and their lengths (B,)."""

    item_BL: Tensor
    length_B: Tensor


def two_views(item_BL: Tensor, length_B: Tensor, shares: Shares) -> tuple[Altered, Altered]:
    """Return two changes of each sequence, by different operators; one of a single item stays as it is."""
    size, device = len(length_B), length_B.device
    first_B = torch.randint(NUM_OPERATORS, (size,), device=device)
    step_B = torch.randint(1, NUM_OPERATORS, (size,), device=device)
    second_B = (first_B + step_B) % NUM_OPERATORS
    return (
        _altered(item_BL, length_B, first_B, shares),
        _altered(item_BL, length_B, second_B, shares),
    )


def crop(item_BL: Tensor, length_B: Tensor, share: float) -> Altered:
    """Return a run of floor(share * length) items, at least one, from a random place."""
    kept_B = (length_B * share).long().clamp(min=1).minimum(length_B)
    place_L = torch.arange(item_BL.shape[1], device=item_BL.device)
    from_BL = _start(length_B - kept_B)[:, None] + place_L
    moved_BL = item_BL.gather(1, from_BL.clamp(max=max(item_BL.shape[1] - 1, 0)))
    return Altered(moved_BL * (place_L < kept_B[:, None]), kept_B)


def mask(item_BL: Tensor, length_B: Tensor, share: float) -> Altered:
    """Return the sequence with zeros at floor(share * length) random places."""
    draw_BL = torch.rand(item_BL.shape, device=item_BL.device)
    place_L = torch.arange(item_BL.shape[1], device=item_BL.device)
    draw_BL = draw_BL.masked_fill(place_L >= length_B[:, None], 2.0)
    rank_BL = draw_BL.argsort(1).argsort(1)
    hidden_B = (length_B * share).long()
    return Altered(item_BL.masked_fill(rank_BL < hidden_B[:, None], 0), length_B)


def reorder(item_BL: Tensor, length_B: Tensor, share: float) -> Altered:
    """Return the sequence with a random run of floor(share * length) items shuffled."""
    size_B1 = (length_B * share).long()[:, None]
    start_B1 = _start(length_B - size_B1[:, 0])[:, None]
    place_L = torch.arange(item_BL.shape[1], device=item_BL.device)
    # In float64 no draw rounds up to the first place behind the run.
    draw_BL = torch.rand(item_BL.shape, dtype=torch.float64, device=item_BL.device)
    is_in_BL = (place_L >= start_B1) & (place_L < start_B1 + size_B1)
    key_BL = torch.where(is_in_BL, start_B1 + draw_BL * size_B1, place_L.double())
    return Altered(item_BL.gather(1, key_BL.argsort(1)), length_B)


def _start(most_B: Tensor) -> Tensor:
    """Return a random number of 0 to `most_B`, each as likely."""
    draw_B = torch.rand(most_B.shape, dtype=torch.float64, device=most_B.device)
    return (draw_B * (most_B + 1)).long().minimum(most_B)


def _altered(item_BL: Tensor, length_B: Tensor, operator_B: Tensor, shares: Shares) -> Altered:
    made = (
        crop(item_BL, length_B, shares.crop),
        mask(item_BL, length_B, shares.mask),
        reorder(item_BL, length_B, shares.reorder),
    )
    item_now_BL, length_now_B = item_BL, length_B
    for number, each in enumerate(made):
        is_chosen_B = (operator_B == number) & (length_B > 1)
        item_now_BL = torch.where(is_chosen_B[:, None], each.item_BL, item_now_BL)
        length_now_B = torch.where(is_chosen_B, each.length_B, length_now_B)
    return Altered(item_now_BL, length_now_B)
