"""Optimisers of a placed network: penalties, clipping, one update, their state, whatever the table mode."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from headwater.models.placement.placement import Placement
from headwater.models.placement.settings import LearnSettings
from headwater.models.placement.state import copy_over, num_ranks, plain, spread
from headwater.models.tables.lazy import LazyAdam, LazyRows, LazyTables
from headwater.models.tables.looked import Looked


class Optimisers:
    """All optimisers of one placement: Adam, and the one that lazy or fused tables have for themselves."""

    def __init__(
        self,
        placement: Placement,
        settings: LearnSettings,
        apart: Collection[nn.Parameter] = (),
    ) -> None:
        """Make the optimisers of all weights but those that are `apart`."""
        network, mode = placement.network, placement.network.embeddings.mode
        self._placement = placement
        self._settings = settings
        self._fused = placement.fused
        store = network.embeddings.store
        self._lazy: LazyAdam | None = None
        if isinstance(store, LazyTables):
            self._lazy = LazyAdam(store, settings.sparse_lr, settings.sparse_l2)
        self._tables = self._lazy if self._fused is None else self._fused
        """The optimiser that tables have for themselves; None where Adam has them."""
        vectors = list(network.embeddings.numeric.parameters())
        if self._tables is None:
            vectors = [*network.embeddings.table_parameters(), *vectors]
        own = {id(weight) for weight in apart}
        vectors = [weight for weight in vectors if id(weight) not in own]
        model = [weight for weight in network.model.parameters() if id(weight) not in own]
        # The vectors of dense columns are embeddings: the tables' penalty is theirs in all modes, and
        # the tables' learning rate where Adam learns both.
        self.lr = {"sparse": settings.sparse_lr, "dense": settings.dense_lr}
        """Learning rates now: `sparse` of tables, `dense` of all other weights."""
        kind = "dense" if mode == "fused" else "sparse"
        groups: list[dict[str, Any]] = [
            {"params": vectors, "lr": self.lr[kind], "kind": kind},
            {"params": model, "lr": self.lr["dense"], "kind": "dense"},
        ]
        groups = [group for group in groups if group["params"]]
        self._adam = torch.optim.Adam(groups, fused=True) if groups else None
        if self._adam is not None:
            start_adam(self._adam)
        self._penalties = [
            (l2, weight)
            for l2, weights in ((settings.sparse_l2, vectors), (settings.dense_l2, model))
            for weight in weights
            if l2 > 0
        ]
        self._row_l2 = settings.sparse_l2 if mode != "dense" else 0.0
        self._groups: list[tuple[dict[str, Any], str, float]] = []
        for group in [] if self._adam is None else self._adam.param_groups:
            self._groups.append((group, group["kind"], 1.0))
        for group in [] if self._tables is None else self._tables.param_groups:
            # fbgemm gives the rate back in float32: the ratio is 1, or 1/2 for first-order weights.
            self._groups.append((group, "sparse", round(group["lr"] / self.lr["sparse"], 4)))

    def zero_grad(self) -> None:
        """Drop the gradients of the last step."""
        if self._adam is not None:
            self._adam.zero_grad()
        if self._fused is not None:
            self._fused.zero_grad()

    def step(self, *looked: Looked) -> None:
        """Clip the gradients of a backward pass, and update every weight.

        `looked` are the passes that the loss was made of, all of them: rows of lazy tables are updated once,
        by the sum of their gradients. The backward pass has updated fused tables.
        """
        rows = self.rows(*looked)
        self.clip_grad(self._settings.clip_norm, rows)
        if self._adam is not None:
            self._adam.step()
        if self._lazy is not None:
            self._lazy.step(rows)
        if self._fused is not None:
            self._fused.step()

    def rows(self, *looked: Looked) -> list[LazyRows]:
        """Return the rows of lazy tables that passes read, each once with its whole gradient."""
        if self._lazy is None:
            return []
        return self._lazy.merged(_lazy_rows(looked))

    def clip_grad(self, norm: float, rows: Iterable[LazyRows] = ()) -> Tensor:
        """Scale gradients to a global norm of at most `norm`, and return the norm they had.

        Fused tables have no gradient by then; they are left out.
        """
        grads: list[Tensor] = [
            weight.grad
            for group in ([] if self._adam is None else self._adam.param_groups)
            for weight in group["params"]
            if weight.grad is not None
        ]
        grads += [each.values_RD.grad for each in rows if each.values_RD.grad is not None]
        total = torch.nn.utils.get_total_norm(grads)
        if total > norm:  # else spare a pass over whole tables, as most steps can
            for grad in grads:
                grad.mul_(norm / (total + 1e-6))
        return total

    def penalty(self, *looked: Looked) -> Tensor:
        """Return the sum of (l2 / 2) * ||W||^2, a scalar to add to the loss.

        It runs over whole tables in `dense` mode, those of gate contexts and the vectors of dense
        columns too. In the other modes, of tables it takes the rows that the passes read, each once;
        on more ranks, the mean over ranks of what each of them read. (Rows of lazy tables get the
        penalty of the steps that they miss from their optimiser.)
        """
        terms: list[Tensor] = [_HalfSquare.apply(weight, l2) for l2, weight in self._penalties]
        if self._row_l2 > 0:
            terms += [
                values.square().sum() * (self._row_l2 / 2) for values in _distinct_values(looked)
            ]
        if not terms:
            return torch.zeros((), device=self._placement.device)
        return torch.stack(terms).sum()

    def lr_scale(self, factor: float, floor: float) -> None:
        """Multiply both learning rates by `factor`, but not below `floor`; one below it stays."""
        self._set_lr({kind: max(lr * factor, min(floor, lr)) for kind, lr in self.lr.items()})

    def state_dict(self) -> dict[str, Any]:
        """Return optimiser state and learning rates: nested dicts of live tensors, as weights are."""
        state: dict[str, Any] = {
            "lr": {kind: torch.tensor(lr, dtype=torch.float64) for kind, lr in self.lr.items()}
        }
        if self._tables is not None:
            mode = self._placement.network.embeddings.mode
            state[mode] = plain(self._tables.state_dict()["state"])
        if self._adam is not None:
            state["adam"] = {
                name: self._adam.state[weight]
                for name, weight in self._placement.network.named_parameters()
                if weight in self._adam.state
            }
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave, whole or not, bit by bit; RunError where it does not fit."""
        live = self.state_dict()
        if num_ranks() > 1 and "fused" in live:
            # A rank has the optimiser state of its own tables only.
            own = {key: value for key, value in state["fused"].items() if key in live["fused"]}
            state = {**state, "fused": own}
        state = spread(state, live)
        with torch.no_grad():
            for part in live.keys() - {"lr"}:
                copy_over(live[part], state.get(part, {}), part)
        self._set_lr({kind: float(lr) for kind, lr in state["lr"].items()})

    def _set_lr(self, lr: dict[str, float]) -> None:
        self.lr = lr
        for group, kind, scale in self._groups:
            group["lr"] = lr[kind] * scale
        if self._fused is not None:
            self._fused.step()  # hands the rates to fbgemm; without a pass before, no table changes


def _lazy_rows(looked: Iterable[Looked]) -> list[LazyRows]:
    return [rows for each in looked for rows in each.rows if isinstance(rows, LazyRows)]


def _distinct_values(looked: tuple[Looked, ...]) -> list[Tensor]:
    """Return the values of all rows that passes read, those that several read from the first alone."""
    if len(looked) == 1:
        return [rows.values_RD for rows in looked[0].rows]
    values: list[Tensor] = []
    seen: dict[str, Tensor] = {}
    for rows in _lazy_rows(looked):
        before = seen.get(rows.slot)
        if before is None:
            seen[rows.slot] = rows.numbers_R
            values.append(rows.values_RD)
        else:
            values.append(rows.values_RD[~torch.isin(rows.numbers_R, before)])
            seen[rows.slot] = torch.cat([before, rows.numbers_R])
    return values


def start_adam(adam: torch.optim.Adam) -> None:
    """Make Adam's state before its first step, so that a checkpoint can be loaded into it."""
    for group in adam.param_groups:
        for weight in group["params"]:
            adam.state[weight] = {
                "step": torch.zeros((), dtype=torch.float32, device=weight.device),
                "exp_avg": torch.zeros_like(weight),
                "exp_avg_sq": torch.zeros_like(weight),
            }


class _HalfSquare(torch.autograd.Function):
    """(l2 / 2) * ||W||^2 with a gradient of l2 * W: one temporary of W's size, not three."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, l2: float) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.l2 = l2
        return torch.linalg.vector_norm(weight).square() * (l2 / 2)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return weight * (grad_outputs[0] * ctx.l2), None
