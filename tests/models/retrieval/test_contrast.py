"""The contrast of views: identities, blocks and gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from headwater.models.retrieval.contrast import contrast


def views(size: int = 7, dim: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(2, size, dim, generator=generator, dtype=torch.float64)
    return both[0], both[1]


def plain(anchor_nD: Tensor, other_nD: Tensor, temperature: float) -> Tensor:
    """The sum by its formula, with all cosines at once."""
    normalize = nn.functional.normalize
    logit_nn = normalize(anchor_nD) @ normalize(other_nD).T / temperature
    return -torch.log_softmax(logit_nn, 1).diagonal().sum()


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_equal_views_of_orthogonal_things_give_the_closed_form(temperature: float) -> None:
    eye_nn = torch.eye(6, dtype=torch.float64)
    found = contrast(eye_nn, eye_nn, temperature=temperature, block=4) / 6
    expected = -1 / temperature + math.log(math.exp(1 / temperature) + 5)
    assert found.item() == pytest.approx(expected)


@pytest.mark.parametrize("block", [1, 3, 7, 100])
def test_any_block_gives_the_loss_and_gradients_of_the_formula(block: int) -> None:
    found, expected = (tuple(each.clone().requires_grad_() for each in views()) for _ in range(2))
    loss = contrast(found[0], found[1], temperature=0.2, block=block)
    whole = plain(expected[0], expected[1], 0.2)
    torch.testing.assert_close(loss, whole)
    (3 * loss).backward()
    (3 * whole).backward()
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_gradients_equal_finite_differences() -> None:
    inputs = tuple(each.clone().requires_grad_() for each in views(5, 3))
    assert torch.autograd.gradcheck(
        lambda anchor, other: contrast(anchor, other, temperature=0.5, block=2), inputs
    )


def test_a_positive_factor_of_any_row_changes_nothing() -> None:
    anchor_nD, other_nD = views()
    scale_n1 = torch.linspace(0.1, 30, 7, dtype=torch.float64).unsqueeze(1)
    expected = contrast(anchor_nD, other_nD, temperature=0.5, block=3)
    for scaled in ((anchor_nD * scale_n1, other_nD), (anchor_nD, other_nD * scale_n1)):
        torch.testing.assert_close(contrast(*scaled, temperature=0.5, block=3), expected)


def test_it_has_one_direction() -> None:
    anchor_nD, other_nD = views()
    forth = contrast(anchor_nD, other_nD, temperature=0.2, block=3)
    back = contrast(other_nD, anchor_nD, temperature=0.2, block=3)
    assert abs(forth - back) > 1e-3


def test_small_temperatures_stay_finite() -> None:
    anchor_nD, other_nD = (each.float() for each in views())
    found = contrast(anchor_nD, -anchor_nD, temperature=1e-3, block=3)
    torch.testing.assert_close(found, plain(anchor_nD, -anchor_nD, 1e-3))
    assert torch.isfinite(contrast(anchor_nD, other_nD, temperature=1e-3, block=3))


def test_no_more_cosines_than_a_block_has_are_kept() -> None:
    sizes: list[int] = []
    anchor_nD, other_nD = (each.requires_grad_() for each in views(200, 4))

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                sizes.append(out.numel())
            return out

    with Watch():
        contrast(anchor_nD, other_nD, temperature=1.0, block=10).backward()
    assert max(sizes) == 10 * 200
