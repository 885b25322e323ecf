"""How weights learn: the optimisers of all table modes against their definitions, and checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from headwater.feature_store.errors import RunError
from headwater.feature_store.schema import EncodedColumn, Schema
from headwater.models.batch import Batch
from headwater.models.ctr.deepfm import DeepFM
from headwater.models.ctr.dnn import DNNConfig
from headwater.models.ctr.logistic_regression import LogisticRegression
from headwater.models.network import build_network
from headwater.models.placement.place import place
from headwater.models.placement.settings import LearnSettings
from headwater.models.strategy import OneLoss

CONFIG = DNNConfig(embedding_dim=8, hidden=(16,))


@pytest.fixture
def codes_only(
    make_column: Callable[..., EncodedColumn], make_schema: Callable[..., Schema]
) -> Schema:
    return make_schema(make_column("a", 6), make_column("b", 9), make_column("c", 5, length=3))


def main_table(strategy: OneLoss) -> torch.nn.Parameter:
    """Return the merged table of the main slot of a dense network."""
    return dict(strategy.placement.network.named_parameters())[
        "embeddings.store.slots.emb_BFD.weight_ND"
    ]


def table_gradients(strategy: OneLoss, batch: Batch) -> dict[str, dict[str, dict[int, np.ndarray]]]:
    """Return, by slot, column and row, the gradient of each row of a dense network that was read."""
    strategy.optimisers.zero_grad()
    logit_B = strategy.placement.logit(batch)
    F.binary_cross_entropy_with_logits(logit_B, batch.label_B).backward()
    parameters = dict(strategy.placement.network.named_parameters())
    gradients: dict[str, dict[str, dict[int, np.ndarray]]] = {}
    for layout in strategy.placement.network.embeddings.layouts:
        grad_ND = parameters[f"embeddings.store.slots.{layout.name}.weight_ND"].grad
        assert grad_ND is not None
        start = 0
        gradients[layout.name] = {}
        for column, codes in zip(layout.tables, layout.places, strict=True):
            rows = set(batch.codes_BW[:, codes].flatten().tolist()) - {0}
            gradients[layout.name][column.name] = {
                row: grad_ND[start + row].numpy().copy() for row in rows
            }
            start += column.cardinality
    return gradients


@pytest.mark.parametrize("model", ["dnn", "logistic_regression"])
@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_fused_tables_learn_by_row_wise_adagrad(
    model: str,
    l2: float,
    codes_only: Schema,
    make_strategy: Callable[..., OneLoss],
    make_batch: Callable[..., Batch],
    train_step: Callable[..., float],
) -> None:
    config = CONFIG if model == "dnn" else None
    options = {"schema": codes_only, "config": config, "dense_lr": 1e-12}
    fused = make_strategy(model, mode="fused", sparse_lr=0.05, sparse_l2=l2, **options)
    dense = make_strategy(model, mode="dense", **options)
    embeddings = dense.placement.network.embeddings
    expected = embeddings.tables()
    moments = {
        slot: {name: np.zeros(len(table)) for name, table in tables.items()}
        for slot, tables in expected.items()
    }
    for seed in range(4):
        batch = make_batch(codes_only, 12, seed)
        batch.label_B.fill_(1)  # gradients that cancel out would magnify rounding
        gradients = table_gradients(dense, batch)
        for slot, tables in expected.items():
            for name, table_ND in tables.items():
                for row, loss_D in gradients[slot][name].items():
                    grad_D = loss_D + l2 * table_ND[row]
                    moments[slot][name][row] += np.mean(grad_D**2)
                    table_ND[row] -= 0.05 * grad_D / (moments[slot][name][row] ** 0.5 + 1e-8)
        embeddings.load(expected, embeddings.numeric_weights())
        train_step(fused, batch)
    for slot, tables in fused.placement.network.embeddings.tables().items():
        for name, table_ND in tables.items():
            np.testing.assert_allclose(table_ND, expected[slot][name], atol=2e-5, err_msg=name)


def test_dense_tables_learn_by_adam_with_l2_over_all_rows(
    codes_only: Schema,
    make_strategy: Callable[..., OneLoss],
    make_batch: Callable[..., Batch],
    train_step: Callable[..., float],
) -> None:
    strategy = make_strategy("dnn", codes_only, config=CONFIG, sparse_lr=0.01, sparse_l2=0.1)
    twin = make_strategy("dnn", codes_only, config=CONFIG)
    tables = [main_table(twin)]
    others = list(twin.placement.network.model.parameters())
    reference = torch.optim.Adam(
        [{"params": tables, "lr": 0.01, "weight_decay": 0.1}, {"params": others}], lr=1e-3
    )
    for seed in range(3):
        batch = make_batch(codes_only, 12, seed)
        train_step(strategy, batch)
        reference.zero_grad()
        F.binary_cross_entropy_with_logits(twin.placement.logit(batch), batch.label_B).backward()
        reference.step()
    for name, weight in strategy.placement.network.state_dict().items():
        torch.testing.assert_close(
            weight, twin.placement.network.state_dict()[name], atol=1e-6, rtol=1e-5
        )


def test_the_penalty_is_half_l2_times_the_sum_of_squares_of_everything_it_covers(
    mixed: Schema, make_strategy: Callable[..., OneLoss]
) -> None:
    strategy = make_strategy("dnn", mixed, config=CONFIG, sparse_l2=0.3, dense_l2=0.5)
    embeddings = strategy.placement.network.embeddings
    arrays = [
        array
        for slots in (embeddings.tables(), embeddings.numeric_weights())
        for columns in slots.values()
        for array in columns.values()
    ]
    expected = 0.15 * sum(float((array**2).sum()) for array in arrays)
    expected += 0.25 * sum(
        w.square().sum().item() for w in strategy.placement.network.model.parameters()
    )
    assert strategy.optimisers.penalty().item() == pytest.approx(expected, rel=1e-5)


def test_doubling_l2_doubles_the_gradient_of_a_row_that_is_not_in_the_batch(
    codes_only: Schema, make_strategy: Callable[..., OneLoss]
) -> None:
    gradients: list[torch.Tensor] = []
    for l2 in (0.1, 0.2):
        strategy = make_strategy("dnn", codes_only, config=CONFIG, sparse_l2=l2)
        strategy.optimisers.penalty().backward()
        table = main_table(strategy)
        assert table.grad is not None
        torch.testing.assert_close(table.grad, l2 * table.detach())
        gradients.append(table.grad)
    torch.testing.assert_close(gradients[1], 2 * gradients[0])


def test_fused_tables_keep_rows_that_are_not_in_the_batch_whatever_the_penalty(
    codes_only: Schema,
    make_strategy: Callable[..., OneLoss],
    make_batch: Callable[..., Batch],
    train_step: Callable[..., float],
) -> None:
    strategy = make_strategy("dnn", codes_only, config=CONFIG, mode="fused", sparse_l2=0.5)
    before = strategy.placement.network.embeddings.tables()["emb_BFD"]["b"]
    batch = make_batch(codes_only, 2)
    train_step(strategy, batch)
    after = strategy.placement.network.embeddings.tables()["emb_BFD"]["b"]
    read = set(batch.codes_BW[:, 1].tolist()) - {0}
    changed = {row for row in range(len(after)) if not np.array_equal(after[row], before[row])}
    assert changed == read


@pytest.mark.parametrize("mode", ["dense", "fused", "lazy"])
def test_learning_rates_fall_together_down_to_the_floor(
    mode: str,
    codes_only: Schema,
    make_strategy: Callable[..., OneLoss],
    make_batch: Callable[..., Batch],
    train_step: Callable[..., float],
) -> None:
    strategy = make_strategy("deepfm", codes_only, mode=mode, sparse_lr=0.1, dense_lr=1e-3)
    batch = make_batch(codes_only, 8, missing=0)
    train_step(strategy, batch)
    strategy.lr_scale(0.1, 1e-3)
    assert strategy.optimisers.lr == pytest.approx({"sparse": 0.01, "dense": 1e-3})
    strategy.lr_scale(0.1, 5e-3)
    assert strategy.optimisers.lr == pytest.approx({"sparse": 5e-3, "dense": 1e-3}), (
        "a drop raised a rate"
    )
    strategy.lr_scale(0.0, 0.0)
    before = {key: value.clone() for key, value in strategy.placement.weights().items()}
    train_step(strategy, batch)
    after = strategy.placement.weights()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_clipping_scales_to_the_norm_and_returns_what_it_was(
    codes_only: Schema,
    make_strategy: Callable[..., OneLoss],
    make_batch: Callable[..., Batch],
) -> None:
    strategy = make_strategy("dnn", codes_only, config=CONFIG)
    weights = list(strategy.placement.network.parameters())

    def norm() -> float:
        return torch.cat([w.grad.flatten() for w in weights if w.grad is not None]).norm().item()

    strategy.optimisers.zero_grad()
    strategy.placement.logit(make_batch(codes_only, 8)).sum().backward()
    whole = norm()
    assert strategy.optimisers.clip_grad(2 * whole).item() == pytest.approx(whole)
    assert norm() == pytest.approx(whole)
    assert strategy.optimisers.clip_grad(whole / 4).item() == pytest.approx(whole)
    assert norm() == pytest.approx(whole / 4, rel=1e-5)


@pytest.mark.parametrize("mode", ["dense", "fused", "lazy"])
def test_weights_load_without_the_optimisers(
    mode: str,
    mixed: Schema,
    make_strategy: Callable[..., OneLoss],
    make_batch: Callable[..., Batch],
    train_step: Callable[..., float],
) -> None:
    strategy = make_strategy("dnn", mixed, config=CONFIG, mode=mode)
    batch = make_batch(mixed, 8)
    best = {key: value.clone() for key, value in strategy.placement.weights().items()}
    logit_B = strategy.placement.logit(batch).detach()
    train_step(strategy, batch)
    assert not torch.equal(strategy.placement.logit(batch), logit_B)
    strategy.placement.load_weights(best)
    assert torch.equal(strategy.placement.logit(batch), logit_B)


@pytest.mark.parametrize("mode", ["dense", "fused", "lazy"])
def test_a_network_placed_to_score_gives_the_bits_of_the_one_that_learned(
    mode: Any,
    mixed: Schema,
    make_strategy: Callable[..., OneLoss],
    make_batch: Callable[..., Batch],
    train_step: Callable[..., float],
) -> None:
    learner = make_strategy("deepfm", mixed, mode=mode, sparse_l2=1e-3)
    for seed in range(3):
        train_step(learner, make_batch(mixed, 16, seed))
    learner.placement.module.eval()
    network = build_network(mixed, DeepFM, DeepFM.config_class(), mode, seed=2)
    placement = place(network, torch.device("cpu"))
    placement.load_weights(learner.placement.weights())
    placement.module.eval()
    batch = make_batch(mixed, 64, 9)
    assert torch.equal(placement.logit(batch), learner.placement.logit(batch))
    for name, weight in learner.placement.weights().items():
        assert torch.equal(placement.weights()[name], weight), name
    assert placement.fused is None


@pytest.mark.parametrize("mode", ["dense", "fused", "lazy"])
def test_a_checkpoint_of_another_network_is_refused(
    mode: str, mixed: Schema, codes_only: Schema, make_strategy: Callable[..., OneLoss]
) -> None:
    strategy = make_strategy("dnn", mixed, config=CONFIG, mode=mode)
    wider = make_strategy(
        "dnn", mixed, config=CONFIG.model_copy(update={"hidden": (17,)}), mode=mode
    )
    with pytest.raises(RunError, match=r"shape \(17, 48\), expected \(16, 48\)"):
        strategy.placement.load_weights(wider.placement.weights())
    other = make_strategy("fm", mixed, mode=mode)
    with pytest.raises(RunError, match="made for another model"):
        strategy.load_state_dict(other.state_dict())


def test_a_network_without_dense_weights_trains(
    codes_only: Schema, make_batch: Callable[..., Batch], train_step: Callable[..., Any]
) -> None:
    class Sum(LogisticRegression):
        def __init__(self, config: Any, *, num_features: int) -> None:
            super().__init__(config, num_features=num_features)
            del self.bias

        def forward(self, first_BF1: torch.Tensor) -> torch.Tensor:
            return first_BF1.sum((1, 2))

    network = build_network(codes_only, Sum, Sum.config_class(), "fused", 0)
    learn = LearnSettings(sparse_lr=0.1, dense_lr=0.1)
    strategy = OneLoss(place(network, torch.device("cpu"), learn), learn)
    batch = make_batch(codes_only, 16)
    assert train_step(strategy, batch) > train_step(strategy, batch)
