"""Shared layers against their formulas."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from headwater.models.layers import MLP, BilinearFusion, CrossNetV2, FeatureGate, linear, pairwise


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def linear_part(fusion: BilinearFusion, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (fusion.out_1(x) + fusion.out_2(y)).squeeze(1)


def test_one_head_is_the_full_bilinear_form() -> None:
    fusion = BilinearFusion(4, 6, 1)
    x, y = torch.randn(5, 4), torch.randn(5, 6)
    bilinear_B = torch.stack([a @ fusion.weight_KXY[0] @ b for a, b in zip(x, y, strict=True)])
    torch.testing.assert_close(fusion(x, y), linear_part(fusion, x, y) + bilinear_B)


def test_as_many_heads_as_widths_is_a_weighted_elementwise_product() -> None:
    fusion = BilinearFusion(6, 6, 6)
    x, y = torch.randn(5, 6), torch.randn(5, 6)
    product_B = (x * y) @ fusion.weight_KXY.view(6)
    torch.testing.assert_close(fusion(x, y), linear_part(fusion, x, y) + product_B)


def test_heads_are_the_diagonal_blocks_of_one_matrix() -> None:
    many, one = BilinearFusion(6, 9, 3), BilinearFusion(6, 9, 1)
    one.load_state_dict(
        {
            **many.state_dict(),
            "weight_KXY": torch.block_diag(*many.weight_KXY.detach()).unsqueeze(0),
        }
    )
    x, y = torch.randn(5, 6), torch.randn(5, 9)
    torch.testing.assert_close(many(x, y), one(x, y))


def test_the_bilinear_part_has_width_times_width_over_heads_weights() -> None:
    assert BilinearFusion(400, 1000, 200).weight_KXY.numel() == 400 * 1000 // 200


def test_the_bilinear_weight_starts_as_a_xavier_column() -> None:
    weight = BilinearFusion(200, 300, 2).weight_KXY
    assert weight.std().item() == pytest.approx((2 / (1 + 200 * 300 / 2)) ** 0.5, rel=0.02)


@pytest.mark.parametrize(("width_1", "width_2"), [(5, 6), (6, 5)])
def test_heads_must_divide_both_widths(width_1: int, width_2: int) -> None:
    with pytest.raises(AssertionError, match="3 heads do not divide width 5"):
        BilinearFusion(width_1, width_2, 3)


@pytest.mark.parametrize("num_heads", [1, 2])
def test_the_gradient_of_the_fusion_is_its_finite_difference(num_heads: int) -> None:
    fusion = BilinearFusion(4, 6, num_heads).double()
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    y = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    weight = fusion.weight_KXY.detach().requires_grad_()

    def run(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(fusion, {"weight_KXY": weight}, (x, y))

    assert torch.autograd.gradcheck(run, (x, y, weight))


def test_pairwise_is_the_sum_over_pairs() -> None:
    emb_BFD = torch.randn(3, 5, 4)
    pairs = itertools.combinations(range(5), 2)
    expected_B = sum((emb_BFD[:, i] * emb_BFD[:, j]).sum(1) for i, j in pairs)
    torch.testing.assert_close(pairwise(emb_BFD), expected_B)


def test_a_cross_layer_multiplies_with_the_first_input() -> None:
    cross = CrossNetV2(4, 2)
    x0 = torch.randn(3, 4)
    first, second = (layer for layer in cross.layers)
    x1 = x0 * first(x0) + x0
    torch.testing.assert_close(cross(x0), x0 * second(x1) + x1)


def test_mlp_puts_batch_norm_before_relu_and_dropout_behind_it() -> None:
    mlp = MLP(3, (4, 5), dropout=0.5, batch_norm=True)
    kinds = [type(layer) for layer in mlp]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout] * 2
    assert mlp.width_out == 5
    assert [type(layer) for layer in MLP(3, (4,))] == [nn.Linear, nn.ReLU]


def test_linear_layers_start_xavier_normal_with_zero_bias() -> None:
    layer = linear(300, 500)
    assert layer.weight.std().item() == pytest.approx((2 / 800) ** 0.5, rel=0.02)
    assert not layer.bias.any()


def test_a_gate_lies_between_zero_and_two_and_follows_its_context() -> None:
    gate = FeatureGate(12, 4, num_context=2, hidden=(8,))
    values_BE = gate(10 * torch.randn(5, 2, 4))
    assert values_BE.shape == (5, 12)
    assert ((values_BE > 0) & (values_BE < 2)).all()
    assert not torch.allclose(values_BE[0], values_BE[1])


def test_a_gate_without_context_starts_at_exactly_one() -> None:
    gate = FeatureGate(12, 4, num_context=0, hidden=(8,))
    torch.testing.assert_close(gate(), torch.ones(1, 12), atol=0, rtol=0)
