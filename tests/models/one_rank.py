"""One rank of the runs that test_place.py starts: `one_rank.py RANK WORLD_SIZE FOLDER`.

Trains on its share of each batch and writes what it saw to `FOLDER/<world size>-<sharding>.pt`.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from headwater.feature_store.errors import JobError
from headwater.feature_store.schema import Schema
from headwater.models.batch import Batch
from headwater.models.ctr.architecture import Pair
from headwater.models.ctr.finalmlp import FinalMLPConfig
from headwater.models.ctr.optembed_config import DeepFMBase, OptEmbedConfig
from headwater.models.ctr.optinter_config import OptInterConfig
from headwater.models.placement import plan as planning
from headwater.models.strategy import OneLoss

conftest: Any = importlib.import_module("conftest")
CONFIG = FinalMLPConfig(
    embedding_dim=8,
    hidden_1=(16,),
    hidden_2=(8,),
    dropout_1=0,
    dropout_2=0,
    batch_norm_1=False,
    batch_norm_2=False,
    num_heads=2,
    gate_hidden=(8,),
    gate_1_context=("user.id",),
    gate_2_context=("price", "tags"),
)
SIZE = 33
CROSSED: Schema = conftest._make_schema(
    *conftest.MIXED.columns, conftest._make_column("user.id x city", 40)
)


def new_strategy(seed: int = 1, sparse_l2: float = 0.0) -> OneLoss:
    return conftest._make_strategy(
        "finalmlp",
        config=CONFIG,
        mode="fused",
        seed=seed,
        sparse_lr=0.05,
        sparse_l2=sparse_l2,
        dense_lr=0.01,
        dense_l2=0.01,
    )


def new_pruned() -> OneLoss:
    """Return what OptEmbed trains after its search: narrow tables, some of which lost rows."""
    base = DeepFMBase(type="deepfm", embedding_dim=8, hidden=(16,))
    names = [column.name for column in conftest.MIXED.columns]
    config = OptEmbedConfig(
        base=base,
        dimensions=dict(zip(names, (4, 8, 4, 8, 4, 4), strict=True)),
        kept_rows={"user.id": 9, "tags": 3, "city": 0},
    )
    return conftest._make_strategy(
        "optembed", config=config, mode="fused", sparse_lr=0.05, dense_lr=0.01
    )


def new_interacting() -> OneLoss:
    """Return what OptInter trains after its search: a memorised pair, and one that is factorised."""
    config = OptInterConfig(
        embedding_dim=4,
        interaction_dim=4,
        hidden=(16,),
        cross=("user.id", "city"),
        architecture=(
            Pair(columns=("user.id", "city"), method="memorise"),
            Pair(columns=("city", "user.id"), method="factorise"),
        ),
    )
    return conftest._make_strategy(
        "optinter", CROSSED, config=config, mode="fused", sparse_lr=0.05, dense_lr=0.01
    )


def losses(strategy: OneLoss, seeds: range, schema: Schema = conftest.MIXED) -> list[float]:
    """Train a step a seed on this rank's share of a batch; return the losses of the batches."""
    found: list[float] = []
    for seed in seeds:
        whole = conftest._make_batch(schema, SIZE, seed)
        mine = slice(dist.get_rank(), None, dist.get_world_size())
        batch = Batch(whole.codes_BW[mine], whole.dense_BD[mine], whole.label_B[mine])
        # The sum of the means that ranks are given is that of the batch, as often as there are ranks.
        total = strategy.step(batch, SIZE, lambda _: None).mean * (SIZE / dist.get_world_size())
        dist.all_reduce(total)
        found.append(total.item() / SIZE)
    return found


def run(folder: Path, sharding: str) -> dict[str, Any]:
    planning.BIG_TABLE_BYTES = 0 if sharding == "row_wise" else 2**30
    strategy = new_strategy()
    first = losses(strategy, range(4))
    state = whole_state(strategy)
    dcp.save(state, checkpoint_id=folder / f"{dist.get_world_size()}-{sharding}")
    tables = strategy.placement.network.embeddings.tables()
    strategy.lr_scale(0.5, 0)
    strategy.lr_scale(2.0, 0)
    then = losses(strategy, range(4, 6))

    resumed = new_strategy(seed=2)
    state = whole_state(resumed)
    dcp.load(state, checkpoint_id=folder / f"{dist.get_world_size()}-{sharding}")
    resumed.placement.load_weights(state["model"])
    resumed.load_state_dict(state)
    return {
        "losses": first + then,
        "losses_resumed": first + losses(resumed, range(4, 6)),
        "losses_pruned": losses(new_pruned(), range(4)),
        "losses_interacting": losses(new_interacting(), range(4), CROSSED),
        "losses_l2": losses(new_strategy(sparse_l2=0.1), range(3)),
        "tables": {
            f"{slot} {name}": torch.from_numpy(table_ND)
            for slot, columns in tables.items()
            for name, table_ND in columns.items()
        },
        "weights": dict(strategy.placement.network.model.state_dict()),
        "shardings": shardings(strategy),
        "refusals": {mode: refusal(mode) for mode in ("dense", "lazy")},
    }


def whole_state(strategy: OneLoss) -> dict[str, Any]:
    return {"model": strategy.placement.weights(), **strategy.state_dict()}


def shardings(strategy: OneLoss) -> list[str]:
    module: Any = strategy.placement.module
    return sorted(planning.sharding_types(module.plan))


def refusal(mode: str) -> str | None:
    try:
        conftest._make_strategy("fm", mode=mode)
    except JobError as error:
        return str(error)
    return None


def main() -> None:
    rank, world_size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/{world_size}-store",
        rank=rank,
        world_size=world_size,
    )
    for sharding in ("table_wise", "row_wise"):
        seen = run(folder, sharding)
        if rank == 0:
            torch.save(seen, folder / f"{world_size}-{sharding}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
