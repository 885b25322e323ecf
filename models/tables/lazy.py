"""Embedding tables as plain tensors under Adam, of which a step computes the rows of its batch alone.

One merged table a slot, as in `dense_tables`, and the same algorithm: Adam with an L2 penalty over whole
tables. But a row that a batch does not read is left as it is until it is next looked at. Then it gets at
once what Adam would have done to it in the steps that it missed, where only its momentum and the penalty
move it. That is computed in closed form from a few powers, so it differs from Adam a little; a row that is
read at every step does not. A step costs time in the distinct codes of a batch.

B examples, W code slots of a batch, V codes that a slot reads, U distinct rows among them, N rows of a table,
F tables of a slot, D dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from headwater.models.tables.dense import DenseTables
from headwater.models.tables.layout import SlotLayout

BETA_1 = 0.9
BETA_2 = 0.999
EPS = 1e-8
_BLOCK_ROWS = 2**18
"""Rows that are brought up to date at a time, when all are."""


class LazyTables(DenseTables):
    """The tables of every slot that has code columns; they learn once they have a `LazyAdam`."""

    def __init__(self, layouts: Sequence[SlotLayout], *, width: int, seed: int) -> None:
        super().__init__(layouts, width=width, seed=seed)
        for table in self.merged().values():
            table.weight_ND.requires_grad_(False)
        self.adam: LazyAdam | None = None

    def forward(self, codes_BW: Tensor) -> dict[str, Tensor]:
        """Return the embeddings of each slot, lists summed: (B, F, D)."""
        if self.adam is None or not (self.training and torch.is_grad_enabled()):
            return super().forward(codes_BW)
        embeddings: dict[str, Tensor] = {}
        for name, table in self.merged().items():
            rows_BV = table.rows(codes_BW)
            # With a zero in front, row 0 is the first of the distinct ones; it never moves.
            every = torch.cat([rows_BV.new_zeros(1), rows_BV.reshape(-1)])
            rows_U, places = torch.unique(every, return_inverse=True)
            places_BV = places[1:].view(rows_BV.shape)
            rows_UD = self.adam.take(name, rows_U[1:].long())
            padded_UD = torch.cat([rows_UD.new_zeros(1, table.dim), rows_UD])
            if table.pools:
                embeddings[name] = table.pool(places_BV, padded_UD)
            else:
                # F.embedding's backward pass takes three times as long as that of index_select.
                rows_VD = padded_UD.index_select(0, places_BV.view(-1))
                embeddings[name] = rows_VD.view(*places_BV.shape, table.dim)
        self.rows = self.adam.leaves()
        return embeddings

    def train(self, mode: bool = True) -> Self:
        """Set the mode; on the way to evaluation every row is brought up to date."""
        if not mode:
            self._settle()
        return super().train(mode)

    def read(self, slot: str, column: str) -> Tensor:
        """Return a copy of one table on the CPU, (cardinality, D), up to date."""
        self._settle()
        return super().read(slot, column)

    def _settle(self) -> None:
        if self.adam is not None:
            self.adam.settle()


@dataclass(slots=True)
class _Taken:
    """Rows that a training pass took out, up to date."""

    rows_U: Tensor
    """Their numbers, int64."""
    rows_UD: Tensor
    """A leaf, in which autograd sums the gradient of each row."""
    mean_UD: Tensor
    square_UD: Tensor


class LazyAdam:
    """Adam over `LazyTables`, with the interface of an optimiser."""

    def __init__(self, tables: LazyTables, lr: float, l2: float) -> None:
        self.param_groups: list[dict[str, Any]] = [{"lr": lr}]
        self._l2 = l2
        self._tables = tables
        self._weights = {name: table.weight_ND for name, table in tables.merged().items()}
        self._state: dict[str, dict[str, Tensor]] = {
            name: {
                "step": torch.zeros((), dtype=torch.int32),
                "exp_avg": torch.zeros_like(weight_ND),
                "exp_avg_sq": torch.zeros_like(weight_ND),
                # The step after which a row was last up to date.
                "last": torch.zeros(len(weight_ND), dtype=torch.int32, device=weight_ND.device),
            }
            for name, weight_ND in self._weights.items()
        }
        self._taken: dict[str, _Taken] = {}
        tables.adam = self

    def take(self, name: str, rows_U: Tensor) -> Tensor:
        """Return rows of a slot's table up to date, (U, D), as a leaf; `step` writes them back."""
        with torch.no_grad():
            taken = self._up_to_date(name, rows_U)
        taken.rows_UD.requires_grad_()
        self._taken[name] = taken
        return taken.rows_UD

    def leaves(self) -> list[Tensor]:
        """Return what `take` gave since the last step."""
        return [taken.rows_UD for taken in self._taken.values()]

    def zero_grad(self) -> None:
        """Forget the rows that were taken."""
        self._taken.clear()
        self._tables.rows = []

    @torch.no_grad()
    def step(self) -> None:
        """Update every row that was taken, by Adam's rule, and write it back."""
        lr: float = self.param_groups[0]["lr"]
        for name, taken in self._taken.items():
            grad_UD = taken.rows_UD.grad
            if grad_UD is None:
                continue
            self._state[name]["step"] += 1
            step = int(self._state[name]["step"])
            taken.mean_UD.lerp_(grad_UD, 1 - BETA_1)
            taken.square_UD.mul_(BETA_2).addcmul_(grad_UD, grad_UD, value=1 - BETA_2)
            root_UD = taken.square_UD.sqrt().div_(math.sqrt(1 - BETA_2**step)).add_(EPS)
            size = lr / (1 - BETA_1**step)
            taken.rows_UD.detach().addcdiv_(taken.mean_UD, root_UD, value=-size)
            self._write(name, taken)
        self.zero_grad()

    @torch.no_grad()
    def settle(self) -> None:
        """Bring every row of every table up to date."""
        for name, weight_ND in self._weights.items():
            for start in range(0, len(weight_ND), _BLOCK_ROWS):
                stop = min(start + _BLOCK_ROWS, len(weight_ND))
                rows_U = torch.arange(start, stop, device=weight_ND.device)
                self._write(name, self._up_to_date(name, rows_U))

    def state_dict(self) -> dict[str, Any]:
        """Return the live state by slot."""
        return {"state": self._state}

    def _up_to_date(self, name: str, rows_U: Tensor) -> _Taken:
        state = self._state[name]
        taken = _Taken(
            rows_U,
            self._weights[name].index_select(0, rows_U),
            state["exp_avg"].index_select(0, rows_U),
            state["exp_avg_sq"].index_select(0, rows_U),
        )
        last_U = state["last"].index_select(0, rows_U)
        missed_U = int(state["step"]) - last_U
        if missed_U.any():
            self._catch_up(taken, last_U.unsqueeze(1).float(), missed_U.unsqueeze(1).float())
        return taken

    def _catch_up(self, taken: _Taken, last_U1: Tensor, missed_U1: Tensor) -> None:
        """Give rows the steps that they missed, in which their gradient was l2 times themselves.

        The momentum fades out at the step size of the first of these steps; the penalty then shrinks
        the row exponentially, at the step size half way through.
        """
        lr: float = self.param_groups[0]["lr"]
        l2 = self._l2
        fading_U1 = BETA_1**missed_U1
        drift_U1 = (1 - fading_U1) * (BETA_1 / (1 - BETA_1))
        size_UD = lr * _inverse_root(BETA_2 * taken.square_UD, last_U1 + 1)
        moved_UD = taken.rows_UD - size_UD * drift_U1 * taken.mean_UD
        if l2 > 0:
            kept_U1 = BETA_2 ** (missed_U1 / 2)
            pull_UD = (l2 * moved_UD).square_()
            half_UD = kept_U1 * taken.square_UD + (1 - kept_U1) * pull_UD
            size_UD = lr * _inverse_root(half_UD, last_U1 + missed_U1 / 2)
            moved_UD *= torch.exp(-l2 * size_UD * (missed_U1 - drift_U1))
        taken.mean_UD.mul_(fading_U1).add_((1 - fading_U1) * (l2 * moved_UD))
        kept_U1 = BETA_2**missed_U1
        middle_UD = (taken.rows_UD + moved_UD) * (l2 / 2)
        taken.square_UD.mul_(kept_U1).add_((1 - kept_U1) * middle_UD.square_())
        taken.rows_UD.copy_(moved_UD)

    def _write(self, name: str, taken: _Taken) -> None:
        state = self._state[name]
        self._weights[name].index_copy_(0, taken.rows_U, taken.rows_UD.detach())
        state["exp_avg"].index_copy_(0, taken.rows_U, taken.mean_UD)
        state["exp_avg_sq"].index_copy_(0, taken.rows_U, taken.square_UD)
        state["last"].index_fill_(0, taken.rows_U, int(state["step"]))


def _inverse_root(square_UD: Tensor, step_U1: Tensor) -> Tensor:
    """Return what Adam multiplies a mean by at a step, but for the learning rate."""
    step_U1 = step_U1.clamp(min=1)
    root_UD = (square_UD / (1 - BETA_2**step_U1)).sqrt_().add_(EPS)
    return 1 / (root_UD * (1 - BETA_1**step_U1))
