"""From a batch to the tensors that a model asked for; the only place that knows column names.

B examples, W code slots of a batch, F features of a slot, T of them with a table, K of them dense,
D dimension.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from headwater.feature_store.schema import Schema
from headwater.models.base import Slot
from headwater.models.batch import Batch
from headwater.models.seeds import derive_seed
from headwater.models.tables.dense import DenseTables
from headwater.models.tables.layout import SlotLayout, lay_out, mean_members
from headwater.models.tables.lazy import LazyTables
from headwater.models.tables.looked import Looked
from headwater.models.tables.remap import Remap

if TYPE_CHECKING:
    from headwater.models.tables.fused import FusedTables

Mode = Literal["fused", "lazy", "dense"]


class Embeddings(nn.Module):
    """The embeddings of every slot: tables for codes, one learned vector for each dense column.

    A list is one feature: the sum, or the mean over codes that are not padding. Code 0 gives
    zero and learns nothing, and so does a code whose row was pruned, though a mean counts it.
    A dense column gives its value times its vector: zero gives zero.

    `dense` and `lazy` hold one plain table a slot; `fused` needs `models.placement.place` before its
    first use. All start from the same values for the same seed.
    """

    def __init__(
        self,
        schema: Schema,
        slots: Mapping[str, Slot],
        mode: Mode,
        seed: int = 0,
        declared: Collection[str] | None = None,
    ) -> None:
        super().__init__()
        self.mode: Mode = mode
        self.layouts = lay_out(schema, slots, declared)
        is_pruned = any(True for layout in self.layouts for _ in layout.pruned())
        self.remap = Remap(self.layouts) if is_pruned else None
        width = schema.width if self.remap is None else schema.width + len(self.remap.places_V)
        self.store: DenseTables | FusedTables | None = None
        if any(layout.tables for layout in self.layouts):
            if mode == "fused":
                from headwater.models.tables.fused import FusedTables  # TorchRec takes seconds

                self.store = FusedTables(self.layouts, width=width, seed=seed)
            else:
                tables = LazyTables if mode == "lazy" else DenseTables
                self.store = tables(self.layouts, width=width, seed=seed)
        self.numeric = nn.ParameterDict()
        for layout in self.layouts:
            if layout.dense:
                self.numeric[layout.name] = _first_vectors(seed, layout)
            places = torch.tensor(layout.dense_places, dtype=torch.int64)
            self.register_buffer(f"dense_{layout.name}", places, persistent=False)
            members_WF = mean_members(layout, schema.width)
            self.register_buffer(f"means_{layout.name}", members_WF, persistent=False)

    def forward(self, batch: Batch) -> Looked:
        """Return (B, F, D) for each slot, and the rows that were read."""
        codes_BW = batch.codes_BW
        looked = Looked({})
        if self.store is not None:
            looked = self.store(codes_BW if self.remap is None else self.remap(codes_BW))
        pooled = looked.embeddings
        known_BW: Tensor | None = None
        embeddings: dict[str, Tensor] = {}
        for layout in self.layouts:
            table_BTD = pooled.get(layout.name)
            members_WT = getattr(self, f"means_{layout.name}")
            if table_BTD is not None and members_WT is not None:
                if known_BW is None:
                    known_BW = (codes_BW != 0).to(members_WT.dtype)
                counts_BT = (known_BW @ members_WT).clamp_(min=1)
                table_BTD = table_BTD / counts_BT.unsqueeze(2)
            if not layout.dense:
                assert table_BTD is not None
                embeddings[layout.name] = table_BTD
                continue
            values_BK = batch.dense_BD.index_select(1, getattr(self, f"dense_{layout.name}"))
            dense_BKD = values_BK.unsqueeze(2) * self.numeric[layout.name]
            if table_BTD is None:
                embeddings[layout.name] = dense_BKD
                continue
            parts = [
                (dense_BKD if is_dense else table_BTD)[:, start:stop]
                for is_dense, start, stop in layout.runs
            ]
            embeddings[layout.name] = torch.cat(parts, 1)
        return Looked(embeddings, looked.rows)

    def table_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that hold tables; fused ones change once they are placed."""
        return [] if self.store is None else list(self.store.parameters())

    def tables(self) -> dict[str, dict[str, np.ndarray]]:
        """Return copies of all tables by slot and column: float32 (cardinality, D).

        Every rank must call it; rank 0 gets the whole tables, others empty inner dicts.
        """
        found: dict[str, dict[str, np.ndarray]] = {layout.name: {} for layout in self.layouts}
        for layout in self.layouts:
            for column in layout.tables:
                assert self.store is not None
                table_ND = self.store.read(layout.name, column.name)
                if table_ND is not None:
                    found[layout.name][column.name] = table_ND.numpy()
        return found

    def numeric_weights(self) -> dict[str, dict[str, np.ndarray]]:
        """Return copies of the vectors of dense columns by slot and column: float32 (D,)."""
        return {
            layout.name: {
                column.name: self.numeric[layout.name][i].detach().to("cpu", copy=True).numpy()
                for i, column in enumerate(layout.dense)
            }
            for layout in self.layouts
        }

    def remaps(self) -> dict[str, dict[str, np.ndarray]]:
        """Return the row of every code of pruned columns, by slot and column: int32 (cardinality,)."""
        return {} if self.remap is None else self.remap.read()

    def load(
        self,
        tables: Mapping[str, Mapping[str, np.ndarray]],
        numeric: Mapping[str, Mapping[str, np.ndarray]],
    ) -> None:
        """Overwrite all weights with those of `tables` and `numeric_weights`, of any mode.

        On more ranks each needs the whole tables, and keeps its shards.
        """
        with torch.no_grad():
            for layout in self.layouts:
                for column in layout.tables:
                    assert self.store is not None
                    table_ND = torch.from_numpy(tables[layout.name][column.name])
                    self.store.write(layout.name, column.name, table_ND)
                for i, column in enumerate(layout.dense):
                    vector_D = torch.from_numpy(numeric[layout.name][column.name])
                    self.numeric[layout.name][i].copy_(vector_D)


def _first_vectors(seed: int, layout: SlotLayout) -> nn.Parameter:
    """Return (K, D): xavier-normal, as of a linear map from 1 to D for each column."""
    vectors_KD = torch.empty(len(layout.dense), layout.dim)
    if not vectors_KD.is_meta:
        generator = torch.Generator().manual_seed(derive_seed(seed, layout.name))
        vectors_KD.normal_(0, math.sqrt(2 / (1 + layout.dim)), generator=generator)
    return nn.Parameter(vectors_KD)
