"""Mult-DAE: its formulas, and what it learns of blocks of items."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from headwater.models.retrieval.interactions import Interactions, Queries, Sets
from headwater.models.retrieval.multi_dae import MultiDAE, MultiDAEConfig

ITEMS = 14
EVENTS = Interactions(3, ITEMS, np.array([0, 0, 0, 2]), np.array([2, 3], np.int32))


def make(**settings: Any) -> MultiDAE:
    torch.manual_seed(0)
    given: dict[str, Any] = {"embedding_dim": 12, "hidden": (5, 7)} | settings
    return MultiDAE(MultiDAEConfig(**given), EVENTS)


def ask(item_BL: torch.Tensor) -> Queries:
    return Queries(torch.ones(len(item_BL)).long(), item_BL, (item_BL > 0).sum(1))


def sets(item_BL: torch.Tensor) -> Sets:
    return Sets(item_BL, (item_BL > 0).sum(1))


def test_it_is_the_dense_autoencoder_of_normalised_rows() -> None:
    model = make(dropout=0.0)
    item_BL = torch.tensor([[5, 2, 9], [4, 0, 0], [0, 0, 0]])
    input_BN = torch.zeros(3, ITEMS).scatter(1, item_BL, 1.0)
    input_BN[:, 0] = 0
    hidden = torch.nn.functional.normalize(input_BN) @ model.input_ND + model.input_bias_D
    hidden = hidden.tanh()
    for layer in model.layers:
        hidden = layer(hidden).tanh()
    logit_BN = (hidden @ model.output_NH.T + model.output_bias_N)[:, 2:]
    torch.testing.assert_close(model(sets(item_BL)), logit_BN)
    expected = -(logit_BN.log_softmax(1) * input_BN[:, 2:]).sum()
    torch.testing.assert_close(model.loss(model(sets(item_BL)), sets(item_BL)), expected)
    score_BN = model.queries(ask(item_BL)) @ model.items().T
    torch.testing.assert_close(score_BN[:, 2:], logit_BN)


def test_a_history_is_a_set_of_known_items() -> None:
    model = make().eval()
    query_BD = model.queries(ask(torch.tensor([[5, 2, 5, 1, 2], [2, 5, 0, 0, 0]])))
    torch.testing.assert_close(query_BD[0], query_BD[1])
    assert model.queries(ask(torch.zeros(2, 0).long())).isfinite().all()


def test_dropout_takes_items_and_no_more() -> None:
    model = make(dropout=0.5, hidden=())
    model.train()
    torch.nn.init.ones_(model.input_ND)
    with torch.no_grad():
        model.input_ND.mul_(0.1)
    hidden_BD = torch.atanh(model.encode(torch.arange(2, 6).repeat(200, 1)))
    # Of four items of 0.1 / 2 each, doubled where they stay.
    kept_BD = hidden_BD / 0.1
    torch.testing.assert_close(kept_BD, kept_BD.round(), atol=1e-4, rtol=0)
    assert kept_BD.round().unique().tolist() == [0, 1, 2, 3, 4]


def test_it_learns_blocks_of_items_and_nothing_of_missing_and_unknown() -> None:
    model = make()
    low, high = torch.arange(2, 8), torch.arange(8, 14)
    draw = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        rows = [
            block[torch.randperm(6, generator=draw)[:4]] for block in (low, high) for _ in range(8)
        ]
        batch = sets(torch.stack(rows))
        optimizer.zero_grad()
        (model.loss(model(batch), batch) / len(batch)).backward()
        optimizer.step()
    model.eval()
    score_BN = model.queries(ask(torch.tensor([[2, 3, 4], [8, 9, 10]]))) @ model.items().T
    assert score_BN[0, low].min() > score_BN[0, high].max()
    assert score_BN[1, high].min() > score_BN[1, low].max()
    for rows in (model.input_ND, model.output_NH, model.output_bias_N):
        assert not rows[:2].any()


def test_its_config_goes_through_json_and_back() -> None:
    config = MultiDAEConfig(hidden=(8,))
    assert MultiDAEConfig.model_validate_json(config.model_dump_json()) == config
