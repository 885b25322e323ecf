"""Layout of the columns of a slot in a batch, worked out once from the schema.

B examples, W code slots of a batch, F features of a slot.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from msgspec.structs import replace
from torch import Tensor

from headwater.feature_store.errors import JobError
from headwater.feature_store.schema import EncodedColumn, Schema
from headwater.models.base import Slot
from headwater.models.seeds import derive_seed

LANE = 4
"""fbgemm takes tables whose dimension is a multiple of this."""


@dataclass(frozen=True, slots=True)
class SlotLayout:
    """One slot: its tables and dense columns, where they lie in a batch, the order of features."""

    name: str
    dim: int
    bound: float | None
    """Half the width of uniform first values; None for normal ones."""
    tables: tuple[EncodedColumn, ...]
    """Code columns, in the slot's order; the cardinality of a pruned one is that of the rows it keeps."""
    places: tuple[slice, ...]
    """Columns of `codes_BW` that each table reads; of pruned columns the codes lie behind it (`Remap`)."""
    sources: tuple[EncodedColumn, ...]
    """The same columns as the schema has them."""
    codes: tuple[slice, ...]
    """Columns of `codes_BW` that hold their codes."""
    dense: tuple[EncodedColumn, ...]
    """Dense columns, in the slot's order."""
    dense_places: tuple[int, ...]
    """Column of `dense_BD` that each dense column reads."""
    runs: tuple[tuple[bool, int, int], ...]
    """Features in order as stretches (is dense, start, stop) of tables or of dense columns."""

    @property
    def columns(self) -> list[EncodedColumn]:
        """All columns as the schema has them, in the slot's order."""
        return [
            column
            for is_dense, start, stop in self.runs
            for column in (self.dense if is_dense else self.sources)[start:stop]
        ]

    def pruned(self) -> Iterator[tuple[EncodedColumn, EncodedColumn, slice]]:
        """Yield each pruned column as the schema has it, its table, and where its codes lie."""
        every = zip(self.sources, self.tables, self.codes, self.places, strict=True)
        for source, table, codes, place in every:
            if place != codes:
                yield source, table, codes

    @property
    def has_lists(self) -> bool:
        """True where a table pools several codes an example."""
        return any(column.length > 1 for column in self.tables)


def lay_out(
    schema: Schema, slots: Mapping[str, Slot], declared: Collection[str] | None = None
) -> tuple[SlotLayout, ...]:
    """Return the layout of each slot, whose columns the schema must have.

    A slot that names none has the `declared` ones, all of the schema when absent.
    """
    known = {column.name: column for column in schema.columns}
    code_places = {column.name: place for column, place in schema.code_places()}
    dense_places = {column.name: i for i, column in enumerate(schema.dense)}
    width = schema.width
    every = [name for name in known if declared is None or name in declared]
    layouts: list[SlotLayout] = []
    for name, slot in slots.items():
        wanted = every if slot.columns is None else slot.columns
        columns = [known[column] for column in wanted]
        sources = tuple(column for column in columns if not column.is_dense)
        tables: list[EncodedColumn] = []
        places: list[slice] = []
        for column in sources:
            kept = slot.rows.get(column.name)
            if kept is None:
                tables.append(column)
                places.append(code_places[column.name])
                continue
            if kept >= column.cardinality:
                raise JobError(
                    f"model: {column.name!r} shall keep {kept} rows, but has {column.cardinality - 1}: they "
                    "were chosen on other data. Search again."
                )
            tables.append(replace(column, cardinality=kept + 1))
            places.append(slice(width, width + column.length))
            width += column.length
        dense = tuple(column for column in columns if column.is_dense)
        layouts.append(
            SlotLayout(
                name=name,
                dim=slot.dim,
                bound=slot.bound,
                tables=tuple(tables),
                places=tuple(places),
                sources=sources,
                codes=tuple(code_places[column.name] for column in sources),
                dense=dense,
                dense_places=tuple(dense_places[column.name] for column in dense),
                runs=_runs(columns),
            )
        )
    return tuple(layouts)


def _runs(columns: list[EncodedColumn]) -> tuple[tuple[bool, int, int], ...]:
    runs: list[tuple[bool, int, int]] = []
    counts = {False: 0, True: 0}
    for column in columns:
        start = counts[column.is_dense]
        counts[column.is_dense] += 1
        if runs and runs[-1][0] == column.is_dense:
            runs[-1] = (column.is_dense, runs[-1][1], start + 1)
        else:
            runs.append((column.is_dense, start, start + 1))
    return tuple(runs)


def mean_members(layout: SlotLayout, width: int) -> Tensor | None:
    """Return (W, F), 1 where a code slot belongs to a mean-pooled list; None where no list does.

    The number of codes that are not padding is then one product: `(codes_BW != 0) @ members_WF`.
    """
    members_WF = torch.zeros(width, len(layout.tables), device="cpu")
    for feature, (column, place) in enumerate(zip(layout.sources, layout.codes, strict=True)):
        if column.length > 1 and column.pooling == "mean":
            members_WF[place, feature] = 1
    return members_WF if members_WF.any() else None


def fused_problems(dims: Iterable[int]) -> list[str]:
    """Return a line for each dimension of tables that fbgemm does not take; 1 is padded for it."""
    return [
        f"model.embedding_dim: {dim} is not a multiple of {LANE}, as fused tables need. "
        f"Set {dim + LANE - dim % LANE}, or train.sparse.mode = 'lazy'."
        for dim in dict.fromkeys(dims)
        if dim > 1 and dim % LANE
    ]


def initial_table(seed: int, layout: SlotLayout, column: EncodedColumn) -> Tensor:
    """Return a table's first values, (cardinality, dim): normal(0, 1e-4) or uniform, row 0 zero.

    They depend on the seed and the names alone, so that all table modes, and any number of ranks,
    start from the same values.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, layout.name, column.name))
    table_ND = torch.empty(column.cardinality, layout.dim, device="cpu")
    if layout.bound is None:
        table_ND.normal_(0, 1e-4, generator=generator)
    else:
        table_ND.uniform_(-layout.bound, layout.bound, generator=generator)
    table_ND[0] = 0
    return table_ND
