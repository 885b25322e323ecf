"""What every registered click model must do, whatever it computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from headwater.feature_store.schema import EncodedColumn, Schema
from headwater.models.batch import Batch
from headwater.models.network import count_parameters
from headwater.models.registry import CTR_MODELS, load_model
from headwater.models.strategy import OneLoss

pytestmark = pytest.mark.parametrize("name", CTR_MODELS)
MODES = ["dense", "fused", "lazy"]
SMALL: dict[str, dict[str, Any]] = {
    "fm": {"embedding_dim": 8},
    "dnn": {"embedding_dim": 8, "hidden": (32, 16), "dropout": 0.1, "batch_norm": True},
    "dual_mlp": {"embedding_dim": 8, "hidden_1": (32, 16), "hidden_2": (16,), "dropout_1": 0.1},
    "deepfm": {"embedding_dim": 8, "hidden": (32, 16), "dropout": 0.1},
    "dcnv2": {"embedding_dim": 8, "hidden": (32, 16), "structure": "stacked"},
    "optinter": {
        "embedding_dim": 8,
        "interaction_dim": 4,
        "hidden": (32, 16),
        "cross": ("user.id", "tags"),
        "architecture": [{"columns": ("user.id", "tags"), "method": "factorise"}],
    },
    "optembed": {"base": {"type": "deepfm", "embedding_dim": 8, "hidden": (32, 16)}},
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
"""Settings of models that are too large for a test by default, or that want more shown."""


@dataclass(frozen=True)
class Trial:
    """What the tests do with a model: place it, make batches for it, train it by a step."""

    name: str
    place: Callable[..., OneLoss]
    make_batch: Callable[..., Batch]
    step: Callable[[OneLoss, Batch], float]
    schema: Schema

    def make(self, schema: Schema | None = None, **options: Any) -> OneLoss:
        """Return the model placed, on the columns of every kind unless others are given."""
        settings = {**SMALL.get(self.name, {}), **options.pop("changes", {})}
        config = load_model(self.name).config_class(**settings)
        return self.place(self.name, schema or self.schema, config=config, **options)

    def batch(self, size: int, seed: int = 0, **options: Any) -> Batch:
        """Return a random batch of these columns."""
        return self.make_batch(self.schema, size, seed, **options)


@pytest.fixture
def trial(
    name: str,
    mixed: Schema,
    make_strategy: Callable[..., OneLoss],
    make_batch: Callable[..., Batch],
    train_step: Callable[..., float],
) -> Trial:
    return Trial(name, make_strategy, make_batch, train_step, mixed)


def predict(strategy: OneLoss, batch: Batch) -> torch.Tensor:
    strategy.placement.module.eval()
    with torch.no_grad():
        return strategy.placement.logit(batch)


def rows(batch: Batch, index: Any) -> Batch:
    return Batch(batch.codes_BW[index], batch.dense_BD[index], batch.label_B[index])


@pytest.mark.parametrize("mode", MODES)
def test_a_seeded_run_repeats_bit_by_bit(trial: Trial, mode: str) -> None:
    losses: list[list[float]] = []
    for _ in range(2):
        strategy = trial.make(mode=mode)
        torch.manual_seed(3)
        losses.append([trial.step(strategy, trial.batch(16, seed)) for seed in range(4)])
    assert losses[0] == losses[1]


def test_its_config_goes_through_json_and_back(name: str) -> None:
    config_class = load_model(name).config_class
    config = config_class(**SMALL.get(name, {}))
    assert config_class.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("mode", MODES)
def test_saving_and_loading_changes_no_logit_and_no_later_step(
    trial: Trial, mode: str, tmp_path: Path
) -> None:
    old, new = trial.make(mode=mode, seed=1), trial.make(mode=mode, seed=2)
    batch = trial.batch(16)
    for seed in range(3):
        trial.step(old, trial.batch(16, seed))
    old.lr_scale(0.5, 0)
    saved = {"weights": old.placement.weights(), "rest": old.state_dict()}
    torch.save(saved, tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    new.placement.load_weights(saved["weights"])
    new.load_state_dict(saved["rest"])
    assert torch.equal(predict(old, batch), predict(new, batch))
    logits: list[torch.Tensor] = []
    for strategy in (old, new):
        strategy.placement.module.train()
        torch.manual_seed(3)
        for seed in range(2):
            trial.step(strategy, trial.batch(16, seed))
        logits.append(predict(strategy, batch))
    assert torch.equal(*logits)


@pytest.mark.parametrize("mode", MODES)
def test_a_row_scores_the_same_alone_among_others_and_in_any_order(trial: Trial, mode: str) -> None:
    strategy = trial.make(mode=mode)
    batch = trial.batch(9)
    logit_B = predict(strategy, batch)
    assert logit_B.shape == (9,)
    alone_B = torch.cat([predict(strategy, rows(batch, [i])) for i in range(9)])
    torch.testing.assert_close(alone_B, logit_B, atol=1e-6, rtol=1e-5)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        predict(strategy, rows(batch, order)), logit_B[order], atol=1e-6, rtol=1e-5
    )


def test_both_modes_give_equal_logits_from_equal_tables(trial: Trial) -> None:
    dense, fused = trial.make(mode="dense"), trial.make(mode="fused")
    batch = trial.batch(16)
    torch.testing.assert_close(predict(dense, batch), predict(fused, batch))
    assert count_parameters(dense.placement.network) == count_parameters(fused.placement.network)
    trial.step(fused, batch)
    source, target = fused.placement.network, dense.placement.network
    target.embeddings.load(source.embeddings.tables(), source.embeddings.numeric_weights())
    target.model.load_state_dict(source.model.state_dict())
    torch.testing.assert_close(predict(dense, batch), predict(fused, batch))


@pytest.mark.parametrize("mode", MODES)
def test_row_zero_stays_zero_in_training(trial: Trial, mode: str) -> None:
    strategy = trial.make(mode=mode, sparse_l2=0.01)
    for seed in range(2):
        trial.step(strategy, trial.batch(16, seed))
    for tables in strategy.placement.network.embeddings.tables().values():
        assert not any(table_ND[0].any() for table_ND in tables.values())


@pytest.mark.parametrize("mode", MODES)
def test_it_learns_64_rows_by_heart(
    trial: Trial,
    mode: str,
    make_column: Callable[..., EncodedColumn],
    make_schema: Callable[..., Schema],
) -> None:
    columns = [make_column(f"c{i}", 50) for i in range(4)]
    schema = make_schema(make_column("user.id", 80), *columns, make_column("price", 0))
    schema = make_schema(*schema.columns, make_column("tags", 30, length=3))
    batch = trial.make_batch(schema, 64, missing=0)
    dropout = {key: 0 for key in SMALL.get(trial.name, {}) if key.startswith("dropout")}
    if trial.name == "finalmlp":
        dropout = {"dropout_1": 0, "dropout_2": 0}
    strategy = trial.make(schema, mode=mode, sparse_lr=0.05, dense_lr=0.005, changes=dropout)
    for step in range(300):
        trial.step(strategy, batch)
        if step % 25 == 24:
            logit_B = predict(strategy, batch)
            strategy.placement.module.train()
            if roc_auc_score(batch.label_B.numpy(), logit_B.numpy()) == 1.0:
                return
    pytest.fail("AUC stayed below 1")


def test_an_all_missing_row_has_a_finite_logit(trial: Trial) -> None:
    batch = trial.batch(3, missing=1.0)
    assert np.isfinite(predict(trial.make(mode="fused"), batch).numpy()).all()
