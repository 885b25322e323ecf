"""MCLRec and CL4SRec: their losses against plain loops, and which weights each update changes."""

from __future__ import annotations

import copy
import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from headwater.models.placement.place import place
from headwater.models.placement.placement import Placement
from headwater.models.placement.settings import LearnSettings
from headwater.models.retrieval.augmentations import Shares, crop, mask, reorder, two_views
from headwater.models.retrieval.interactions import Interactions, Prefixes
from headwater.models.retrieval.mclrec import MCLRec, MCLRecConfig
from headwater.models.retrieval.network import build_retrieval_network
from headwater.models.retrieval.sasrec import SASRec, SASRecConfig
from headwater.models.retrieval.three_steps import ThreeSteps
from headwater.models.retrieval.view_losses import likeness, pair_contrast, regulariser
from headwater.models.strategy import OneLoss

NUM_ITEMS = 14
NONE = Interactions(4, NUM_ITEMS, np.zeros(5, np.int64), np.zeros(0, np.int32))
LEARN = LearnSettings(sparse_lr=0.01, sparse_l2=0.0, dense_lr=0.01, dense_l2=0.0, clip_norm=1e9)
SMALL: dict[str, Any] = {
    "embedding_dim": 8,
    "max_length": 7,
    "inner_dim": 8,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}


def placed(model: Any, config: Any, make_schema: Any) -> Placement:
    network = build_retrieval_network(make_schema(), model, config, NONE, seed=3)
    return place(network, torch.device("cpu"))


def prefixes(seed: int = 0) -> Prefixes:
    torch.manual_seed(seed)
    length_B = torch.tensor([1, 4, 7, 2, 5])
    item_BL = torch.randint(2, NUM_ITEMS, (5, 7))
    item_BL *= torch.arange(7) < length_B[:, None]
    return Prefixes(item_BL, length_B, torch.randint(2, NUM_ITEMS, (5,)))


def weights(placement: Placement, *, augmenters: bool) -> dict[str, Tensor]:
    named = placement.network.model.state_dict()
    return {
        name: value.clone()
        for name, value in named.items()
        if name.startswith("augmenters") == augmenters
    }


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_each_update_leaves_the_others_weights_as_they_are(make_schema: Any) -> None:
    config = MCLRecConfig(**SMALL, first_contrast=0.2, second_contrast=0.3)
    placement = placed(MCLRec, config, make_schema)
    strategy = ThreeSteps(placement, LEARN)
    views = strategy.model.viewed(prefixes())
    encoder, augmenters = (weights(placement, augmenters=each) for each in (False, True))
    strategy.descend_encoder(views, 5, lambda _: None)
    assert same(weights(placement, augmenters=True), augmenters)
    moved = weights(placement, augmenters=False)
    assert not same(moved, encoder)
    strategy.descend_augmenters(views, lambda _: None)
    assert same(weights(placement, augmenters=False), moved)
    assert not same(weights(placement, augmenters=True), augmenters)


def test_without_contrasts_a_batch_is_two_steps_of_sasrec(make_schema: Any) -> None:
    config = MCLRecConfig(**SMALL, first_contrast=0.0, second_contrast=0.0)
    ours = placed(MCLRec, config, make_schema)
    plain = placed(SASRec, SASRecConfig(**SMALL, way="prefixes"), make_schema)
    encoders: list[Any] = [each.network.model.encoder for each in (ours, plain)]
    encoders[1].load_state_dict(encoders[0].state_dict())
    strategy, reference = ThreeSteps(ours, LEARN), OneLoss(plain, LEARN)
    for seed in range(3):
        batch = prefixes(seed)
        strategy.step(batch, 5, lambda _: None)
        for _ in range(2):
            reference.step(batch, 5, lambda _: None)
    theirs = plain.network.model.state_dict()
    for name, value in weights(ours, augmenters=False).items():
        torch.testing.assert_close(value, theirs[name], msg=name)


def test_its_state_goes_on_bit_by_bit(make_schema: Any) -> None:
    config = MCLRecConfig(**SMALL)
    whole, stopped = (ThreeSteps(placed(MCLRec, config, make_schema), LEARN) for _ in range(2))
    for strategy in (whole, stopped):
        strategy.step(prefixes(), 5, lambda _: None)
    resumed = ThreeSteps(placed(MCLRec, config, make_schema), LEARN)
    resumed.placement.load_weights(copy.deepcopy(stopped.placement.weights()))
    resumed.load_state_dict(copy.deepcopy(stopped.state_dict()))
    for strategy in (whole, resumed):
        torch.manual_seed(9)
        strategy.lr_scale(0.5, 0.0)
        strategy.step(prefixes(1), 5, lambda _: None)
    for mine in (True, False):
        assert same(
            weights(whole.placement, augmenters=mine), weights(resumed.placement, augmenters=mine)
        )


def plain_contrast(a: Tensor, b: Tensor, temperature: float) -> float:
    rows, size = torch.cat([a, b]).double(), len(a)
    total = 0.0
    for r in range(2 * size):
        partner = (r + size) % (2 * size)
        alike = [float(rows[r] @ rows[c]) / temperature for c in range(2 * size)]
        total -= alike[partner] - math.log(
            sum(math.exp(alike[c]) for c in range(2 * size) if c != r)
        )
    return total / (2 * size)


def plain_regulariser(a: Tensor, b: Tensor, form: str) -> float:
    rows, size = torch.cat([a, b]).double(), len(a)
    partner = [float(rows[r] @ rows[(r + size) % (2 * size)]) for r in range(2 * size)]
    others = [
        [float(rows[r] @ rows[c]) for c in range(2 * size) if c % size != r % size]
        for r in range(2 * size)
    ]
    low = [min(p, max(q)) for p, q in zip(partner, others, strict=True)]
    high = [max(p, *q) for p, q in zip(partner, others, strict=True)]
    if form == "paper":
        least, most = min(partner), max(itertools.chain(*others))
        low, high = [min(least, most)] * len(partner), [max(least, most)] * len(partner)
    pulled = [max(p - o, 0.0) for p, o in zip(partner, low, strict=True)]
    pushed = [max(o - each, 0.0) for o, q in zip(high, others, strict=True) for each in q]
    return sum(pulled) / len(pulled) + sum(pushed) / len(pushed)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_contrast_and_regulariser_equal_plain_loops(size: int) -> None:
    torch.manual_seed(size)
    a, b = torch.randn(size, 6), torch.randn(size, 6)
    alike = likeness(a, b, "dot", 0.7)
    assert float(pair_contrast(alike)) == pytest.approx(plain_contrast(a, b, 0.7), abs=1e-5)
    swapped = likeness(b, a, "dot", 0.7)
    assert float(pair_contrast(swapped)) == pytest.approx(float(pair_contrast(alike)), abs=1e-6)
    if size == 1:
        assert float(pair_contrast(alike)) == 0.0
        assert float(regulariser(alike, "code")) == 0.0
        return
    for form in ("code", "paper"):
        plain = plain_regulariser(a, b, form)
        assert float(regulariser(likeness(a, b, "dot", 1.0), form)) == pytest.approx(
            plain, abs=1e-5
        )


def test_equal_similarities_have_known_losses() -> None:
    alike = torch.full((8, 8), 0.3)
    assert float(pair_contrast(alike)) == pytest.approx(math.log(7))
    assert float(regulariser(alike, "code")) == float(regulariser(alike, "paper")) == 0.0


def test_the_regulariser_of_rows_ignores_a_constant_and_pulls_easy_partners_down() -> None:
    torch.manual_seed(2)
    alike = likeness(torch.randn(4, 6), torch.randn(4, 6), "dot", 1.0)
    moved = float(regulariser(alike + 3.0, "code"))
    assert moved == pytest.approx(float(regulariser(alike, "code")), abs=1e-5)
    alike.requires_grad_()
    regulariser(alike, "code").backward()
    assert alike.grad is not None
    for r in range(8):
        partner = (r + 4) % 8
        others = [c for c in range(8) if c % 4 != r % 4]
        if alike[r, partner] > alike[r, others].max():
            assert alike.grad[r, partner] > 0


def plain_vectors(model: MCLRec, item_BL: Tensor, length_B: Tensor) -> Tensor:
    """Return the newest tokens of padded sequences, written out with masks of the whole matrix."""
    encoder, length = model.encoder, item_BL.shape[1]
    weight = {name: value.double() for name, value in encoder.state_dict().items()}

    def linear(name: str, rows: Tensor) -> Tensor:
        return rows @ weight[f"{name}.weight"].T + weight[f"{name}.bias"]

    def norm(name: str, rows: Tensor) -> Tensor:
        centred = rows - rows.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt()
        return centred / scale * weight[f"{name}.weight"] + weight[f"{name}.bias"]

    seen_BLL = torch.ones(length, length).tril().bool() & (item_BL > 0)[:, None, :]
    tokens = norm("norm", weight["item.weight"][item_BL] + weight["position.weight"][:length])
    for number in range(len(encoder.blocks)):
        block = f"blocks.{number}"
        query, key, value = linear(f"{block}.query_key_value", tokens).chunk(3, -1)
        heads = [each.chunk(model.config.num_heads, -1) for each in (query, key, value)]
        found: list[Tensor] = []
        for q, k, v in zip(*heads, strict=True):
            exps_BLL = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).exp() * seen_BLL
            total_BL1 = exps_BLL.sum(2, keepdim=True)
            found.append(exps_BLL @ v / total_BL1.where(total_BL1 > 0, 1.0))
        message = linear(f"{block}.message", torch.cat(found, -1))
        tokens = norm(f"{block}.message_norm", tokens + message)
        inner = linear(f"{block}.inner", tokens)
        inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
        tokens = norm(f"{block}.outer_norm", tokens + linear(f"{block}.outer", inner))
    return tokens[torch.arange(len(item_BL)), length_B - 1].float()


@torch.no_grad()
def test_its_loss_is_the_sum_of_the_terms_of_a_padded_reference() -> None:
    torch.manual_seed(0)
    model = MCLRec(MCLRecConfig(**SMALL, first_contrast=0.2, second_contrast=0.3), NONE)
    for weight in model.encoder.parameters():
        weight += 0.3 * torch.randn_like(weight)
    views = model.viewed(prefixes())
    output = model(views)
    h1, h2 = (
        plain_vectors(model, each.item_BL, each.length_B) for each in (views.first, views.second)
    )
    plain_BD = plain_vectors(model, views.plain.item_BL, views.plain.length_B)
    encoded = (output.plain_BD, output.first_BD, output.second_BD)
    for ours, theirs in zip(encoded, (plain_BD, h1, h2), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    z1, z2 = model.augmenters[0](h1), model.augmenters[1](h2)
    torch.testing.assert_close(z1.norm(dim=1), torch.ones(5))
    assert z1.new_tensor(0.0) == model.augmenters[0](torch.zeros(1, 8)).isnan().sum()
    logits = plain_BD @ model.items()[2:].T
    entropy = torch.nn.functional.cross_entropy(logits, views.plain.target_B - 2)
    pairs = ((z1, z2), (h1, z2), (h2, z1))
    learned = sum(plain_contrast(a, b, 1.0) for a, b in pairs)
    learned += 0.1 * sum(plain_regulariser(a, b, "code") for a, b in pairs)
    expected = float(entropy) + 0.2 * plain_contrast(h1, h2, 1.0) + 0.3 * learned
    assert float(model.loss(output, views)) / 5 == pytest.approx(expected, abs=1e-5)


histories = st.lists(st.lists(st.integers(2, 9), min_size=1, max_size=9), min_size=1, max_size=5)


def padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    item_BL = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return item_BL, torch.tensor([len(row) for row in rows])


@given(histories, st.sampled_from([0.2, 0.5, 0.8]), st.integers(0, 1000))
def test_operators_change_what_they_say(rows: list[list[int]], share: float, seed: int) -> None:
    torch.manual_seed(seed)
    item_BL, length_B = padded(rows)
    made = [operator(item_BL, length_B, share) for operator in (crop, mask, reorder)]
    for number, row in enumerate(rows):
        size = int(len(row) * share)
        cropped, masked, shuffled = (
            each.item_BL[number, : each.length_B[number]].tolist() for each in made
        )
        kept = max(1, size)
        assert cropped in [row[i : i + kept] for i in range(len(row) - kept + 1)]
        assert masked.count(0) == size
        assert all(new in (0, old) for new, old in zip(masked, row, strict=True))
        assert Counter(shuffled) == Counter(row)
        moved = [i for i, (new, old) in enumerate(zip(shuffled, row, strict=True)) if new != old]
        assert not moved or moved[-1] - moved[0] < size


@given(st.integers(0, 1000))
def test_two_views_come_from_different_operators(seed: int) -> None:
    torch.manual_seed(seed)
    # Of 8 items 4 are cropped or masked, or 6 shuffled: which it was can be told.
    item_BL, length_B = padded([list(range(2, 10))] * 6 + [[5]])
    first, second = two_views(item_BL, length_B, Shares(crop=0.5, mask=0.5, reorder=0.8))
    for number in range(6):
        kinds = []
        for view in (first, second):
            row = view.item_BL[number, : view.length_B[number]].tolist()
            kinds.append("crop" if len(row) == 4 else "mask" if 0 in row else "reorder")
        assert kinds[0] != kinds[1]
    for view in (first, second):
        assert view.item_BL[6, : view.length_B[6]].tolist() == [5]
