"""Tables that hold only the rows that were kept give what masked ones give, in every mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from headwater.feature_store.schema import Schema
from headwater.models.base import ModelConfig, Slot
from headwater.models.batch import Batch
from headwater.models.ctr.fm import FM
from headwater.models.network import count_parameters
from headwater.models.strategy import OneLoss

KEPT = {"user.id": 9, "tags": 3, "history": 0}
"""Rows that columns keep, beside the row for missing values."""


class Pruned(FM):
    """FM whose main tables lack rows."""

    @classmethod
    def slots(cls, config: ModelConfig) -> dict[str, Slot]:
        return {"emb_BFD": Slot(config.embedding_dim, rows=KEPT), "first_BF1": Slot(1)}


Place = Callable[..., OneLoss]


def kept_codes(schema: Schema) -> dict[str, np.ndarray]:
    """Return the sorted codes that are kept, by column."""
    random = np.random.default_rng(0)
    sizes = {column.name: column.cardinality for column in schema.columns}
    return {
        name: np.sort(random.choice(np.arange(1, sizes[name]), number, replace=False))
        for name, number in KEPT.items()
    }


def filled(make_strategy: Place, mode: str, schema: Schema) -> tuple[OneLoss, OneLoss]:
    """Return FM with masked tables, and in `mode` the same with the rows that are kept alone."""
    config = ModelConfig(embedding_dim=8)
    masked = make_strategy(FM, config=config, mode="dense")
    pruned = make_strategy(Pruned, config=config, mode=mode)
    source, target = masked.placement.network.embeddings, pruned.placement.network.embeddings
    random = np.random.default_rng(1)
    tables, numeric = source.tables(), source.numeric_weights()
    for slot in tables.values():
        for column, table in slot.items():
            slot[column] = random.normal(size=table.shape).astype(np.float32)
            slot[column][0] = 0
    compact = {slot: dict(columns) for slot, columns in tables.items()}
    assert target.remap is not None
    for name, codes in kept_codes(schema).items():
        table = tables["emb_BFD"][name]
        compact["emb_BFD"][name] = table[np.concatenate([[0], codes])]
        new = np.zeros(len(table), np.int32)
        new[codes] = np.arange(1, len(codes) + 1)
        target.remap.write("emb_BFD", name, new)
        table[new == 0] = 0
    source.load(tables, numeric)
    target.load(compact, numeric)
    return masked, pruned


@pytest.mark.parametrize("mode", ["dense", "lazy", "fused"])
def test_compact_tables_give_what_masked_ones_give(
    mode: str, mixed: Schema, make_strategy: Place, make_batch: Callable[..., Batch]
) -> None:
    masked, pruned = filled(make_strategy, mode, mixed)
    batch = make_batch(mixed, 32)
    for strategy in (masked, pruned):
        strategy.placement.module.eval()
    expected = masked.placement.network.embeddings(batch).embeddings
    found = pruned.placement.network.embeddings(batch).embeddings
    for slot, emb_BFD in expected.items():
        torch.testing.assert_close(found[slot], emb_BFD, atol=1e-6, rtol=0)
    sizes = {column.name: column.cardinality for column in mixed.columns}
    removed = sum(sizes[name] - 1 - kept for name, kept in KEPT.items())
    networks = (masked.placement.network, pruned.placement.network)
    assert count_parameters(networks[0]) - count_parameters(networks[1]) == 8 * removed


@pytest.mark.parametrize("mode", ["dense", "lazy", "fused"])
def test_pruned_codes_learn_nothing_and_the_remap_is_in_the_checkpoint(
    mode: str,
    mixed: Schema,
    make_strategy: Place,
    make_batch: Callable[..., Batch],
    train_step: Callable[..., float],
) -> None:
    _, pruned = filled(make_strategy, mode, mixed)
    for seed in range(2):
        train_step(pruned, make_batch(mixed, 32, seed))
    embeddings = pruned.placement.network.embeddings
    assert embeddings.tables()["emb_BFD"]["history"].shape == (1, 8)
    assert not any(table[0].any() for table in embeddings.tables()["emb_BFD"].values())
    other: Any = make_strategy(Pruned, config=ModelConfig(embedding_dim=8), mode=mode, seed=2)
    other.placement.load_weights(pruned.placement.weights())
    for name, codes in kept_codes(mixed).items():
        new = other.placement.network.embeddings.remaps()["emb_BFD"][name]
        assert np.flatnonzero(new).tolist() == codes.tolist()
    batch = make_batch(mixed, 8, seed=9)
    for strategy in (pruned, other):
        strategy.placement.module.eval()
    assert torch.equal(pruned.placement.logit(batch), other.placement.logit(batch))
