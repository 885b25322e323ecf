"""Lazy tables against Adam over whole tables, which they stand for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from headwater.feature_store.schema import EncodedColumn, Schema
from headwater.models.base import Slot
from headwater.models.batch import Batch
from headwater.models.ctr.dnn import DNNConfig
from headwater.models.strategy import OneLoss
from headwater.models.tables.layout import lay_out
from headwater.models.tables.lazy import LazyAdam, LazyTables

CONFIG = DNNConfig(embedding_dim=8, hidden=(16,))


@pytest.fixture
def schema(make_column: Callable[..., EncodedColumn], make_schema: Callable[..., Schema]) -> Schema:
    return make_schema(make_column("a", 6), make_column("b", 40), make_column("c", 9, length=3))


def every_row(schema: Schema) -> Batch:
    """Return examples that together read every row."""
    size = max(column.cardinality for column in schema.codes)
    codes = [
        torch.arange(size * column.length).remainder(column.cardinality).view(size, -1)
        for column in schema.codes
    ]
    return Batch(torch.cat(codes, 1).int(), torch.zeros(size, 0), (torch.arange(size) % 2).float())


def tables(strategy: OneLoss) -> dict[str, np.ndarray]:
    return strategy.placement.network.embeddings.tables()["emb_BFD"]


@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_rows_that_every_batch_reads_learn_exactly_as_dense_ones(
    l2: float,
    schema: Schema,
    make_strategy: Callable[..., OneLoss],
    train_step: Callable[..., float],
) -> None:
    lazy, dense = (
        make_strategy("dnn", schema, config=CONFIG, mode=mode, sparse_lr=0.01, sparse_l2=l2)
        for mode in ("lazy", "dense")
    )
    for _ in range(5):
        train_step(lazy, every_row(schema))
        train_step(dense, every_row(schema))
    for name, table_ND in tables(dense).items():
        np.testing.assert_allclose(tables(lazy)[name], table_ND, atol=2e-6, err_msg=name)


@pytest.fixture
def one_table(
    make_column: Callable[..., EncodedColumn], make_schema: Callable[..., Schema]
) -> LazyTables:
    schema = make_schema(make_column("a", 50))
    store = LazyTables(lay_out(schema, {"emb": Slot(4)}), width=1, seed=0)
    store.merged()["emb"].weight_ND[1:].normal_(generator=torch.Generator().manual_seed(1))
    return store


@pytest.mark.parametrize("l2", [0.0, 0.01, 0.1])
@pytest.mark.parametrize("missed", [1, 7, 60, 400])
def test_a_row_that_misses_steps_ends_where_adam_would_take_it(
    l2: float, missed: int, one_table: LazyTables
) -> None:
    adam = LazyAdam(one_table, lr=1e-3, l2=l2)
    expected_ND = torch.nn.Parameter(one_table.merged()["emb"].weight_ND.clone())
    reference = torch.optim.Adam([expected_ND], lr=1e-3, weight_decay=l2)
    generator = torch.Generator().manual_seed(2)
    start_ND = expected_ND.detach().clone()
    # All rows are read for a while; then only row 1 is.
    for step in range(40 + missed):
        rows_U = torch.arange(1, 50) if step < 40 else torch.tensor([1])
        grad_ND = torch.zeros_like(expected_ND)
        grad_ND[rows_U] = torch.randn(len(rows_U), 4, generator=generator) + 0.5
        rows = adam.take("emb", rows_U)
        rows.values_RD.grad = grad_ND[rows_U] + l2 * rows.values_RD.detach()
        adam.step(adam.merged([rows]))
        expected_ND.grad = grad_ND
        reference.step()
    adam.settle()
    found_ND = one_table.merged()["emb"].weight_ND
    moved = (expected_ND.detach() - start_ND)[2:].norm()
    assert (found_ND - expected_ND.detach())[2:].norm() < 0.05 * moved
    torch.testing.assert_close(found_ND[1], expected_ND.detach()[1], atol=1e-5, rtol=1e-4)


def test_a_step_leaves_rows_that_its_batch_does_not_read_for_later(
    schema: Schema,
    make_strategy: Callable[..., OneLoss],
    make_batch: Callable[..., Batch],
    train_step: Callable[..., float],
) -> None:
    strategy = make_strategy("dnn", schema, config=CONFIG, mode="lazy", sparse_l2=0.5)
    train_step(strategy, every_row(schema))
    weight_ND = strategy.placement.weights()["embeddings.store.slots.emb_BFD.weight_ND"]
    before_ND = weight_ND.clone()
    batch = make_batch(schema, 2)
    train_step(strategy, batch)
    read = {6 + code for code in batch.codes_BW[:, 1].tolist() if code}
    for row in range(6, 46):
        assert torch.equal(weight_ND[row], before_ND[row]) == (row not in read or row == 6)
    strategy.placement.module.eval()
    assert all(not torch.equal(weight_ND[row], before_ND[row]) for row in range(7, 46))


def test_the_rows_of_lazy_tables_are_clipped_with_all_other_weights(
    schema: Schema, make_strategy: Callable[..., OneLoss], make_batch: Callable[..., Batch]
) -> None:
    norms: list[float] = []
    for mode in ("dense", "lazy"):
        strategy = make_strategy("dnn", schema, config=CONFIG, mode=mode)
        strategy.optimisers.zero_grad()
        logit_B, looked = strategy.placement.module(make_batch(schema, 8))
        logit_B.sum().backward()
        rows = strategy.optimisers.rows(looked)
        norms.append(strategy.optimisers.clip_grad(1e-3, rows).item())
        assert strategy.optimisers.clip_grad(1e3, rows).item() == pytest.approx(1e-3, rel=1e-2)
    assert norms[1] == pytest.approx(norms[0])


def test_scoring_takes_no_rows_out_and_changed_rates_move_none(
    schema: Schema,
    make_strategy: Callable[..., OneLoss],
    make_batch: Callable[..., Batch],
    train_step: Callable[..., float],
) -> None:
    strategy = make_strategy("dnn", schema, config=CONFIG, mode="lazy", sparse_l2=0.1)
    batch = make_batch(schema, 8)
    train_step(strategy, batch)
    before = tables(strategy)
    strategy.lr_scale(0.5, 0)
    strategy.placement.module.eval()
    with torch.no_grad():
        _, looked = strategy.placement.module(batch)
    assert looked.rows == ()
    assert strategy.optimisers.penalty(looked).item() == 0
    strategy.lr_scale(0.5, 0)
    for name, table_ND in tables(strategy).items():
        assert np.array_equal(table_ND, before[name])


def test_passes_before_a_step_learn_by_the_sum_of_their_gradients(
    schema: Schema, make_strategy: Callable[..., OneLoss], make_batch: Callable[..., Batch]
) -> None:
    lazy, dense = (
        make_strategy("dnn", schema, config=CONFIG, mode=mode, sparse_lr=0.01, sparse_l2=0.1)
        for mode in ("lazy", "dense")
    )
    every = every_row(schema)
    passes = [every, make_batch(schema, 5, 1), make_batch(schema, 7, 2)]
    for _ in range(3):
        for strategy in (lazy, dense):
            found = [strategy.placement.module(batch) for batch in passes]
            looked = [each for _, each in found]
            strategy.optimisers.zero_grad()
            loss = sum(weight * logit_B.mean() for weight, (logit_B, _) in enumerate(found, 1))
            penalty = strategy.optimisers.penalty(*looked)
            (loss + penalty).backward()
            strategy.optimisers.step(*looked)
    for name, table_ND in tables(dense).items():
        np.testing.assert_allclose(tables(lazy)[name], table_ND, atol=2e-6, err_msg=name)


def test_a_pass_from_before_another_step_still_counts(
    schema: Schema, make_strategy: Callable[..., OneLoss], make_batch: Callable[..., Batch]
) -> None:
    lazy, dense = (
        make_strategy("dnn", schema, config=CONFIG, mode=mode, sparse_lr=0.01, dense_lr=1e-12)
        for mode in ("lazy", "dense")
    )
    for strategy in (lazy, dense):
        optimisers, module = strategy.optimisers, strategy.placement.module
        (first_B, first), (second_B, second) = (module(every_row(schema)) for _ in range(2))
        for logit_B, looked in ((first_B, first), (second_B, second)):
            optimisers.zero_grad()
            logit_B.sum().backward()
            optimisers.step(looked)
    for name, table_ND in tables(dense).items():
        np.testing.assert_allclose(tables(lazy)[name], table_ND, atol=2e-6, err_msg=name)
