"""What every registered model must do, whatever it computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from headwater.feature_store.schema import EncodedColumn, Schema
from headwater.models.batch import Batch
from headwater.models.network import count_parameters
from headwater.models.registry import MODELS, load_model
from headwater.models.sharding import Placement

pytestmark = pytest.mark.parametrize("name", MODELS)
MODES = ["dense", "fused", "lazy"]
SMALL: dict[str, dict[str, Any]] = {
    "logistic_regression": {},
    "fm": {"embedding_dim": 8},
    "dnn": {"embedding_dim": 8, "hidden": (32, 16), "dropout": 0.1, "batch_norm": True},
    "dual_mlp": {"embedding_dim": 8, "hidden_1": (32, 16), "hidden_2": (16,), "dropout_1": 0.1},
    "deepfm": {"embedding_dim": 8, "hidden": (32, 16), "dropout": 0.1},
    "dcnv2": {"embedding_dim": 8, "hidden": (32, 16), "structure": "stacked"},
    "finalmlp": {
        "embedding_dim": 8,
        "hidden_1": (32, 16),
        "hidden_2": (16,),
        "num_heads": 4,
        "gate_hidden": (16,),
        "gate_1_context": ("user.id",),
        "gate_2_context": ("price", "tags"),
    },
}


@pytest.fixture
def make(name: str, make_placement: Callable[..., Placement]) -> Callable[..., Placement]:
    def make_one(schema: Schema | None = None, **options: Any) -> Placement:
        config = load_model(name).config_class(**{**SMALL[name], **options.pop("changes", {})})
        schemas = () if schema is None else (schema,)
        return make_placement(name, *schemas, config=config, **options)

    return make_one


def predict(placement: Placement, batch: Batch) -> torch.Tensor:
    placement.module.eval()
    with torch.no_grad():
        return placement.module(batch)


def rows(batch: Batch, index: Any) -> Batch:
    return Batch(batch.codes_BW[index], batch.dense_BD[index], batch.label_B[index])


@pytest.mark.parametrize("mode", MODES)
def test_a_seeded_run_repeats_bit_by_bit(
    name: str,
    mode: str,
    mixed: Schema,
    make: Callable[..., Placement],
    make_batch: Callable[..., Batch],
    train_step: Callable[..., float],
) -> None:
    losses: list[list[float]] = []
    for _ in range(2):
        placement = make(mode=mode)
        torch.manual_seed(3)
        losses.append([train_step(placement, make_batch(mixed, 16, seed)) for seed in range(4)])
    assert losses[0] == losses[1]


def test_its_config_goes_through_json_and_back(name: str) -> None:
    config_class = load_model(name).config_class
    config = config_class(**SMALL[name])
    assert config_class.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("mode", MODES)
def test_saving_and_loading_changes_no_logit_and_no_later_step(
    name: str,
    mode: str,
    mixed: Schema,
    tmp_path: Path,
    make: Callable[..., Placement],
    make_batch: Callable[..., Batch],
    train_step: Callable[..., float],
) -> None:
    old, new = make(mode=mode, seed=1), make(mode=mode, seed=2)
    batch = make_batch(mixed, 16)
    for seed in range(3):
        train_step(old, make_batch(mixed, 16, seed))
    old.lr_scale(0.5, 0)
    torch.save(old.state_dict(), tmp_path / "state.pt")
    new.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(predict(old, batch), predict(new, batch))
    logits: list[torch.Tensor] = []
    for placement in (old, new):
        placement.module.train()
        torch.manual_seed(3)
        for seed in range(2):
            train_step(placement, make_batch(mixed, 16, seed))
        logits.append(predict(placement, batch))
    assert torch.equal(*logits)


@pytest.mark.parametrize("mode", MODES)
def test_a_row_scores_the_same_alone_among_others_and_in_any_order(
    name: str,
    mode: str,
    mixed: Schema,
    make: Callable[..., Placement],
    make_batch: Callable[..., Batch],
) -> None:
    placement = make(mode=mode)
    batch = make_batch(mixed, 9)
    logit_B = predict(placement, batch)
    assert logit_B.shape == (9,)
    alone_B = torch.cat([predict(placement, rows(batch, [i])) for i in range(9)])
    torch.testing.assert_close(alone_B, logit_B, atol=1e-6, rtol=1e-5)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        predict(placement, rows(batch, order)), logit_B[order], atol=1e-6, rtol=1e-5
    )


def test_both_modes_give_equal_logits_from_equal_tables(
    name: str,
    mixed: Schema,
    make: Callable[..., Placement],
    make_batch: Callable[..., Batch],
    train_step: Callable[..., float],
) -> None:
    dense, fused = make(mode="dense"), make(mode="fused")
    batch = make_batch(mixed, 16)
    torch.testing.assert_close(predict(dense, batch), predict(fused, batch))
    assert count_parameters(dense.network) == count_parameters(fused.network)
    train_step(fused, batch)
    source, target = fused.network, dense.network
    target.embeddings.load(source.embeddings.tables(), source.embeddings.numeric_weights())
    target.model.load_state_dict(source.model.state_dict())
    torch.testing.assert_close(predict(dense, batch), predict(fused, batch))


@pytest.mark.parametrize("mode", MODES)
def test_row_zero_stays_zero_in_training(
    name: str,
    mode: str,
    mixed: Schema,
    make: Callable[..., Placement],
    make_batch: Callable[..., Batch],
    train_step: Callable[..., float],
) -> None:
    placement = make(mode=mode, sparse_l2=0.01)
    for seed in range(2):
        train_step(placement, make_batch(mixed, 16, seed))
    for tables in placement.network.embeddings.tables().values():
        assert not any(table_ND[0].any() for table_ND in tables.values())


@pytest.mark.parametrize("mode", MODES)
def test_it_learns_64_rows_by_heart(
    name: str,
    mode: str,
    make: Callable[..., Placement],
    make_batch: Callable[..., Batch],
    make_column: Callable[..., EncodedColumn],
    make_schema: Callable[..., Schema],
    train_step: Callable[..., float],
) -> None:
    columns = [make_column(f"c{i}", 50) for i in range(4)]
    schema = make_schema(make_column("user.id", 80), *columns, make_column("price", 0))
    schema = make_schema(*schema.columns, make_column("tags", 30, length=3))
    batch = make_batch(schema, 64, missing=0)
    dropout = {key: 0 for key in SMALL[name] if key.startswith("dropout")}
    if name == "finalmlp":
        dropout = {"dropout_1": 0, "dropout_2": 0}
    placement = make(schema, mode=mode, sparse_lr=0.05, dense_lr=0.005, changes=dropout)
    for step in range(300):
        train_step(placement, batch)
        if step % 25 == 24:
            logit_B = predict(placement, batch)
            placement.module.train()
            if roc_auc_score(batch.label_B.numpy(), logit_B.numpy()) == 1.0:
                return
    pytest.fail("AUC stayed below 1")


def test_an_all_missing_row_has_a_finite_logit(
    name: str,
    mixed: Schema,
    make: Callable[..., Placement],
    make_batch: Callable[..., Batch],
) -> None:
    batch = make_batch(mixed, 3, missing=1.0)
    assert np.isfinite(predict(make(mode="fused"), batch).numpy()).all()
