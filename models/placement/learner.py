"""How a placed network learns: its optimisers, one step, one checkpoint, whatever the table mode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headwater.models.network import CTRNetwork
from headwater.models.placement.placement import Placement
from headwater.models.placement.state import copy_over, num_ranks, plain, spread


@dataclass(frozen=True, slots=True)
class Rates:
    """How fast weights learn, and what their size costs; sparse are those of embeddings."""

    sparse_lr: float
    dense_lr: float
    sparse_l2: float = 0.0
    dense_l2: float = 0.0


class Learner(Placement):
    """What `models.placement.place.place_learner` gives: a placement that is trained."""

    def __init__(
        self,
        network: CTRNetwork,
        module: nn.Module,
        device: torch.device,
        rates: Rates,
        tables: Any | None,
    ) -> None:
        """Make the optimisers; `tables` is the one that tables have for themselves, if they have."""
        super().__init__(network, module, device)
        mode = network.embeddings.mode
        vectors = list(network.embeddings.numeric.parameters())
        if tables is None:
            vectors = [*network.embeddings.table_parameters(), *vectors]
        model = list(network.model.parameters())
        # The vectors of dense columns are embeddings: the tables' penalty is theirs in all modes, and
        # the tables' learning rate where Adam learns both.
        lr = {"sparse": rates.sparse_lr, "dense": rates.dense_lr}
        kind = "dense" if mode == "fused" else "sparse"
        groups: list[dict[str, Any]] = [
            {"params": vectors, "lr": lr[kind], "kind": kind},
            {"params": model, "lr": lr["dense"], "kind": "dense"},
        ]
        groups = [group for group in groups if group["params"]]
        adam = torch.optim.Adam(groups, fused=True) if groups else None
        if adam is not None:
            _start(adam)
        self.optimizers: list[Any] = [each for each in (adam, tables) if each is not None]
        self.lr = lr
        """Learning rates now: `sparse` of tables, `dense` of all other weights."""
        self._adam = adam
        self._tables = tables
        """The optimiser that tables have for themselves: TorchRec's, or LazyAdam; else None."""
        self._penalties = [(rates.sparse_l2, weight) for weight in vectors if rates.sparse_l2 > 0]
        self._penalties += [(rates.dense_l2, weight) for weight in model if rates.dense_l2 > 0]
        self._row_l2 = rates.sparse_l2 if mode != "dense" else 0.0
        self._groups: list[tuple[dict[str, Any], str, float]] = []
        for group in [] if adam is None else adam.param_groups:
            self._groups.append((group, group["kind"], 1.0))
        for group in [] if tables is None else tables.param_groups:
            # fbgemm gives the rate back in float32: the ratio is 1, or 1/2 for first-order weights.
            self._groups.append((group, "sparse", round(group["lr"] / lr["sparse"], 4)))

    def zero_grad(self) -> None:
        """Drop the gradients of the last step."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def step(self) -> None:
        """Update every weight but fused tables, which the backward pass has updated."""
        for optimizer in self.optimizers:
            optimizer.step()

    def clip_grad(self, norm: float) -> Tensor:
        """Scale gradients to a global norm of at most `norm`, and return the norm they had.

        Fused tables have no gradient by then; they are left out.
        """
        grads: list[Tensor] = [
            weight.grad
            for group in ([] if self._adam is None else self._adam.param_groups)
            for weight in group["params"]
            if weight.grad is not None
        ]
        # The rows that lazy tables took out are leaves; those of fused tables never hold a gradient.
        grads += [rows.grad for rows in self._rows() if rows.is_leaf and rows.grad is not None]
        total = torch.nn.utils.get_total_norm(grads)
        if total > norm:  # else spare a pass over whole tables, as most steps can
            for grad in grads:
                grad.mul_(norm / (total + 1e-6))
        return total

    def penalty(self) -> Tensor:
        """Return the sum of (l2 / 2) * ||W||^2, a scalar to add to the loss.

        It runs over whole tables in `dense` mode, those of gate contexts and the vectors of dense
        columns too. In the other modes, of tables it takes the rows that the last pass of `module` read,
        each once; on more ranks, the mean over ranks of what each of them read. (Rows of lazy tables
        get the penalty of the steps that they miss from their optimiser.)
        """
        terms: list[Tensor] = [_HalfSquare.apply(weight, l2) for l2, weight in self._penalties]
        if self._row_l2 > 0:
            terms += [rows.square().sum() * (self._row_l2 / 2) for rows in self._rows()]
        if not terms:
            return torch.zeros((), device=self.device)
        return torch.stack(terms).sum()

    def lr_scale(self, factor: float, floor: float) -> None:
        """Multiply both learning rates by `factor`, but not below `floor`; one below it stays."""
        self._set_lr({kind: max(lr * factor, min(floor, lr)) for kind, lr in self.lr.items()})

    def state_dict(self) -> dict[str, Any]:
        """Return weights, optimiser state and learning rates: nested dicts of live tensors.

        In one process they are plain tensors, for `torch.save`. On more ranks tables are
        ShardedTensors, for torch.distributed.checkpoint, which loads into this very dict.
        """
        rates = {kind: torch.tensor(lr, dtype=torch.float64) for kind, lr in self.lr.items()}
        state: dict[str, Any] = {"model": self.weights(), "lr": rates}
        if self._tables is not None:
            state[self.network.embeddings.mode] = plain(self._tables.state_dict()["state"])
        if self._adam is not None:
            state["adam"] = {
                name: self._adam.state[weight]
                for name, weight in self.network.named_parameters()
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
        if self._tables is not None:
            self._tables.step()  # hands the rates to fbgemm; without a pass before, no table changes

    def _rows(self) -> list[Tensor]:
        store = self.network.embeddings.store
        return [] if store is None else store.rows


def _start(adam: torch.optim.Adam) -> None:
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
