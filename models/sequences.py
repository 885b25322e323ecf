"""Transformer encoder of sequences of items, whose layers run on real tokens only.

B sequences, L the longest, T tokens of all sequences behind one another, D dimension, G sequences of a group
of near length, W its longest, H heads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

_WIDTHS = (4, 8, 16, 32)
"""Bounds of the groups by length; longer sequences are the last group."""


@dataclass(frozen=True, slots=True)
class Group:
    """Sequences of near length, as a padded matrix of places in the tokens."""

    token_GW: Tensor
    """Place of each token; past the end of a sequence any."""
    real_GW: Tensor
    """Whether there is a token."""
    key_GWW: Tensor | None
    """Which tokens (last axis) each one sees; None where these are all up to itself."""
    blind_GW: Tensor | None
    """Tokens that see none: their message is zero."""


@dataclass(frozen=True, slots=True)
class Ragged:
    """Sequences without their padding."""

    item_T: Tensor
    position_T: Tensor
    length_B: Tensor
    groups: tuple[Group, ...]
    order_T: Tensor
    """Place of each token among those of the groups, one after another."""

    def last(self, token_TD: Tensor) -> Tensor:
        """Return the newest token of each sequence, (B, D); zeros for an empty one."""
        if not len(token_TD):
            return token_TD.new_zeros(len(self.length_B), token_TD.shape[1])
        newest_B = (self.length_B.cumsum(0) - 1).clamp(min=0)
        return token_TD[newest_B] * (self.length_B > 0)[:, None]


def ragged(item_BL: Tensor, length_B: Tensor) -> Ragged:
    """Return sequences without padding, whatever it holds, and in groups of near length.

    A zero inside a sequence is a token that none sees, not even itself.
    """
    real_BL = _places(item_BL.shape[1], length_B)
    item_T = item_BL[real_BL]
    start_B = length_B.cumsum(0) - length_B
    position_T = real_BL.nonzero()[:, 1]
    lengths = length_B.cpu()
    edges = torch.tensor(_WIDTHS)
    number_B = torch.bucketize(lengths, edges)
    groups: list[Group] = []
    for number in range(len(_WIDTHS) + 1):
        chosen = ((number_B == number) & (lengths > 0)).nonzero()[:, 0]
        if not len(chosen):
            continue
        width = int(lengths[chosen].max())
        rows_G = chosen.to(item_BL.device)
        token_GW = start_B[rows_G, None] + torch.arange(width, device=item_BL.device)
        token_GW = token_GW.clamp(max=len(item_T) - 1)
        real_GW = _places(width, length_B[rows_G])
        groups.append(Group(token_GW, real_GW, *_keys((item_T[token_GW] > 0) | ~real_GW)))
    places = [group.token_GW[group.real_GW] for group in groups]
    order_T = torch.cat(places).argsort() if places else item_T
    return Ragged(item_T, position_T, length_B, tuple(groups), order_T)


def _places(width: int, length_G: Tensor) -> Tensor:
    return torch.arange(width, device=length_G.device) < length_G[:, None]


def _keys(key_GW: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return which tokens each one sees, and which see none, where not all may be seen."""
    if bool(key_GW.all()):
        return None, None
    width = key_GW.shape[1]
    causal_WW = torch.ones(width, width, dtype=torch.bool, device=key_GW.device).tril()
    seen_GWW = causal_WW & key_GW[:, None, :]
    blind_GW = ~seen_GWW.any(2)
    # A row without keys would be a mean over nothing: it sees itself, and its message is dropped.
    own_WW = torch.eye(width, dtype=torch.bool, device=key_GW.device)
    return seen_GWW | (blind_GW[:, :, None] & own_WW), blind_GW


class SequenceEncoder(nn.Module):
    """Vectors of items and positions through blocks of causal attention (Kang and McAuley, ICDM 2018).

    Norms come after the sums, as in BERT. Weights are normal(0, 0.02), biases 0.
    """

    def __init__(
        self,
        num_items: int,
        dim: int,
        *,
        max_length: int,
        num_layers: int,
        num_heads: int,
        inner_dim: int,
        dropout: float,
        attention_dropout: float,
    ) -> None:
        super().__init__()
        self.item = nn.Embedding(num_items, dim, padding_idx=0)
        self.position = nn.Embedding(max_length, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-12)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, inner_dim, dropout, attention_dropout) for _ in range(num_layers)
        )
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, sequences: Ragged) -> Tensor:
        """Return the vector of each token, (T, D), of itself and what comes before it."""
        token_TD = self.item(sequences.item_T) + self.position(sequences.position_T)
        token_TD = self.dropout(self.norm(token_TD))
        for block in self.blocks:
            token_TD = block(token_TD, sequences)
        return token_TD


class Block(nn.Module):
    """Attention and a perceptron, each with a residual sum and a norm after it."""

    def __init__(
        self, dim: int, num_heads: int, inner_dim: int, dropout: float, attention_dropout: float
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_dropout = attention_dropout
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.message = nn.Linear(dim, dim)
        self.message_norm = nn.LayerNorm(dim, eps=1e-12)
        self.inner = nn.Linear(dim, inner_dim)
        self.outer = nn.Linear(inner_dim, dim)
        self.outer_norm = nn.LayerNorm(dim, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, token_TD: Tensor, sequences: Ragged) -> Tensor:
        """Return the tokens after the block, (T, D)."""
        return self.after(token_TD, self.attend(token_TD, sequences))

    def after(self, token_TD: Tensor, seen_TD: Tensor) -> Tensor:
        """Return the tokens after the block from the means of the values that they see; any leading axes."""
        token_TD = self.message_norm(token_TD + self.dropout(self.message(seen_TD)))
        outer_TD = self.outer(nn.functional.gelu(self.inner(token_TD)))
        return self.outer_norm(token_TD + self.dropout(outer_TD))

    def attend(self, token_TD: Tensor, sequences: Ragged) -> Tensor:
        """Return the mean of the values that each token sees, (T, D)."""
        packed_TE = self.query_key_value(token_TD)
        seen: list[Tensor] = []
        for group in sequences.groups:
            heads = packed_TE[group.token_GW].unflatten(2, (3, self.num_heads, -1))
            query, key, value = heads.permute(2, 0, 3, 1, 4)
            found_GHWD = scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=None if group.key_GWW is None else group.key_GWW[:, None],
                dropout_p=self.attention_dropout if self.training else 0.0,
                is_causal=group.key_GWW is None,
            )
            found_GWD = found_GHWD.transpose(1, 2).flatten(2)
            if group.blind_GW is not None:
                found_GWD = found_GWD.masked_fill(group.blind_GW[:, :, None], 0.0)
            seen.append(found_GWD[group.real_GW])
        return torch.cat(seen)[sequences.order_T] if seen else torch.zeros_like(token_TD)


class PaddedEncoder(nn.Module):
    """The encoder over padded sequences, for the newest tokens alone, as a release has it.

    A token sees none behind itself, so that what stands in the padding does not matter.
    """

    def __init__(self, encoder: SequenceEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, token_BLD: Tensor, length_B: Tensor) -> Tensor:
        """Return the vector of each sequence, (B, D), from those of its items; zeros of an empty one."""
        width = token_BLD.shape[1]
        # Not a slice of the table, which would bind the exporter to the width of its example.
        position_LD = self.encoder.position(torch.arange(width))
        token_BLD = self.encoder.norm(token_BLD + position_LD)
        hidden_LL = torch.ones(width, width, dtype=torch.bool).triu(1)
        for block in self.encoder.blocks:
            assert isinstance(block, Block)
            heads = block.query_key_value(token_BLD).unflatten(2, (3, block.num_heads, -1))
            query, key, value = heads.permute(2, 0, 3, 1, 4)
            score_BHLL = query @ key.transpose(2, 3) / math.sqrt(query.shape[3])
            weight_BHLL = score_BHLL.masked_fill(hidden_LL, -torch.inf).softmax(3)
            seen_BLD = (weight_BHLL @ value).transpose(1, 2).flatten(2)
            token_BLD = block.after(token_BLD, seen_BLD)
        newest_B = (length_B - 1).clamp(min=0)
        place_B1D = newest_B[:, None, None].expand(-1, 1, token_BLD.shape[2])
        newest_BD = token_BLD.gather(1, place_B1D).squeeze(1)
        return newest_BD * (length_B > 0)[:, None]
