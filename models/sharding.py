"""Where a network's weights live and how they learn: on one device, or sharded over ranks by TorchRec.

`fused`: DistributedModelParallel at any world size; tables learn by row-wise Adagrad inside the backward
pass, which costs time in the distinct codes of a batch. `dense`: the plain network under Adam with an L2
penalty over whole tables, in one process.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor

from headwater.feature_store.errors import JobError, RunError
from headwater.models.embeddings import Mode
from headwater.models.network import CTRNetwork


class Placement:
    """A network on its devices, with its optimisers.

    `module(batch)` gives the logit and is what to train; `network` is the same weights without wrapping.
    """

    def __init__(
        self,
        network: CTRNetwork,
        module: nn.Module,
        *,
        adam: torch.optim.Adam | None,
        fused: Any | None,
        lr: dict[str, float],
        penalties: list[tuple[float, nn.Parameter]],
    ) -> None:
        self.network = network
        self.module = module
        self.optimizers: list[Any] = [each for each in (adam, fused) if each is not None]
        self.lr = lr
        """Learning rates now: `sparse` of tables, `dense` of all other weights."""
        self._adam = adam
        self._fused = fused
        self._penalties = penalties
        self._groups: list[tuple[dict[str, Any], str, float]] = [
            (group, kind, group["lr"] / lr[kind])
            for kind, optimizer in (("dense", adam), ("sparse", fused))
            if optimizer is not None
            for group in optimizer.param_groups
            for kind in [group.get("kind", kind)]
        ]

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
        grads = [
            weight.grad
            for group in ([] if self._adam is None else self._adam.param_groups)
            for weight in group["params"]
            if weight.grad is not None
        ]
        total = torch.nn.utils.get_total_norm(grads)
        if total > norm:  # a pass over whole tables that most steps can do without
            torch._foreach_mul_(grads, norm / (total + 1e-6))
        return total

    def penalty(self) -> Tensor:
        """Return the sum of (l2 / 2) * ||W||^2, a scalar to add to the loss.

        It runs over whole tables in `dense` mode, those of gate contexts and the vectors of dense
        columns too. In `fused` mode tables are left out: fbgemm decays the rows of the batch.
        """
        terms = [_HalfSquare.apply(weight, l2) for l2, weight in self._penalties]
        if not terms:
            return torch.zeros((), device=next(self.network.model.parameters()).device)
        return torch.stack(terms).sum()

    def lr_scale(self, factor: float, floor: float) -> None:
        """Multiply both learning rates by `factor`, but not below `floor`."""
        self._set_lr({kind: max(lr * factor, floor) for kind, lr in self.lr.items()})

    def state_dict(self) -> dict[str, Any]:
        """Return weights, optimiser state and learning rates: nested dicts of live tensors.

        In one process they are plain tensors, for `torch.save`. On more ranks tables are
        ShardedTensors, for torch.distributed.checkpoint, which loads into this very dict.
        """
        state: dict[str, Any] = {"model": _plain(self.network.state_dict()), "lr": dict(self.lr)}
        if self._fused is not None:
            state["fused"] = _plain(self._fused.state_dict()["state"])
        if self._adam is not None:
            names = {weight: name for name, weight in self.network.named_parameters()}
            state["adam"] = {names[weight]: each for weight, each in self._adam.state.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave, bit by bit; RunError where it does not fit this network."""
        live = self.state_dict()
        with torch.no_grad():
            for part in live.keys() - {"lr"}:
                _copy(live[part], state.get(part, {}), part)
        self._set_lr({kind: float(lr) for kind, lr in state["lr"].items()})

    def _set_lr(self, lr: dict[str, float]) -> None:
        self.lr = lr
        for group, kind, scale in self._groups:
            group["lr"] = lr[kind] * scale
        if self._fused is not None:
            self._fused.step()  # hands the rates to fbgemm; tables themselves change in backward


def place(
    network: CTRNetwork,
    *,
    mode: Mode,
    sparse_lr: float,
    sparse_l2: float,
    dense_lr: float,
    dense_l2: float,
    device: torch.device,
) -> Placement:
    """Put a network on `device`, or shard it over the ranks of the process group.

    `fused` starts a process group of one where there is none (no port is opened). JobError for `dense`
    on more ranks than one.
    """
    assert network.embeddings.mode == mode, f"the network was built for {network.embeddings.mode}"
    lr = {"sparse": sparse_lr, "dense": dense_lr}
    module: nn.Module = network
    fused = None
    if mode == "fused" and network.embeddings.store is not None:
        _ensure_process_group(device)
        module = _shard(network, sparse_lr, sparse_l2, device)
        fused = module.fused_optimizer
    else:
        if mode == "dense" and dist.is_initialized() and dist.get_world_size() > 1:
            raise JobError(
                f"train.sparse.mode = 'dense' trains in one process, but {dist.get_world_size()} "
                "were started. Set train.sparse.mode = 'fused', or start one process."
            )
        network.to(device)

    tables = [] if mode == "fused" else list(network.embeddings.store.parameters())
    numeric = list(network.embeddings.numeric.parameters())
    model = list(network.model.parameters())
    # The vectors of dense columns are embeddings: they take the tables' penalty in both modes, and
    # their learning rate where Adam learns both.
    kind = "dense" if mode == "fused" else "sparse"
    groups = [
        {"params": tables + numeric, "lr": lr[kind], "kind": kind},
        {"params": model, "lr": dense_lr, "kind": "dense"},
    ]
    groups = [group for group in groups if group["params"]]
    adam = torch.optim.Adam(groups, fused=True) if groups else None
    if adam is not None:
        _start(adam)
    penalties = [(sparse_l2, weight) for weight in tables + numeric if sparse_l2 > 0]
    penalties += [(dense_l2, weight) for weight in model if dense_l2 > 0]
    return Placement(network, module, adam=adam, fused=fused, lr=lr, penalties=penalties)


def _shard(
    network: CTRNetwork, sparse_lr: float, sparse_l2: float, device: torch.device
) -> Any:
    """Return the network in DistributedModelParallel, its tables sharded and given first values."""
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import WeightDecayMode
    from torch.distributed.optim import _apply_optimizer_in_backward
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
    from torchrec.distributed.model_parallel import DistributedModelParallel
    from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
    from torchrec.optim import RowWiseAdagrad

    store = network.embeddings.store

    class Sharder(EmbeddingBagCollectionSharder):
        """TorchRec's list for CPUs leaves out row-wise, which gloo can do."""

        def sharding_types(self, compute_device_type: str) -> list[str]:
            return ["table_wise", "row_wise"]

    for layout in store.layouts:
        # Row-wise Adagrad divides by the root mean square over a row, so that zeros beyond the slot's
        # own dimension would lengthen each step by the root of their share.
        scale = math.sqrt(layout.dim / store.padded[layout.name])
        for column in layout.tables:
            _apply_optimizer_in_backward(
                RowWiseAdagrad,
                [store.parameter(layout.name, column.name)],
                {"lr": sparse_lr * scale, "weight_decay": sparse_l2},
            )
    sharders = [Sharder(fused_params={"weight_decay_mode": WeightDecayMode.L2})]
    world_size = dist.get_world_size()
    planner = EmbeddingShardingPlanner(
        topology=Topology(
            world_size=world_size,
            local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", world_size)),
            compute_device=device.type,
        ),
        constraints={
            key: ParameterConstraints(sharding_types=["table_wise", "row_wise"])
            for key in store.keys
        },
    )
    group = dist.GroupMember.WORLD
    assert group is not None
    module = DistributedModelParallel(
        network,
        device=device,
        plan=planner.collective_plan(network, sharders, group),
        sharders=sharders,
        init_data_parallel=world_size > 1,
    )
    store.initialise()
    return module


def _ensure_process_group(device: torch.device) -> None:
    if dist.is_initialized():
        return
    if "RANK" in os.environ and "MASTER_ADDR" in os.environ:  # started by torchrun
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


def _start(adam: torch.optim.Adam) -> None:
    """Make Adam's state before its first step, so that a checkpoint can be loaded into it."""
    for group in adam.param_groups:
        for weight in group["params"]:
            adam.state[weight] = {
                "step": torch.zeros((), dtype=torch.float32, device=weight.device),
                "exp_avg": torch.zeros_like(weight),
                "exp_avg_sq": torch.zeros_like(weight),
            }


def _plain(value: Any) -> Any:
    """Return nested dicts with each ShardedTensor that is whole on this rank as the tensor it is."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, ShardedTensor) and dist.get_world_size() == 1:
        return value.local_shards()[0].tensor.detach()
    return value


def _copy(live: Any, saved: Any, path: str) -> None:
    """Copy saved tensors over live ones, in nested dicts of the same keys."""
    if isinstance(live, Mapping):
        if not isinstance(saved, Mapping) or live.keys() != saved.keys():
            found = sorted(map(str, saved)) if isinstance(saved, Mapping) else type(saved).__name__
            raise RunError(
                f"checkpoint, {path}: it holds {found}, this network {sorted(map(str, live))}. "
                "It was made for another model, table mode or schema."
            )
        for key, value in live.items():
            _copy(value, saved[key], f"{path}.{key}")
    elif isinstance(live, ShardedTensor):
        for mine, other in zip(live.local_shards(), saved.local_shards(), strict=True):
            mine.tensor.detach().copy_(other.tensor)
    else:
        if live.shape != saved.shape:
            raise RunError(
                f"checkpoint, {path}: shape {tuple(saved.shape)}, this network's is "
                f"{tuple(live.shape)}. It was made for another model or schema."
            )
        live.detach().copy_(saved)


class _HalfSquare(torch.autograd.Function):
    """(l2 / 2) * ||W||^2 with a gradient of l2 * W: one temporary of W's size, not three."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, l2: float) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.l2 = l2
        return torch.linalg.vector_norm(weight).square() * (l2 / 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return weight * (grads[0] * ctx.l2), None
