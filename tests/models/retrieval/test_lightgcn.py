"""LightGCN and BPR-MF: against dense matrices and formulas, and what they learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from headwater.models.retrieval.bpr_mf import BPRMF, BPRMFConfig
from headwater.models.retrieval.interactions import Interactions, Pairs, Queries
from headwater.models.retrieval.lightgcn import LightGCN, LightGCNConfig
from headwater.models.retrieval.pairwise import PairwiseModel

EVENTS = Interactions(
    7,
    8,
    np.array([0, 0, 0, 2, 5, 7, 9, 9]),
    np.array([2, 3, 3, 4, 2, 5, 6, 6, 5], dtype=np.int32),
)
"""User 6 and item 7 have no event; half of users 2 to 5 like items 2 to 4, half 5 and 6."""


def make(model_class: type[PairwiseModel], **changes: Any) -> PairwiseModel:
    torch.manual_seed(0)
    config = model_class.config_class(**{"embedding_dim": 4} | changes)
    return model_class(config, EVENTS)  # pyright: ignore[reportArgumentType]


def make_batch() -> Pairs:
    return Pairs(torch.tensor([2, 2, 4]), torch.tensor([2, 3, 5]), torch.tensor([5, 5, 2]))


def ask(*users: int) -> Queries:
    size = len(users)
    return Queries(torch.tensor(users), torch.zeros(size, 0).long(), torch.zeros(size).long())


@pytest.mark.parametrize("num_layers", [0, 1, 3])
def test_final_vectors_are_the_mean_of_powers_of_the_normalised_matrix(num_layers: int) -> None:
    model = make(LightGCN, num_layers=num_layers)
    adjacency_VV = torch.zeros(15, 15)
    user_E, node_E = torch.from_numpy(EVENTS.users()), torch.from_numpy(EVENTS.item_E).long() + 7
    adjacency_VV[user_E, node_E] = adjacency_VV[node_E, user_E] = 1
    scale_V = adjacency_VV.sum(1).pow(-0.5).nan_to_num(0, 0, 0)
    symmetric_VV = scale_V[:, None] * adjacency_VV * scale_V
    powers = [torch.linalg.matrix_power(symmetric_VV, each) for each in range(num_layers + 1)]
    mean_VV = torch.stack(powers).mean(0)
    torch.testing.assert_close(model.vectors(), mean_VV @ model.node_VD)


@pytest.mark.parametrize("model_class", [BPRMF, LightGCN])
def test_the_loss_is_the_published_one_times_the_examples(
    model_class: type[PairwiseModel],
) -> None:
    model, batch = make(model_class, l2=0.3), make_batch()
    vector_VD = model.vectors()
    rows = [batch.user_B, 7 + batch.positive_B, 7 + batch.negative_B]
    user_BD, positive_BD, negative_BD = (vector_VD[each] for each in rows)
    margin_B = (user_BD * positive_BD).sum(1) - (user_BD * negative_BD).sum(1)
    penalty = sum(model.node_VD[each].square().sum() for each in rows) / 2 / 3
    published = -nn.functional.logsigmoid(margin_B).mean() + 0.3 * penalty
    torch.testing.assert_close(model.loss(model(batch), batch) / 3, published)


def test_lightgcn_without_layers_is_bpr_mf() -> None:
    batch = make_batch()
    models = (make(LightGCN, num_layers=0), make(BPRMF))
    losses = [model.loss(model(batch), batch) for model in models]
    assert torch.equal(*losses)


@pytest.mark.parametrize("model_class", [BPRMF, LightGCN])
def test_it_learns_what_users_like_and_nothing_of_missing_and_unknown(
    model_class: type[PairwiseModel],
) -> None:
    model = make(model_class)
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    batch = Pairs(
        torch.tensor([2, 2, 3, 3, 4, 4, 5, 5]),
        torch.tensor([2, 3, 4, 2, 5, 6, 6, 5]),
        torch.tensor([5, 6, 5, 6, 2, 3, 3, 4]),
    )
    for _ in range(50):
        optimizer.zero_grad()
        (model.loss(model(batch), batch) / 8).backward()
        optimizer.step()
    model.refresh()
    score_BN = model.queries(ask(2, 3, 4, 5)) @ model.items().T
    assert (score_BN[:2, 2:5].min(1).values > score_BN[:2, 5:7].max(1).values).all()
    assert (score_BN[2:, 5:7].min(1).values > score_BN[2:, 2:5].max(1).values).all()
    assert not model.queries(ask(0, 1)).any()
    assert not model.items()[:2].any()
    assert not model.node_VD[[0, 1, 7, 8]].any()


def test_first_values_follow_the_seed_and_weights_alone_are_kept() -> None:
    model, other = make(LightGCN), make(LightGCN)
    assert torch.equal(model.node_VD, other.node_VD)
    model.refresh()
    assert list(model.state_dict()) == ["node_VD"]


@pytest.mark.parametrize("model_class", [BPRMF, LightGCN])
def test_its_config_goes_through_json_and_back(model_class: type[PairwiseModel]) -> None:
    for config in (model_class.config_class(), model_class.config_class(embedding_dim=8)):
        assert type(config).model_validate_json(config.model_dump_json()) == config


def test_the_published_settings_are_the_defaults() -> None:
    config = LightGCNConfig()
    assert (config.embedding_dim, config.num_layers, config.l2) == (64, 3, 1e-4)
    assert BPRMFConfig().embedding_dim == 64
