"""Embedding tables as plain tensors, learned by an Adam that visits the rows of the batch alone.

One merged table a slot, as in `dense_tables`. A training pass takes out each distinct row that it reads;
autograd sums the gradients of a row, and one update a row writes it back with its two moments. So a step
costs time in the distinct codes of a batch, and a row that is not read does not move.

B examples, W code slots of a batch, V codes that a slot reads, U distinct rows among them, N rows of a table,
F tables of a slot, D dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from headwater.models.dense_tables import DenseTables
from headwater.models.layout import SlotLayout

BETAS = (0.9, 0.999)
EPS = 1e-8


class LazyTables(DenseTables):
    """The tables of every slot that has code columns; `LazyAdam` moves them."""

    def __init__(self, layouts: Sequence[SlotLayout], *, width: int, seed: int) -> None:
        super().__init__(layouts, width=width, seed=seed)
        for table in self.merged().values():
            table.weight_ND.requires_grad_(False)
        self.taken: dict[str, tuple[Tensor, Tensor]] = {}
        """What the last training pass read, by slot: numbers of rows (U,) and the rows (U, D)."""

    def forward(self, codes_BW: Tensor) -> dict[str, Tensor]:
        """Return the embeddings of each slot, lists summed: (B, F, D)."""
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(codes_BW)
        embeddings: dict[str, Tensor] = {}
        for name, table in self.merged().items():
            rows_BV = table.rows(codes_BW)
            # With a zero in front, row 0 is the first of the distinct ones; it never moves.
            every = torch.cat([rows_BV.new_zeros(1), rows_BV.reshape(-1)])
            rows_U, places = torch.unique(every, return_inverse=True)
            rows_U, places_BV = rows_U[1:].long(), places[1:].view(rows_BV.shape)
            rows_UD = table.weight_ND.index_select(0, rows_U).requires_grad_()
            padded_UD = torch.cat([rows_UD.new_zeros(1, table.dim), rows_UD])
            if table.pools:
                embeddings[name] = table.pool(places_BV, padded_UD)
            else:
                # F.embedding's backward pass takes three times as long as that of index_select.
                rows_VD = padded_UD.index_select(0, places_BV.view(-1))
                embeddings[name] = rows_VD.view(*places_BV.shape, table.dim)
            self.taken[name] = (rows_U, rows_UD)
        self.rows = [rows_UD for _, rows_UD in self.taken.values()]
        return embeddings

    def forget(self) -> None:
        """Drop what the last training pass read."""
        self.taken.clear()
        self.rows = []


class LazyAdam:
    """Adam as `torch.optim.SparseAdam` defines it, with the interface of an optimiser.

    A row's moments decay only when it is read; the bias correction counts all steps.
    """

    def __init__(self, tables: LazyTables, lr: float) -> None:
        self.param_groups: list[dict[str, Any]] = [{"lr": lr}]
        self._tables = tables
        self._state: dict[str, dict[str, Tensor]] = {
            name: {
                "step": torch.zeros((), dtype=torch.float32),
                "exp_avg": torch.zeros_like(table.weight_ND),
                "exp_avg_sq": torch.zeros_like(table.weight_ND),
            }
            for name, table in tables.merged().items()
        }

    def zero_grad(self) -> None:
        """Drop the gradients of the last step."""
        self._tables.forget()

    @torch.no_grad()
    def step(self) -> None:
        """Update every row that the last training pass read, once."""
        lr: float = self.param_groups[0]["lr"]
        for name, table in self._tables.merged().items():
            rows_U, rows_UD = self._tables.taken.get(name, (None, None))
            if rows_U is None or rows_UD is None or rows_UD.grad is None:
                continue
            state = self._state[name]
            state["step"] += 1
            step = state["step"].item()
            mean_UD = state["exp_avg"].index_select(0, rows_U).lerp_(rows_UD.grad, 1 - BETAS[0])
            square_UD = state["exp_avg_sq"].index_select(0, rows_U).mul_(BETAS[1])
            square_UD.addcmul_(rows_UD.grad, rows_UD.grad, value=1 - BETAS[1])
            state["exp_avg"].index_copy_(0, rows_U, mean_UD)
            state["exp_avg_sq"].index_copy_(0, rows_U, square_UD)
            size = lr * math.sqrt(1 - BETAS[1] ** step) / (1 - BETAS[0] ** step)
            moved_UD = rows_UD.detach().addcdiv_(mean_UD, square_UD.sqrt_().add_(EPS), value=-size)
            table.weight_ND.index_copy_(0, rows_U, moved_UD)
        self._tables.forget()

    def state_dict(self) -> dict[str, Any]:
        """Return the live state: moments and steps by slot."""
        return {"state": self._state}
