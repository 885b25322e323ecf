"""Embedding tables in TorchRec, updated inside the backward pass and sharded over ranks.

A step costs time in the number of distinct codes of the batch, whatever the size of the tables.
`models/placement/plan.py` replaces the collection here, made on the meta device, by its sharded form.

B examples, W code slots of a batch, T tables of all slots, V codes that they read, F tables of a
slot, D dimension.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor, nn

from headwater.feature_store.errors import JobError
from headwater.feature_store.schema import EncodedColumn
from headwater.models._torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    KeyedJaggedTensor,
    KeyedTensor,
    PoolingType,
    ShardedTensor,
)
from headwater.models.tables.layout import LANE, SlotLayout, fused_problems, initial_table
from headwater.models.tables.looked import Looked, Rows

_CACHED_SIZES = 8
_TABLE = 2**32
"""Factor of a table's number, which tells its codes from those of other tables."""


@dataclass(frozen=True, slots=True)
class _BagLayout:
    """Constants of every batch of B examples."""

    gather_V: Tensor
    """Position in the flat codes of every code, by table, then by example; int32."""
    lengths: Tensor
    """Codes of each bag, (T * B), int32."""
    offsets: Tensor
    """First code of each bag and the end, (T * B + 1), int32."""
    length_per_key: list[int]
    offset_per_key: list[int]


class FusedTables(nn.Module):
    """One TorchRec table a column a slot, `<slot>:<column>`, all summed over bags without zeros."""

    def __init__(self, layouts: Sequence[SlotLayout], *, width: int, seed: int) -> None:
        super().__init__()
        self.width = width
        self.seed = seed
        self.layouts = [layout for layout in layouts if layout.tables]
        if problems := fused_problems(layout.dim for layout in self.layouts):
            raise JobError("\n".join(problems))
        # First-order weights, of dimension 1, are padded to what fbgemm takes.
        self.padded = {layout.name: max(layout.dim, LANE) for layout in self.layouts}
        self.keys = [table_name(layout.name, column.name) for layout, column in self._tables()]
        configs = [
            EmbeddingBagConfig(
                name=key,
                feature_names=[key],
                num_embeddings=column.cardinality,
                embedding_dim=self.padded[layout.name],
                pooling=PoolingType.SUM,
            )
            for key, (layout, column) in zip(self.keys, self._tables(), strict=True)
        ]
        self.bags = EmbeddingBagCollection(device=torch.device("meta"), tables=configs)
        self._sizes: dict[tuple[int, torch.device], _BagLayout] = {}
        self._order: dict[str, slice | Tensor] = {}
        self.gives_rows = False
        """Whether a training pass also gives the rows that it read, for their penalty."""
        self.evens_sizes = False
        """Whether ranks must bring equally many examples, as tables cut by rows need."""

    def forward(self, codes_BW: Tensor) -> Looked:
        """Return the embeddings of each slot, lists summed, (B, F, D), and one block of all rows read."""
        jagged = self._jagged(codes_BW)
        gives_rows = self.gives_rows and self.training and torch.is_grad_enabled()
        if gives_rows:
            jagged = self._with_rows(jagged)
        if self.evens_sizes:
            jagged = self._with_empty(jagged)
        pooled = self.bags(jagged)
        values = pooled.values()
        rows = (Rows(values[len(codes_BW) :]),) if gives_rows else ()
        values = values[: len(codes_BW)]
        if not self._order:
            self._order = self._find_order(pooled)
        embeddings: dict[str, Tensor] = {}
        for layout in self.layouts:
            order = self._order[layout.name]
            padded = self.padded[layout.name]
            part = values[:, order] if isinstance(order, slice) else values.index_select(1, order)
            part_BFD = part.unflatten(1, (len(layout.tables), padded))
            embeddings[layout.name] = part_BFD[..., : layout.dim]
        return Looked(embeddings, rows)

    def initialise(self) -> None:
        """Write the first values, by table, into the shards of this rank."""
        for layout, column in self._tables():
            self.write(
                layout.name,
                column.name,
                initial_table(self.seed, layout, column),
            )

    def parameter(self, slot: str, column: str) -> nn.Parameter:
        """Return a table's parameter before sharding, on the meta device."""
        return self.bags.get_parameter(f"embedding_bags.{table_name(slot, column)}.weight")

    def write(self, slot: str, column: str, table_ND: Tensor) -> None:
        """Overwrite one table, (cardinality, D): this rank's shards of it."""
        table_ND = torch.nn.functional.pad(table_ND, (0, self.padded[slot] - table_ND.shape[1]))
        for shard in self._sharded(slot, column).local_shards():
            (row, dim), (rows, dims) = shard.metadata.shard_offsets, shard.metadata.shard_sizes
            shard.tensor.detach().copy_(table_ND[row : row + rows, dim : dim + dims])

    def read(self, slot: str, column: str) -> Tensor | None:
        """Return a copy of one table on the CPU, (cardinality, D), on rank 0; None on others.

        Every rank must call it.
        """
        sharded = self._sharded(slot, column)
        dim = next(layout.dim for layout in self.layouts if layout.name == slot)
        if dist.get_world_size() == 1:
            return sharded.local_shards()[0].tensor.detach()[:, :dim].to("cpu", copy=True)
        out = None
        if dist.get_rank() == 0:
            device = "cuda" if dist.get_backend() == "nccl" else "cpu"
            out = torch.empty(sharded.size(), device=device)
        sharded.gather(0, out)
        return None if out is None else out[:, :dim].to("cpu", copy=True)

    def _sharded(self, slot: str, column: str) -> ShardedTensor:
        key = f"embedding_bags.{table_name(slot, column)}.weight"
        value = self.bags.state_dict()[key]
        assert isinstance(value, ShardedTensor), "fused tables live once the network is placed"
        return value

    def _tables(self) -> Iterator[tuple[SlotLayout, EncodedColumn]]:
        for layout in self.layouts:
            for column in layout.tables:
                yield layout, column

    def _jagged(self, codes_BW: Tensor) -> KeyedJaggedTensor:
        """Return the codes of every table without zeros: a missing value is an empty bag."""
        bags = self._layout_for(len(codes_BW), codes_BW.device)
        codes = codes_BW.reshape(-1).index_select(0, bags.gather_V)
        known = codes != 0
        if known.all():
            return KeyedJaggedTensor(
                self.keys,
                codes,
                lengths=bags.lengths,
                offsets=bags.offsets,
                stride=len(codes_BW),
                length_per_key=bags.length_per_key,
                offset_per_key=bags.offset_per_key,
            )
        kept = torch.zeros(len(codes) + 1, dtype=torch.int32, device=codes.device)
        torch.cumsum(known, 0, dtype=torch.int32, out=kept[1:])
        offsets = kept.index_select(0, bags.offsets)
        return KeyedJaggedTensor(
            self.keys,
            codes[known],
            lengths=offsets.diff(),
            offsets=offsets,
            stride=len(codes_BW),
        )

    def _with_rows(self, jagged: KeyedJaggedTensor) -> KeyedJaggedTensor:
        """Return the bags with more examples behind them: each distinct code, alone in its bag.

        The gradient of a penalty on these rows meets the loss's in the same backward pass, so that
        fbgemm sums both before its one update of a row. Its own weight decay does nothing on CPUs.
        """
        codes = jagged.values()
        lengths_TB = jagged.lengths().view(len(self.keys), -1)
        tables = torch.arange(len(self.keys), device=codes.device)
        table_V = tables.repeat_interleave(lengths_TB.sum(1))
        distinct = torch.unique(table_V * _TABLE + codes)
        table_U = distinct // _TABLE
        count_T = torch.bincount(table_U, minlength=len(self.keys))
        num_more = int(count_T.max())
        more_TU = torch.arange(num_more, device=codes.device) < count_T.unsqueeze(1)
        order = torch.argsort(torch.cat([table_V, table_U]), stable=True)
        return KeyedJaggedTensor(
            self.keys,
            torch.cat([codes, (distinct % _TABLE).to(codes.dtype)]).index_select(0, order),
            lengths=torch.cat([lengths_TB, more_TU.to(lengths_TB.dtype)], 1).view(-1),
            stride=lengths_TB.shape[1] + num_more,
        )

    def _with_empty(self, jagged: KeyedJaggedTensor) -> KeyedJaggedTensor:
        """Return the bags with empty examples behind them, up to the most examples of any rank."""
        lengths_TB = jagged.lengths().view(len(self.keys), -1)
        most = torch.tensor(lengths_TB.shape[1], device=lengths_TB.device)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        num_more = int(most) - lengths_TB.shape[1]
        return KeyedJaggedTensor(
            self.keys,
            jagged.values(),
            lengths=torch.nn.functional.pad(lengths_TB, (0, num_more)).view(-1),
            stride=int(most),
        )

    def _layout_for(self, size: int, device: torch.device) -> _BagLayout:
        found = self._sizes.get((size, device))
        if found is None:
            if len(self._sizes) >= _CACHED_SIZES:
                self._sizes.pop(next(iter(self._sizes)))
            found = self._sizes[size, device] = self._make_layout(size, device)
        return found

    def _make_layout(self, size: int, device: torch.device) -> _BagLayout:
        firsts_B1 = torch.arange(0, size * self.width, self.width, dtype=torch.int32)[:, None]
        gather, lengths = [], []
        for layout in self.layouts:
            for place in layout.places:
                codes = torch.arange(place.start, place.stop, dtype=torch.int32)
                gather.append((firsts_B1 + codes).reshape(-1))
                lengths.append(torch.full((size,), place.stop - place.start, dtype=torch.int32))
        length_per_key = [len(codes) for codes in gather]
        length = torch.cat(lengths)
        offsets = torch.zeros(len(length) + 1, dtype=torch.int32)
        offsets[1:] = length.cumsum(0)
        return _BagLayout(
            gather_V=torch.cat(gather).to(device),
            lengths=length.to(device),
            offsets=offsets.to(device),
            length_per_key=length_per_key,
            offset_per_key=[0, *accumulate(length_per_key)],
        )

    def _find_order(self, pooled: KeyedTensor) -> dict[str, slice | Tensor]:
        """Return where each slot's embeddings lie in the output, whose order sharding decides."""
        ends = list(accumulate(pooled.length_per_key()))
        starts = dict(zip(pooled.keys(), [0, *ends], strict=False))
        order: dict[str, slice | Tensor] = {}
        for layout in self.layouts:
            padded = self.padded[layout.name]
            firsts = [starts[table_name(layout.name, column.name)] for column in layout.tables]
            if firsts == list(range(firsts[0], firsts[0] + padded * len(firsts), padded)):
                order[layout.name] = slice(firsts[0], firsts[-1] + padded)
            else:
                dims = [first + i for first in firsts for i in range(padded)]
                order[layout.name] = torch.tensor(dims, device=pooled.values().device)
        return order


def table_name(slot: str, column: str) -> str:
    """Return the name of a table; a module's name cannot hold a dot, which a column's may."""
    return f"{slot}:{column.replace('%', '%25').replace('.', '%2E')}"
