"""Embedding tables as plain tensors under Adam, of which a step computes the rows of its batch alone.

One merged table a slot, as in `dense_tables`, and the same algorithm: Adam with an L2 penalty over whole
tables. But a row that a batch does not read is left as it is until it is next looked at. Then it gets at
once what Adam would have done to it in the steps that it missed, where only its momentum and the penalty
move it. That is computed in closed form from a few powers, so it differs from Adam a little; a row that is
read at every step does not. A step costs time in the distinct codes of a batch.

B examples, W code slots of a batch, V codes that a slot reads, R distinct rows among them, N rows of a table,
F tables of a slot, D dimension.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from headwater.models.tables.dense import DenseTables
from headwater.models.tables.layout import SlotLayout
from headwater.models.tables.looked import Looked, Rows

BETA_1 = 0.9
BETA_2 = 0.999
EPS = 1e-8
_BLOCK_VALUES = 2**20
"""Weights that are brought up to date at a time, when all are: the copies of them stay small."""


class LazyTables(DenseTables):
    """The tables of every slot that has code columns; they learn once they have a `LazyAdam`."""

    def __init__(self, layouts: Sequence[SlotLayout], *, width: int, seed: int) -> None:
        super().__init__(layouts, width=width, seed=seed)
        for table in self.merged().values():
            table.weight_ND.requires_grad_(False)
        self.adam: LazyAdam | None = None

    def forward(self, codes_BW: Tensor) -> Looked:
        """Return the embeddings of each slot, lists summed, (B, F, D), and the rows that training reads."""
        if self.adam is None or not (self.training and torch.is_grad_enabled()):
            return super().forward(codes_BW)
        embeddings: dict[str, Tensor] = {}
        taken: list[Rows] = []
        for name, table in self.merged().items():
            rows_BV = table.rows(codes_BW)
            # With a zero in front, row 0 is the first of the distinct ones; it never moves.
            every = torch.cat([rows_BV.new_zeros(1), rows_BV.reshape(-1)])
            numbers_R, places = torch.unique(every, return_inverse=True)
            places_BV = places[1:].view(rows_BV.shape)
            rows = self.adam.take(name, numbers_R[1:].long())
            taken.append(rows)
            padded_RD = torch.cat([rows.values_RD.new_zeros(1, table.dim), rows.values_RD])
            if table.pools:
                embeddings[name] = table.pool(places_BV, padded_RD)
            else:
                # F.embedding's backward pass takes three times as long as that of index_select.
                rows_VD = padded_RD.index_select(0, places_BV.view(-1))
                embeddings[name] = rows_VD.view(*places_BV.shape, table.dim)
        return Looked(embeddings, tuple(taken))

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
class LazyRows(Rows):
    """Rows of a slot's table that a training pass took out, up to date; `values_RD` is a leaf."""

    slot: str
    numbers_R: Tensor
    """Their numbers in the table, int64."""
    mean_RD: Tensor
    square_RD: Tensor
    step: int
    """Steps of the table when they were taken."""


class LazyAdam:
    """Adam over `LazyTables`; `step` gets the rows that it updates."""

    def __init__(self, tables: LazyTables, lr: float, l2: float) -> None:
        self.param_groups: list[dict[str, Any]] = [{"lr": lr}]
        self._l2 = l2
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
        tables.adam = self

    def take(self, slot: str, numbers_R: Tensor) -> LazyRows:
        """Return rows of a slot's table up to date, for a training pass to differentiate."""
        with torch.no_grad():
            rows = self._up_to_date(slot, numbers_R)
        rows.values_RD.requires_grad_()
        return rows

    @torch.no_grad()
    def merged(self, rows: Iterable[LazyRows]) -> list[LazyRows]:
        """Return the rows of several passes, each row once with the sum of its gradients, by slot.

        Rows without a gradient are left out.
        """
        by_slot: dict[str, list[LazyRows]] = {}
        for each in rows:
            if each.values_RD.grad is not None:
                by_slot.setdefault(each.slot, []).append(each)
        return [self._merge(slot, passes) for slot, passes in by_slot.items()]

    def _merge(self, slot: str, passes: Sequence[LazyRows]) -> LazyRows:
        first = passes[0]
        if len(passes) == 1 and first.step == int(self._state[slot]["step"]):
            return first
        numbers_R, places = torch.unique(
            torch.cat([each.numbers_R for each in passes]), return_inverse=True
        )
        merged = self._up_to_date(slot, numbers_R)
        merged.values_RD.grad = torch.zeros_like(merged.values_RD)
        grads = [each.values_RD.grad for each in passes if each.values_RD.grad is not None]
        merged.values_RD.grad.index_add_(0, places, torch.cat(grads))
        return merged

    @torch.no_grad()
    def step(self, rows: Iterable[LazyRows]) -> None:
        """Update rows, as `merged` gives them, by Adam's rule and their gradient, and write them back."""
        lr: float = self.param_groups[0]["lr"]
        for each in rows:
            grad_RD = each.values_RD.grad
            assert grad_RD is not None, "rows without a gradient have no step"
            state = self._state[each.slot]
            state["step"] += 1
            step = int(state["step"])
            each.mean_RD.lerp_(grad_RD, 1 - BETA_1)
            each.square_RD.mul_(BETA_2).addcmul_(grad_RD, grad_RD, value=1 - BETA_2)
            root_RD = each.square_RD.sqrt().div_(math.sqrt(1 - BETA_2**step)).add_(EPS)
            size = lr / (1 - BETA_1**step)
            each.values_RD.detach().addcdiv_(each.mean_RD, root_RD, value=-size)
            self._write(each)

    @torch.no_grad()
    def settle(self) -> None:
        """Bring every row of every table up to date."""
        for name, weight_ND in self._weights.items():
            block = max(1, _BLOCK_VALUES // weight_ND.shape[1])
            for start in range(0, len(weight_ND), block):
                stop = min(start + block, len(weight_ND))
                numbers_R = torch.arange(start, stop, device=weight_ND.device)
                self._write(self._up_to_date(name, numbers_R))

    def state_dict(self) -> dict[str, Any]:
        """Return the live state by slot."""
        return {"state": self._state}

    def _up_to_date(self, slot: str, numbers_R: Tensor) -> LazyRows:
        state = self._state[slot]
        rows = LazyRows(
            self._weights[slot].index_select(0, numbers_R),
            slot,
            numbers_R,
            state["exp_avg"].index_select(0, numbers_R),
            state["exp_avg_sq"].index_select(0, numbers_R),
            int(state["step"]),
        )
        last_R = state["last"].index_select(0, numbers_R)
        missed_R = rows.step - last_R
        if missed_R.any():
            self._catch_up(rows, last_R.unsqueeze(1).float(), missed_R.unsqueeze(1).float())
        return rows

    def _catch_up(self, rows: LazyRows, last_R1: Tensor, missed_R1: Tensor) -> None:
        """Give rows the steps that they missed, in which their gradient was l2 times themselves.

        The momentum fades out at the step size of the first of these steps; the penalty then shrinks
        the row exponentially, at the step size half way through.
        """
        lr: float = self.param_groups[0]["lr"]
        l2 = self._l2
        fading_R1 = BETA_1**missed_R1
        drift_R1 = (1 - fading_R1) * (BETA_1 / (1 - BETA_1))
        size_RD = lr * _inverse_root(BETA_2 * rows.square_RD, last_R1 + 1)
        moved_RD = rows.values_RD - size_RD * drift_R1 * rows.mean_RD
        if l2 > 0:
            kept_R1 = BETA_2 ** (missed_R1 / 2)
            pull_RD = (l2 * moved_RD).square_()
            half_RD = kept_R1 * rows.square_RD + (1 - kept_R1) * pull_RD
            size_RD = lr * _inverse_root(half_RD, last_R1 + missed_R1 / 2)
            moved_RD *= torch.exp(-l2 * size_RD * (missed_R1 - drift_R1))
        rows.mean_RD.mul_(fading_R1).add_((1 - fading_R1) * (l2 * moved_RD))
        kept_R1 = BETA_2**missed_R1
        middle_RD = (rows.values_RD + moved_RD) * (l2 / 2)
        rows.square_RD.mul_(kept_R1).add_((1 - kept_R1) * middle_RD.square_())
        rows.values_RD.copy_(moved_RD)

    def _write(self, rows: LazyRows) -> None:
        state = self._state[rows.slot]
        self._weights[rows.slot].index_copy_(0, rows.numbers_R, rows.values_RD.detach())
        state["exp_avg"].index_copy_(0, rows.numbers_R, rows.mean_RD)
        state["exp_avg_sq"].index_copy_(0, rows.numbers_R, rows.square_RD)
        state["last"].index_fill_(0, rows.numbers_R, int(state["step"]))


def _inverse_root(square_RD: Tensor, step_R1: Tensor) -> Tensor:
    """Return what Adam multiplies a mean by at a step, but for the learning rate."""
    step_R1 = step_R1.clamp(min=1)
    root_RD = (square_RD / (1 - BETA_2**step_R1)).sqrt_().add_(EPS)
    return 1 / (root_RD * (1 - BETA_1**step_R1))
