"""Layers that several models share.

B examples, D embedding dimension, E coordinates of all features, H width, K heads, C context features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def linear(width_in: int, width_out: int) -> nn.Linear:
    """Return a linear layer with xavier-normal weights and zero bias."""
    layer = nn.Linear(width_in, width_out)
    nn.init.xavier_normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class MLP(nn.Sequential):
    """Linear, [norm], ReLU, [dropout] for each width: (B, width_in) -> (B, H); no output."""

    def __init__(
        self,
        width_in: int,
        hidden: Sequence[int],
        *,
        dropout: float = 0.0,
        batch_norm: bool = False,
        layer_norm: bool = False,
    ) -> None:
        layers: list[nn.Module] = []
        for width in hidden:
            layers.append(linear(width_in, width))
            if batch_norm:
                layers.append(nn.BatchNorm1d(width))
            if layer_norm:
                layers.append(nn.LayerNorm(width))
            layers.append(nn.ReLU(inplace=True))  # no layer before it needs its own output
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
            width_in = width
        super().__init__(*layers)
        self.width_out = width_in


class FeatureGate(nn.Module):
    """Multipliers in (0, 2) for every coordinate of the embeddings, set by context embeddings.

    Without context columns the context is one free vector that starts at zero. Its hidden layer is
    then exactly zero, where ReLU passes no gradient, so that only the output bias ever learns: the
    gate is a static vector. `docs/models.md` says so to users; a test holds it.
    """

    def __init__(self, width: int, dim: int, *, num_context: int, hidden: Sequence[int]) -> None:
        """Gate `width` coordinates by `num_context` features of dimension `dim`."""
        super().__init__()
        self.context_1D = nn.Parameter(torch.zeros(1, dim)) if num_context == 0 else None
        self.mlp = MLP(dim * max(num_context, 1), hidden)
        self.out = linear(self.mlp.width_out, width)

    def forward(self, context_BCD: Tensor | None = None) -> Tensor:
        """Return the gate, (B, E), or (1, E) where it is the same for every example."""
        if self.context_1D is not None:
            context = self.context_1D
        else:
            assert context_BCD is not None, "this gate has context columns"
            context = context_BCD.flatten(1)
        return 2 * torch.sigmoid(self.out(self.mlp(context)))


class BilinearFusion(nn.Module):
    """Logit of two vectors: a linear form of each, and a bilinear form in each of K subspaces.

    z = <w1, x> + b1 + <w2, y> + b2 + sum over heads h of x_h^T W_h y_h, x and y cut into K chunks.
    """

    def __init__(self, width_1: int, width_2: int, num_heads: int) -> None:
        super().__init__()
        assert width_1 % num_heads == 0, f"{num_heads} heads do not divide width {width_1}"
        assert width_2 % num_heads == 0, f"{num_heads} heads do not divide width {width_2}"
        self.num_heads = num_heads
        self.out_1 = linear(width_1, 1)
        self.out_2 = linear(width_2, 1)
        self.weight_KXY = nn.Parameter(
            torch.empty(num_heads, width_1 // num_heads, width_2 // num_heads)
        )
        # Published settings draw it as one column of width_1 * width_2 / K weights.
        nn.init.xavier_normal_(self.weight_KXY.view(-1, 1))

    def forward(self, x_BX: Tensor, y_BY: Tensor) -> Tensor:
        """Return the logit, (B,)."""
        z_B = (self.out_1(x_BX) + self.out_2(y_BY)).squeeze(1)
        if self.num_heads == 1:
            return z_B + ((x_BX @ self.weight_KXY[0]) * y_BY).sum(1)
        x_KBX = x_BX.unflatten(1, (self.num_heads, -1)).transpose(0, 1)
        y_KBY = y_BY.unflatten(1, (self.num_heads, -1)).transpose(0, 1)
        return z_B + (torch.matmul(x_KBX, self.weight_KXY) * y_KBY).sum((0, 2))


class CrossNetV2(nn.Module):
    """Explicit crosses: x_{l+1} = x_0 * (W_l x_l + b_l) + x_l. (B, H) -> (B, H)."""

    def __init__(self, width: int, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([linear(width, width) for _ in range(num_layers)])

    def forward(self, x_BH: Tensor) -> Tensor:
        """Return the crossed input."""
        start_BH = x_BH
        for layer in self.layers:
            x_BH = torch.addcmul(x_BH, start_BH, layer(x_BH))
        return x_BH


def pairwise(emb_BFD: Tensor) -> Tensor:
    """Return the sum of inner products over all pairs of features, (B,), in time linear in F."""
    square_of_sum_BD = emb_BFD.sum(1).square()
    sum_of_squares_BD = emb_BFD.square().sum(1)
    return 0.5 * (square_of_sum_BD - sum_of_squares_BD).sum(1)
