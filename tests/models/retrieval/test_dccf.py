"""DCCF: against a dense reference, its identities, its presets, and noise that it learns to discount."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from headwater.models.phases import Descend
from headwater.models.retrieval.bpr_mf import BPRMF, BPRMFConfig
from headwater.models.retrieval.dccf import DCCF
from headwater.models.retrieval.dccf_config import DCCFConfig
from headwater.models.retrieval.interactions import Interactions, Pairs, Queries
from headwater.models.retrieval.lightgcn import LightGCN, LightGCNConfig

NUM_USERS, NUM_ITEMS = 10, 12
CHOICES: dict[str, dict[str, Any]] = {
    "official": {},
    "sslrec": {"preset": "sslrec"},
    "learned terms": {"learn_terms": True},
    "no intents": {"intent_view": False},
    "no graph-adaptive view": {"graph_adaptive_view": False},
    "no intent-adaptive view": {"intent_adaptive_view": False},
    "three layers": {"num_layers": 3, "temperature": 0.3},
}


def random_pairs(seed: int = 0) -> np.ndarray[Any, Any]:
    """Return distinct pairs of a user and an item; the last user and the last two items have none."""
    draw = np.random.default_rng(seed)
    chosen = np.flatnonzero(draw.random((NUM_USERS - 3) * (NUM_ITEMS - 4)) < 0.4)
    return np.stack([2 + chosen // (NUM_ITEMS - 4), 2 + chosen % (NUM_ITEMS - 4)], 1)


def interactions_of(
    pairs: np.ndarray[Any, Any], num_users: int = NUM_USERS, num_items: int = NUM_ITEMS
) -> Interactions:
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    counts = np.bincount(pairs[:, 0], minlength=num_users)
    starts_U = np.concatenate([[0], counts.cumsum()])
    return Interactions(num_users, num_items, starts_U, pairs[:, 1].astype(np.int32))


def make(pairs: np.ndarray[Any, Any] | None = None, **changes: Any) -> DCCF:
    """Return a small float64 model whose first values are large enough to matter."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"embedding_dim": 4, "num_intents": 3, "contrast_block": 2}
    config = DCCFConfig(**settings | changes)
    model = DCCF(config, interactions_of(random_pairs() if pairs is None else pairs)).double()
    if model.term_weight_4 is not None:
        nn.init.uniform_(model.term_weight_4)
    return model


def make_batch(pairs: np.ndarray[Any, Any], size: int = 9, seed: int = 1) -> Pairs:
    draw = np.random.default_rng(seed)
    chosen = pairs[draw.integers(0, len(pairs), size)]
    negative_B = draw.integers(2, NUM_ITEMS, size)
    return Pairs(*(torch.from_numpy(each) for each in (chosen[:, 0], chosen[:, 1], negative_B)))


def dense_loss(model: DCCF, pairs: np.ndarray[Any, Any], batch: Pairs) -> Tensor:
    """The published loss as its formulas say it, with dense matrices and no block."""
    config, table_VD = model.config, model.node_VD
    adjacency_VV = torch.zeros(len(table_VD), len(table_VD), dtype=table_VD.dtype)
    user_E, node_E = torch.from_numpy(pairs[:, 0]), torch.from_numpy(NUM_USERS + pairs[:, 1])
    adjacency_VV[user_E, node_E] = adjacency_VV[node_E, user_E] = 1
    scale_V = adjacency_VV.sum(1).pow(-0.5).nan_to_num(0, 0, 0)
    symmetric_VV = scale_V[:, None] * adjacency_VV * scale_V

    def alike(by_VD: Tensor) -> Tensor:
        unit_VD = nn.functional.normalize(by_VD)
        weight_VV = adjacency_VV * (1 + unit_VD @ unit_VD.T) / 2
        return weight_VV / weight_VV.sum(1, keepdim=True).clamp_min(1e-9)

    def info_nce(first_nD: Tensor, second_nD: Tensor) -> Tensor:
        first_nD, second_nD = (nn.functional.normalize(each) for each in (first_nD, second_nD))
        shares_nn = torch.exp(first_nD @ second_nD.T / config.temperature)
        return -torch.log(shares_nn.diagonal() / shares_nn.sum(1)).sum()

    def nodes(of: Tensor) -> Tensor:
        return torch.tensor(sorted({int(each) for each in of}))

    weights = [1.0] * 4 if model.term_weight_4 is None else list(model.term_weight_4)
    users = nodes(batch.user_B)
    contrasted = [batch.positive_B]
    if config.contrast_items == "all":
        contrasted.append(batch.negative_B)
    items = NUM_USERS + nodes(torch.cat(contrasted))
    layer_VD = final_VD = table_VD
    contrast: Any = 0
    for _ in range(config.num_layers):
        local_VD = symmetric_VV @ layer_VD
        intent_VD = torch.cat(
            [
                torch.softmax(rows @ intent, 1) @ intent.T
                for rows, intent in (
                    (layer_VD[:NUM_USERS], model.user_intent_DK),
                    (layer_VD[NUM_USERS:], model.item_intent_DK),
                )
            ]
        )
        messages = [
            (True, local_VD),
            (config.graph_adaptive_view, alike(local_VD) @ layer_VD),
            (config.intent_view, intent_VD),
            (config.intent_adaptive_view, alike(intent_VD) @ layer_VD),
        ]
        for (is_on, message_VD), weight in zip(messages, weights, strict=True):
            layer_VD = layer_VD + weight * message_VD * is_on
        for is_on, message_VD in messages[1:]:
            if is_on:
                by = len(users) if config.item_mean == "users" else len(items)
                contrast = contrast + info_nce(local_VD[users], message_VD[users]) / len(users)
                contrast = contrast + info_nce(local_VD[items], message_VD[items]) / by
        final_VD = final_VD + layer_VD
    rows = [batch.user_B, NUM_USERS + batch.positive_B, NUM_USERS + batch.negative_B]
    user_BD, positive_BD, negative_BD = (final_VD[each] for each in rows)
    ranking = nn.functional.softplus((user_BD * negative_BD - user_BD * positive_BD).sum(1)).mean()
    batch_rows = sum(table_VD[each].square().sum() for each in rows)
    prototypes = model.user_intent_DK.square().sum() + model.item_intent_DK.square().sum()
    return (
        ranking
        + config.l2_rows * batch_rows
        + config.l2_table * table_VD.square().sum()
        + config.l2_intents * prototypes
        + config.contrast_weight * contrast
    )


@pytest.mark.parametrize("choice", CHOICES)
def test_loss_and_gradients_equal_a_dense_reference(choice: str) -> None:
    pairs = random_pairs()
    model = make(pairs, **CHOICES[choice])
    batch = make_batch(pairs)
    ours = model.loss(model(batch), batch) / len(batch)
    dense = dense_loss(model, pairs, batch)
    torch.testing.assert_close(ours, dense, atol=1e-6, rtol=1e-6)
    weights = list(model.parameters())
    for found, expected in zip(
        torch.autograd.grad(ours, weights), torch.autograd.grad(dense, weights), strict=True
    ):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("choice", ["official", "sslrec", "learned terms"])
def test_gradients_equal_finite_differences(choice: str) -> None:
    pairs = random_pairs()
    model, batch = make(pairs, **CHOICES[choice]), make_batch(pairs)
    weights = list(model.parameters())
    grads = torch.autograd.grad(model.loss(model(batch), batch), weights)
    for weight, grad in zip(weights, grads, strict=True):
        direction = torch.randn_like(weight)
        losses: list[Tensor] = []
        for step in (1e-5, -2e-5):
            with torch.no_grad():
                weight += step * direction
                losses.append(model.loss(model(batch), batch))
        with torch.no_grad():
            weight += 1e-5 * direction
        slope = (losses[0] - losses[1]) / 2e-5
        torch.testing.assert_close(slope, (grad * direction).sum(), atol=1e-5, rtol=1e-5)


def test_with_one_intent_all_edges_weigh_the_same() -> None:
    model = make(num_intents=1)
    node_VD = model.node_VD.detach()
    _, views = model.layer(node_VD)
    _, intent_VD, by_intent_VD = views.others
    is_user_V1 = (torch.arange(len(node_VD)) < NUM_USERS).unsqueeze(1)
    expected_VD = torch.where(is_user_V1, model.user_intent_DK.T, model.item_intent_DK.T)
    torch.testing.assert_close(intent_VD, expected_VD.detach())
    pattern_VV = model.graph.matrix(torch.ones_like(model.graph.weight_E)).to_dense()
    mean_VV = pattern_VV / pattern_VV.sum(1, keepdim=True).clamp_min(1)
    torch.testing.assert_close(by_intent_VD, mean_VV @ node_VD)


def test_without_its_own_messages_and_the_residual_it_sums_the_layers_of_lightgcn() -> None:
    off = dict.fromkeys(("intent_view", "graph_adaptive_view", "intent_adaptive_view"), False)
    model = make(**off)
    lightgcn = LightGCN(
        LightGCNConfig(embedding_dim=4, num_layers=2), interactions_of(random_pairs())
    ).double()
    lightgcn.node_VD = model.node_VD
    layer_VD = total_VD = model.node_VD
    for _ in range(2):
        layer_VD = model.layer(layer_VD)[0] - layer_VD
        total_VD = total_VD + layer_VD
    torch.testing.assert_close(total_VD / 3, lightgcn.vectors())


def test_without_layers_it_is_bpr_mf() -> None:
    pairs = random_pairs()
    model = make(pairs, num_layers=0, l2_intents=0, l2_rows=5e-5)
    batch = make_batch(pairs)
    factors = BPRMF(BPRMFConfig(embedding_dim=4, l2=1e-4), interactions_of(pairs)).double()
    factors.node_VD = model.node_VD
    ranking = factors.loss(factors(batch), batch)
    # The published penalties differ in that DCCF's is not divided by the batch.
    expected = ranking + (len(batch) - 1) * 5e-5 * model.row_norms(batch)
    torch.testing.assert_close(model.loss(model(batch), batch), expected)
    for each in (model, factors):
        each.refresh()
    assert torch.equal(model.items(), factors.items())


def test_without_contrast_and_penalties_prototypes_learn_from_ranking_alone() -> None:
    pairs = random_pairs()
    model, batch = make(pairs, contrast_weight=0, l2_intents=0, l2_rows=0), make_batch(pairs)
    output = model(batch)
    prototypes = (model.user_intent_DK, model.item_intent_DK)
    whole = torch.autograd.grad(model.loss(output, batch), prototypes, retain_graph=True)
    ranking = torch.autograd.grad(nn.functional.softplus(-output.margin_B).sum(), prototypes)
    for found, expected in zip(whole, ranking, strict=True):
        assert found.abs().max() > 0
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("preset", ["official", "sslrec"])
def test_numbers_of_users_and_items_mean_nothing(preset: str) -> None:
    pairs, draw = random_pairs(), np.random.default_rng(5)
    user_U = np.concatenate([[0, 1], 2 + draw.permutation(NUM_USERS - 2)])
    item_N = np.concatenate([[0, 1], 2 + draw.permutation(NUM_ITEMS - 2)])
    node_V = torch.from_numpy(np.concatenate([user_U, NUM_USERS + item_N]))
    model = make(pairs, preset=preset)
    other = make(np.stack([user_U[pairs[:, 0]], item_N[pairs[:, 1]]], 1), preset=preset)
    with torch.no_grad():
        other.node_VD[node_V] = model.node_VD
    batch = make_batch(pairs)
    renamed = Pairs(
        torch.from_numpy(user_U)[batch.user_B],
        torch.from_numpy(item_N)[batch.positive_B],
        torch.from_numpy(item_N)[batch.negative_B],
    )
    torch.testing.assert_close(other.vectors()[node_V], model.vectors(), atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(
        other.loss(other(renamed), renamed), model.loss(model(batch), batch), atol=1e-6, rtol=1e-6
    )


def test_the_order_of_events_changes_nothing() -> None:
    pairs = random_pairs()
    shuffled = np.random.default_rng(3).permutation(pairs)
    assert torch.equal(make(pairs).vectors(), make(shuffled).vectors())


def test_a_block_of_the_contrast_is_no_part_of_the_loss() -> None:
    pairs = random_pairs()
    batch = make_batch(pairs)
    models = [make(pairs, contrast_block=block) for block in (1, 4, 1000)]
    losses = [model.loss(model(batch), batch) for model in models]
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(losses[0], losses[2])


def test_rows_of_missing_and_unknown_are_zeros_and_stay_so() -> None:
    pairs = random_pairs()
    model, batch = make(pairs, preset="sslrec"), make_batch(pairs)
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model.loss(model(batch), batch).backward()
        optimizer.step()
    special = [0, 1, NUM_USERS, NUM_USERS + 1]
    assert not model.node_VD[special].any()
    model.refresh()
    asked = Queries(torch.tensor([0, 1, 2]), torch.zeros(3, 0).long(), torch.zeros(3).long())
    vector_BD = model.queries(asked)
    assert not vector_BD[:2].any()
    assert vector_BD[2].any()
    assert not model.items()[:2].any()


def test_queries_and_items_change_at_a_refresh_alone() -> None:
    model = make()
    model.refresh()
    asked = Queries(torch.tensor([2, 3]), torch.zeros(2, 0).long(), torch.zeros(2).long())
    before_BD, before_ND = model.queries(asked), model.items()
    scores_BN = model.vectors()[[2, 3]] @ model.vectors()[NUM_USERS:].T
    torch.testing.assert_close((before_BD @ before_ND.T)[:, 2:], scores_BN[:, 2:])
    with torch.no_grad():
        model.node_VD.mul_(2)
    assert torch.equal(model.queries(asked), before_BD)
    model.refresh()
    assert not torch.equal(model.queries(asked), before_BD)


def test_training_repeats_bit_by_bit_and_goes_on_from_a_checkpoint() -> None:
    pairs = random_pairs()

    def train(model: DCCF, steps: range) -> None:
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        for seed in steps:
            batch = make_batch(pairs, seed=seed)
            optimizer.zero_grad()
            model.loss(model(batch), batch).backward()
            optimizer.step()

    whole, half = make(pairs), make(pairs)
    train(whole, range(4))
    train(half, range(2))
    resumed = make(pairs, embedding_dim=4)
    resumed.load_state_dict(half.state_dict())
    train(resumed, range(2, 4))
    assert set(whole.state_dict()) == {"node_VD", "user_intent_DK", "item_intent_DK"}
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name])


def test_half_precision_gives_a_loss_and_gradients_near_those_of_full() -> None:
    pairs = random_pairs()
    model, batch = make(pairs).float(), make_batch(pairs)
    with torch.autocast("cpu", torch.bfloat16):
        half = model.loss(model(batch), batch)
    half.backward()
    torch.testing.assert_close(half, model.loss(model(batch), batch), atol=0, rtol=1e-2)
    for weight in model.parameters():
        assert weight.grad is not None
        assert torch.isfinite(weight.grad).all()


def test_presets_fill_what_is_left_out_and_stand_in_the_resolved_settings() -> None:
    official, sslrec = DCCFConfig(), DCCFConfig(preset="sslrec")
    assert (official.keep, official.sampling, official.temperature) == ("last", "users", 1.0)
    assert (sslrec.keep, sslrec.sampling, sslrec.temperature) == ("best", "interactions", 0.2)
    assert (sslrec.l2_rows, sslrec.l2_table, sslrec.l2_intents) == (0, 1e-4, 1e-4)
    changed = DCCFConfig(preset="sslrec", keep="last", temperature=0.5)
    assert (changed.keep, changed.temperature, changed.sampling) == ("last", 0.5, "interactions")
    for config in (official, sslrec, changed):
        assert DCCFConfig.model_validate_json(config.model_dump_json()) == config
        (phase,) = DCCF.phases(config)
        assert isinstance(phase, Descend)
        assert phase.keep == config.keep


def test_the_weights_are_those_of_the_paper_and_no_more() -> None:
    known = NUM_USERS - 2 + NUM_ITEMS - 2
    model = make()
    num_weights = sum(weight.numel() for weight in model.parameters())
    special = 4 * 4
    assert num_weights - special == 4 * known + 2 * 4 * 3
    assert model.node_VD.count_nonzero() == 4 * known


def test_edges_of_noise_come_to_weigh_less_than_those_of_two_planted_communities() -> None:
    draw = np.random.default_rng(0)
    size = 30
    user_E, item_E = np.divmod(np.arange(size * size), size)
    is_own_E = (user_E < size // 2) == (item_E < size // 2)
    chosen_E = draw.random(size * size) < np.where(is_own_E, 0.4, 0.1)
    pairs = 2 + np.stack([user_E, item_E], 1)[chosen_E]
    torch.manual_seed(0)
    config = DCCFConfig(embedding_dim=8, num_intents=4, contrast_weight=0.01)
    model = DCCF(config, interactions_of(pairs, size + 2, size + 2))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        chosen = pairs[draw.integers(0, len(pairs), 200)]
        negative_B = draw.integers(2, size + 2, 200)
        columns = (chosen[:, 0], chosen[:, 1], negative_B)
        batch = Pairs(*(torch.from_numpy(each) for each in columns))
        optimizer.zero_grad()
        (model.loss(model(batch), batch) / 200).backward()
        optimizer.step()
    with torch.no_grad():
        local_VD = model.layer(model.node_VD)[1].local_VD
        likeness_E = model.graph.likeness(nn.functional.normalize(local_VD))
    likeness_VV = model.graph.matrix(likeness_E).to_dense().numpy()
    edge_E = likeness_VV[pairs[:, 0], size + 2 + pairs[:, 1]]
    is_clean_E = is_own_E[chosen_E]
    assert edge_E[~is_clean_E].mean() < edge_E[is_clean_E].mean() - 0.05
