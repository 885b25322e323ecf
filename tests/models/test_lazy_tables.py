"""Lazy tables against torch's SparseAdam, and what they leave alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from headwater.feature_store.schema import EncodedColumn, Schema
from headwater.models.batch import Batch
from headwater.models.ctr.dnn import DNNConfig
from headwater.models.sharding import Placement

CONFIG = DNNConfig(embedding_dim=8, hidden=(16,))
Tables = dict[str, dict[str, np.ndarray]]


@pytest.fixture
def schema(make_column: Callable[..., EncodedColumn], make_schema: Callable[..., Schema]) -> Schema:
    return make_schema(make_column("a", 6), make_column("b", 40), make_column("c", 9, length=3))


def rows_read(schema: Schema, batch: Batch) -> dict[str, list[int]]:
    return {
        column.name: sorted(set(batch.codes_BW[:, place].flatten().tolist()) - {0})
        for column, place in schema.slots()
    }


@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_lazy_tables_learn_as_under_sparse_adam(
    l2: float,
    schema: Schema,
    make_placement: Callable[..., Placement],
    make_batch: Callable[..., Batch],
    train_step: Callable[..., float],
) -> None:
    lazy = make_placement("dnn", schema, config=CONFIG, mode="lazy", sparse_lr=0.01, sparse_l2=l2)
    # The twin gives the loss's gradient of every row; its merged table learns by SparseAdam.
    twin = make_placement("dnn", schema, config=CONFIG)
    [table_ND] = twin.network.embeddings.table_parameters()
    starts = dict(zip(["a", "b", "c"], [0, 6, 46], strict=True))
    sparse = torch.optim.SparseAdam([table_ND], lr=0.01)
    dense = torch.optim.Adam(twin.network.model.parameters(), lr=1e-3)
    for seed in range(5):
        batch = make_batch(schema, 12, seed)
        train_step(lazy, batch)
        twin.zero_grad()
        F.binary_cross_entropy_with_logits(twin.module(batch), batch.label_B).backward()
        read = rows_read(schema, batch)
        rows_U = torch.tensor([starts[name] + row for name in starts for row in read[name]])
        assert table_ND.grad is not None
        grad_UD = table_ND.grad[rows_U] + l2 * table_ND.detach()[rows_U]
        table_ND.grad = torch.sparse_coo_tensor(
            rows_U[None], grad_UD, table_ND.shape, check_invariants=True
        )
        sparse.step()
        table_ND.grad = None
        dense.step()
    expected = twin.network.embeddings.tables()["emb_BFD"]
    for name, table in lazy.network.embeddings.tables()["emb_BFD"].items():
        np.testing.assert_allclose(table, expected[name], atol=1e-5, rtol=1e-4, err_msg=name)


def test_rows_that_a_batch_does_not_read_keep_values_and_moments(
    schema: Schema,
    make_placement: Callable[..., Placement],
    make_batch: Callable[..., Batch],
    train_step: Callable[..., float],
) -> None:
    placement = make_placement("dnn", schema, config=CONFIG, mode="lazy", sparse_l2=0.5)
    for seed in range(3):
        train_step(placement, make_batch(schema, 12, seed))
    batch = make_batch(schema, 2)
    state = placement.state_dict()["lazy"]["emb_BFD"]
    before = placement.network.embeddings.tables()["emb_BFD"]
    moments = {key: state[key][6:46].clone() for key in ("exp_avg", "exp_avg_sq")}
    train_step(placement, batch)
    after = placement.network.embeddings.tables()["emb_BFD"]
    read = set(rows_read(schema, batch)["b"])
    for row in range(40):
        assert np.array_equal(after["b"][row], before["b"][row]) == (row not in read)
        for key, kept_ND in moments.items():
            assert torch.equal(state[key][6 + row], kept_ND[row]) == (row not in read)


def test_the_rows_of_lazy_tables_are_clipped_with_all_other_weights(
    schema: Schema, make_placement: Callable[..., Placement], make_batch: Callable[..., Batch]
) -> None:
    norms: list[float] = []
    for mode in ("dense", "lazy"):
        placement = make_placement("dnn", schema, config=CONFIG, mode=mode)
        placement.zero_grad()
        placement.module(make_batch(schema, 8)).sum().backward()
        norms.append(placement.clip_grad(1e-3).item())
        assert placement.clip_grad(1e3).item() == pytest.approx(1e-3, rel=1e-2)
    assert norms[1] == pytest.approx(norms[0])


def test_scoring_takes_no_rows_out_and_changed_rates_move_none(
    schema: Schema,
    make_placement: Callable[..., Placement],
    make_batch: Callable[..., Batch],
    train_step: Callable[..., float],
) -> None:
    placement = make_placement("dnn", schema, config=CONFIG, mode="lazy", sparse_l2=0.1)
    batch = make_batch(schema, 8)
    train_step(placement, batch)
    before = placement.network.embeddings.tables()["emb_BFD"]
    placement.lr_scale(0.5, 0)
    placement.module.eval()
    with torch.no_grad():
        placement.module(batch)
    assert placement.penalty().item() == 0
    placement.lr_scale(0.5, 0)
    for name, table_ND in placement.network.embeddings.tables()["emb_BFD"].items():
        assert np.array_equal(table_ND, before[name])
