"""Codes of pruned columns, renumbered for tables that hold only the rows that were kept.

B examples, W code slots of a batch, V codes of pruned columns among them, M codes of their vocabularies.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headwater.models.tables.layout import SlotLayout


class Remap(nn.Module):
    """The new code of every old one of each pruned column: 1 to the rows kept, 0 for what was pruned.

    Until `write` says which codes are kept, they are the first ones.
    """

    new_M: Tensor
    """int32, one pruned column of a slot after the other; part of a checkpoint."""
    places_V: Tensor
    shifts_V: Tensor

    def __init__(self, layouts: Sequence[SlotLayout]) -> None:
        super().__init__()
        self._parts: dict[tuple[str, str], slice] = {}
        places: list[int] = []
        shifts: list[int] = []
        vectors: list[Tensor] = []
        start = 0
        for layout in layouts:
            for source, table, codes in layout.pruned():
                self._parts[layout.name, table.name] = slice(start, start + source.cardinality)
                places += range(codes.start, codes.stop)
                shifts += [start] * source.length
                new = torch.arange(source.cardinality, dtype=torch.int32)
                vectors.append(new * (new < table.cardinality))
                start += source.cardinality
        self.register_buffer("new_M", torch.cat(vectors))
        for name, values in (("places_V", places), ("shifts_V", shifts)):
            self.register_buffer(name, torch.tensor(values), persistent=False)

    def forward(self, codes_BW: Tensor) -> Tensor:
        """Return the codes with the renumbered ones behind them, in the order of slots, (B, W + V)."""
        old_BV = codes_BW.index_select(1, self.places_V) + self.shifts_V
        new_BV = self.new_M.index_select(0, old_BV.view(-1)).view(old_BV.shape)
        return torch.cat([codes_BW, new_BV], 1)

    def write(self, slot: str, column: str, new: NDArray[np.int32]) -> None:
        """Overwrite the new codes of one column of a slot, by old code."""
        self.new_M[self._parts[slot, column]].copy_(torch.from_numpy(new))

    def read(self) -> dict[str, dict[str, NDArray[np.int32]]]:
        """Return copies of the new codes by slot and column."""
        found: dict[str, dict[str, NDArray[np.int32]]] = {}
        for (slot, column), part in self._parts.items():
            found.setdefault(slot, {})[column] = self.new_M[part].to("cpu", copy=True).numpy()
        return found
