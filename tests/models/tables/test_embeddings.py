"""From a batch to the tensors of each slot, in all table modes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from headwater.feature_store.errors import JobError
from headwater.feature_store.schema import EncodedColumn, Schema
from headwater.models.base import ModelConfig, Slot
from headwater.models.batch import Batch
from headwater.models.ctr.base import CTRModel
from headwater.models.network import build_network
from headwater.models.tables.embeddings import Embeddings
from headwater.models.tables.fused import table_name

MODES = ["dense", "fused", "lazy"]


class TwoSlots(CTRModel):
    """A main slot, first-order weights, and a context slot in an order of its own."""

    config_class = ModelConfig

    def __init__(self, config: ModelConfig, *, num_features: int) -> None:
        super().__init__(config, num_features=num_features)
        self.scale = torch.nn.Parameter(torch.ones(()))

    @classmethod
    def slots(cls, config: ModelConfig) -> dict[str, Slot]:
        return {
            "emb_BFD": Slot(config.embedding_dim),
            "first_BF1": Slot(1),
            "context_BCD": Slot(config.embedding_dim, ("city", "age", "tags")),
        }

    def forward(
        self, emb_BFD: torch.Tensor, first_BF1: torch.Tensor, context_BCD: torch.Tensor
    ) -> torch.Tensor:
        weight_F1 = torch.linspace(1, 2, emb_BFD.shape[1]).unsqueeze(1)
        emb_B = (emb_BFD * weight_F1).sum((1, 2))
        return self.scale * (emb_B + 0.5 * first_BF1.sum((1, 2)) - context_BCD.sum((1, 2)))


@pytest.fixture
def make_embeddings(mixed: Schema, make_strategy: Callable[..., Any]) -> Callable[..., Embeddings]:
    def make(mode: str, schema: Schema = mixed, dim: int = 8, seed: int = 1) -> Embeddings:
        config = ModelConfig(embedding_dim=dim)
        strategy = make_strategy(TwoSlots, schema, config=config, mode=mode, seed=seed)
        return strategy.placement.network.embeddings

    return make


def by_hand(
    schema: Schema, tables: dict[str, np.ndarray], numeric: dict[str, np.ndarray], batch: Batch
) -> dict[str, np.ndarray]:
    """Look every column up one by one: (B, D) by name."""
    found: dict[str, np.ndarray] = {}
    for column, place in schema.code_places():
        if column.name not in tables:
            continue
        codes = batch.codes_BW[:, place].numpy()
        rows = tables[column.name][codes] * (codes != 0)[..., None]
        pooled = rows.sum(1)
        if column.pooling == "mean":
            pooled /= np.maximum((codes != 0).sum(1), 1)[:, None]
        found[column.name] = pooled
    for i, column in enumerate(schema.dense):
        if column.name in numeric:
            found[column.name] = batch.dense_BD[:, i : i + 1].numpy() * numeric[column.name]
    return found


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("missing", [0.0, 0.4, 1.0])
def test_each_slot_holds_its_columns_in_order_pooled_without_padding(
    mode: str,
    missing: float,
    mixed: Schema,
    make_embeddings: Callable[..., Embeddings],
    make_batch: Callable[..., Batch],
) -> None:
    embeddings = make_embeddings(mode)
    batch = make_batch(mixed, 5, missing=missing)
    slots = embeddings(batch).embeddings
    tables, numeric = embeddings.tables(), embeddings.numeric_weights()
    every = [column.name for column in mixed.columns]
    for slot, names in {
        "emb_BFD": every,
        "first_BF1": every,
        "context_BCD": ["city", "age", "tags"],
    }.items():
        columns = by_hand(mixed, tables[slot], numeric[slot], batch)
        assert set(columns) == set(names)
        expected_BFD = np.stack([columns[name] for name in names], 1)
        found_BFD = slots[slot].detach().numpy()
        assert found_BFD.shape == expected_BFD.shape
        np.testing.assert_allclose(found_BFD, expected_BFD, atol=1e-7)


def test_both_modes_start_from_the_same_values(make_embeddings: Callable[..., Embeddings]) -> None:
    dense, fused = make_embeddings("dense"), make_embeddings("fused")
    for slot, tables in dense.tables().items():
        for column, table_ND in tables.items():
            np.testing.assert_array_equal(table_ND, fused.tables()[slot][column])
        for column, vector_D in dense.numeric_weights()[slot].items():
            np.testing.assert_array_equal(vector_D, fused.numeric_weights()[slot][column])


@pytest.mark.parametrize("mode", MODES)
def test_tables_start_small_with_row_zero_zero_and_depend_on_the_seed(
    mode: str, make_embeddings: Callable[..., Embeddings]
) -> None:
    table_ND = make_embeddings(mode).tables()["emb_BFD"]["user.id"]
    assert table_ND.shape == (23, 8)
    assert table_ND.dtype == np.float32
    assert (table_ND[0] == 0).all()
    assert 0.5e-4 < table_ND[1:].std() < 2e-4
    other_ND = make_embeddings(mode, seed=2).tables()["emb_BFD"]["user.id"]
    assert not np.array_equal(table_ND, other_ND)


@pytest.mark.parametrize("mode", MODES)
def test_row_zero_stays_zero_while_others_learn(
    mode: str,
    mixed: Schema,
    make_batch: Callable[..., Batch],
    make_strategy: Callable[..., Any],
    train_step: Callable[..., float],
) -> None:
    strategy = make_strategy(
        TwoSlots, config=ModelConfig(embedding_dim=8), mode=mode, sparse_l2=0.1
    )
    before = strategy.placement.network.embeddings.tables()
    for seed in range(3):
        train_step(strategy, make_batch(mixed, 32, seed))
    for slot, tables in strategy.placement.network.embeddings.tables().items():
        for column, table_ND in tables.items():
            assert (table_ND[0] == 0).all(), (slot, column)
            assert not np.array_equal(table_ND, before[slot][column])


@pytest.mark.parametrize("mode", MODES)
def test_tables_are_copies(
    mode: str,
    mixed: Schema,
    make_batch: Callable[..., Batch],
    make_strategy: Callable[..., Any],
    train_step: Callable[..., float],
) -> None:
    strategy = make_strategy(TwoSlots, config=ModelConfig(embedding_dim=4), mode=mode)
    table_ND = strategy.placement.network.embeddings.tables()["emb_BFD"]["city"]
    kept_ND = table_ND.copy()
    train_step(strategy, make_batch(mixed, 32))
    np.testing.assert_array_equal(table_ND, kept_ND)


@pytest.mark.parametrize(("source", "target"), [("dense", "fused"), ("fused", "dense")])
def test_tables_of_one_mode_load_into_the_other(
    source: str,
    target: str,
    mixed: Schema,
    make_embeddings: Callable[..., Embeddings],
    make_batch: Callable[..., Batch],
) -> None:
    old, new = make_embeddings(source, seed=1), make_embeddings(target, seed=2)
    new.load(old.tables(), old.numeric_weights())
    batch = make_batch(mixed, 6)
    for slot, emb_BFD in old(batch).embeddings.items():
        torch.testing.assert_close(new(batch).embeddings[slot], emb_BFD, atol=1e-7, rtol=0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kinds", ["codes", "dense"])
def test_a_schema_may_have_one_kind_of_column(
    mode: str,
    kinds: str,
    make_strategy: Callable[..., Any],
    make_column: Callable[..., EncodedColumn],
    make_schema: Callable[..., Schema],
    make_batch: Callable[..., Batch],
    train_step: Callable[..., float],
) -> None:
    cardinality = 5 if kinds == "codes" else 0
    schema = make_schema(make_column("a", cardinality), make_column("b", cardinality))
    strategy = make_strategy("deepfm", schema, mode=mode)
    batch = make_batch(schema, 16)
    assert train_step(strategy, batch) > train_step(strategy, batch)
    assert strategy.placement.logit(batch).shape == (16,)


def test_batches_of_many_sizes_in_turn_give_the_same_rows(
    mixed: Schema, make_embeddings: Callable[..., Embeddings], make_batch: Callable[..., Batch]
) -> None:
    embeddings = make_embeddings("fused")
    whole = make_batch(mixed, 12)
    expected_BFD = embeddings(whole).embeddings["emb_BFD"]
    for size in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 1):
        part = Batch(whole.codes_BW[:size], whole.dense_BD[:size], whole.label_B[:size])
        torch.testing.assert_close(embeddings(part).embeddings["emb_BFD"], expected_BFD[:size])


@pytest.mark.parametrize(("dim", "next_dim"), [(10, 12), (2, 4)])
def test_fused_tables_refuse_a_dimension_that_is_no_multiple_of_four(
    dim: int, next_dim: int, mixed: Schema
) -> None:
    with pytest.raises(JobError, match=rf"model\.embedding_dim: {dim} is .*Set {next_dim},"):
        build_network(mixed, TwoSlots, ModelConfig(embedding_dim=dim), "fused", 0)


def test_dense_tables_take_any_dimension(make_embeddings: Callable[..., Embeddings]) -> None:
    assert make_embeddings("dense", dim=10).tables()["emb_BFD"]["city"].shape == (7, 10)


def test_a_column_name_with_a_dot_makes_a_table_name_without_one() -> None:
    assert table_name("emb", "user.id") == "emb:user%2Eid"
    assert table_name("emb", "user%2Eid") != table_name("emb", "user.id")
