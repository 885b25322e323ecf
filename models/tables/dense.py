"""Embedding tables as plain parameters: one merged table a slot, learned by any torch optimiser.

Exact and simple; a step costs time in the number of rows, because the optimiser visits all of them.

B examples, W code slots of a batch, V codes that a slot reads, F tables of a slot, D dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headwater.models.tables.layout import SlotLayout, initial_table
from headwater.models.tables.looked import Looked
from headwater.models.tables.thresholds import Norm, RowThresholds

_INT32_ROWS = 2**31


class DenseTables(nn.Module):
    """The tables of every slot that has code columns."""

    def __init__(self, layouts: Sequence[SlotLayout], *, width: int, seed: int) -> None:
        super().__init__()
        self.slots = nn.ModuleDict(
            {
                layout.name: MergedTable(layout, width=width, seed=seed)
                for layout in layouts
                if layout.tables
            }
        )

    def forward(self, codes_BW: Tensor) -> Looked:
        """Return the embeddings of each slot, lists summed: (B, F, D)."""
        return Looked({name: table(codes_BW) for name, table in self.merged().items()})

    def merged(self) -> dict[str, MergedTable]:
        """Return the merged table of each slot."""
        return dict(self.slots.items())  # pyright: ignore[reportReturnType]

    def weights(self) -> dict[tuple[str, str], Tensor]:
        """Return a live view of each table, (cardinality, D), by slot and column."""
        return {
            (slot, column): view
            for slot, table in self.merged().items()
            for column, view in table.views().items()
        }

    def write(self, slot: str, column: str, table_ND: Tensor) -> None:
        """Overwrite one table, (cardinality, D)."""
        self.weights()[slot, column].copy_(table_ND)

    def read(self, slot: str, column: str) -> Tensor:
        """Return a copy of one table on the CPU, (cardinality, D)."""
        return self.weights()[slot, column].to("cpu", copy=True)


class MergedTable(nn.Module):
    """The tables of one slot, stacked into one parameter.

    Code 0 of every table looks up row 0 of the first one, the only row that padding_idx names. So
    no table's row 0 ever gets a value or a gradient, and no mask over (B, F, D) is needed.
    """

    places_V: Tensor
    shifts_V: Tensor
    bags_F: Tensor

    def __init__(self, layout: SlotLayout, *, width: int, seed: int) -> None:
        super().__init__()
        self.dim = layout.dim
        self.num_tables = len(layout.tables)
        self.names = [column.name for column in layout.tables]
        self.starts = [0, *accumulate(column.cardinality for column in layout.tables)]
        self.weight_ND = nn.Parameter(torch.empty(self.starts[-1], layout.dim))
        if not self.weight_ND.is_meta:
            for column, view in zip(layout.tables, self.views().values(), strict=True):
                view.copy_(initial_table(seed, layout, column))

        places = [i for place in layout.places for i in range(place.start, place.stop)]
        self.selects = places != list(range(width))
        lengths = [column.length for column in layout.tables]
        shifts = [
            start
            for start, length in zip(self.starts, lengths, strict=False)
            for _ in range(length)
        ]
        dtype = torch.int32 if self.starts[-1] < _INT32_ROWS else torch.int64
        self._constant("places_V", places, torch.int64)
        self._constant("shifts_V", shifts, dtype)
        self.pools = layout.has_lists
        self._constant("bags_F", [0, *accumulate(lengths[:-1])], dtype)
        self.thresholds: RowThresholds | None = None
        """Thresholds of rows, once they are added."""

    def forward(self, codes_BW: Tensor) -> Tensor:
        """Return the embeddings, lists summed: (B, F, D)."""
        rows_BV = self.rows(codes_BW)
        weight_ND = self.weight_ND if self.thresholds is None else self.thresholds(self.weight_ND)
        if self.pools:
            return self.pool(rows_BV, weight_ND)
        return F.embedding(rows_BV, weight_ND, padding_idx=0)

    def rows(self, codes_BW: Tensor) -> Tensor:
        """Return the row of every code that the slot reads, (B, V); missing ones are row 0."""
        codes_BV = codes_BW.index_select(1, self.places_V) if self.selects else codes_BW
        return (codes_BV + self.shifts_V) * (codes_BV != 0)

    def pool(self, rows_BV: Tensor, weight_ND: Tensor) -> Tensor:
        """Return the rows of `weight_ND` summed over each list, (B, F, D); row 0 is left out."""
        size, width = rows_BV.shape
        firsts_B1 = torch.arange(
            0, size * width, width, device=rows_BV.device, dtype=rows_BV.dtype
        ).unsqueeze(1)
        pooled = F.embedding_bag(
            rows_BV.view(-1),
            weight_ND,
            (firsts_B1 + self.bags_F).view(-1),
            mode="sum",
            padding_idx=0,
        )
        return pooled.view(size, self.num_tables, self.dim)

    def add_thresholds(self, norm: Norm) -> RowThresholds:
        """Let each column have a learned threshold, below which its rows are zero, and return them."""
        self.thresholds = RowThresholds(self.starts, norm, self.weight_ND.device)
        return self.thresholds

    @torch.no_grad()
    def prune(self) -> dict[str, Tensor]:
        """Zero for good the rows that thresholds leave out, and return by column which codes are kept."""
        assert self.thresholds is not None, "rows are pruned by thresholds"
        mask_N = self.thresholds.mask(self.weight_ND)
        self.weight_ND.mul_(mask_N.unsqueeze(1))
        self.thresholds = None
        kept = self._by_column(mask_N.bool())
        for kept_N in kept.values():
            kept_N[0] = False  # a negative threshold would keep even the row for missing values
        return kept

    def views(self) -> dict[str, Tensor]:
        """Return a live view of each table, (cardinality, D), by column."""
        return self._by_column(self.weight_ND.detach())

    def _by_column(self, rows_N: Tensor) -> dict[str, Tensor]:
        return {
            name: rows_N[start:stop]
            for name, start, stop in zip(self.names, self.starts, self.starts[1:], strict=False)
        }

    def _constant(self, name: str, values: list[int], dtype: torch.dtype) -> None:
        self.register_buffer(name, torch.tensor(values, dtype=dtype), persistent=False)
