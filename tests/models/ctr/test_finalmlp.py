"""FinalMLP as published: sizes, equivalences, and the facts about its gates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from headwater.feature_store.errors import JobError
from headwater.feature_store.schema import EncodedColumn, Schema
from headwater.models.batch import Batch
from headwater.models.ctr.dual_mlp import DualMLP, DualMLPConfig
from headwater.models.ctr.finalmlp import FinalMLP, FinalMLPConfig
from headwater.models.network import Network, build_network, count_parameters

SMALL = FinalMLPConfig(
    embedding_dim=4,
    hidden_1=(12, 8),
    hidden_2=(6,),
    dropout_1=0,
    dropout_2=0,
    batch_norm_1=False,
    batch_norm_2=False,
    num_heads=2,
    gate_hidden=(5,),
)
NUM_FEATURES = 3


def small_model(seed: int = 0, **changes: Any) -> FinalMLP:
    torch.manual_seed(seed)
    config = FinalMLPConfig(**{**SMALL.model_dump(), **changes})
    return FinalMLP(config, num_features=NUM_FEATURES)


def random_inputs(size: int = 7, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(size, NUM_FEATURES, SMALL.embedding_dim)


# The best published runs: rows of all tables, number of dense columns, rows of the context tables
# where they are given by the published size itself (C6 of Criteo; user and item of Frappe).
PUBLISHED: dict[str, tuple[int, dict[str, int], dict[str, Any], int]] = {
    "criteo_x1": (
        2_086_329,
        {**{f"I{i}": 0 for i in range(1, 14)}, **{f"C{i}": -1 for i in range(1, 27)}, "C6": 23},
        {
            "embedding_dim": 10,
            "hidden_1": (400, 400, 400),
            "hidden_2": (1000,),
            "gate_hidden": (800,),
            "gate_1_context": tuple(f"I{i}" for i in range(1, 14)),
            "gate_2_context": ("C6",),
            "num_heads": 200,
        },
        22_478_162,
    ),
    "avazu_x1": (
        1_298_621,
        {f"feat_{i}": -1 for i in range(1, 23)},
        {
            "embedding_dim": 10,
            "hidden_1": (400, 400, 400),
            "hidden_2": (800,),
            "gate_hidden": (800,),
            "num_heads": 10,
        },
        13_979_472,
    ),
    "movielenslatest_x1": (
        90_242,
        {"user_id": -1, "item_id": -1, "tag_id": -1},
        {
            "embedding_dim": 10,
            "hidden_1": (400,),
            "hidden_2": (800,),
            "gate_hidden": (800,),
            "num_heads": 10,
        },
        1_040_902,
    ),
    "frappe_x1": (
        5_399,
        {"user": 957, "item": 4083, **{f"c{i}": -1 for i in range(8)}},
        {
            "embedding_dim": 10,
            "hidden_1": (400,),
            "hidden_2": (100,),
            "gate_hidden": (400,),
            "gate_1_context": ("user",),
            "gate_2_context": ("item",),
            "num_heads": 5,
        },
        253_392,
    ),
    "criteo_x4": (
        910_747,
        {f"c{i}": -1 for i in range(39)},
        {
            "embedding_dim": 16,
            "hidden_1": (1000,) * 5,
            "hidden_2": (500,),
            "batch_norm_1": False,
            "batch_norm_2": False,
            "use_gates": False,
            "num_heads": 50,
        },
        19_524_954,
    ),
    "avazu_x4": (
        3_750_999,
        {f"c{i}": -1 for i in range(24)},
        {
            "embedding_dim": 16,
            "hidden_1": (2000,) * 3,
            "hidden_2": (500,),
            "batch_norm_1": True,
            "batch_norm_2": False,
            "use_gates": False,
            "num_heads": 20,
        },
        69_046_986,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_has_exactly_the_published_number_of_parameters(
    name: str,
    make_column: Callable[..., EncodedColumn],
    make_schema: Callable[..., Schema],
) -> None:
    rows, columns, settings, published = PUBLISHED[name]
    open_columns = [column for column, cardinality in columns.items() if cardinality < 0]
    left = rows - sum(cardinality for cardinality in columns.values() if cardinality > 0)
    columns = {
        column: left // len(open_columns) if cardinality < 0 else cardinality
        for column, cardinality in columns.items()
    }
    columns[open_columns[0]] += rows - sum(columns.values())
    schema = make_schema(*(make_column(*item) for item in columns.items()))
    with torch.device("meta"):
        model = FinalMLP(FinalMLPConfig(**settings), num_features=len(columns))
        network = Network(schema, model, "dense")
    assert sum(weight.numel() for weight in network.parameters()) == published
    assert count_parameters(network) == published


def test_without_gates_and_bilinear_weights_it_is_dual_mlp() -> None:
    final = small_model(use_gates=False)
    fields = SMALL.model_dump(include=set(DualMLPConfig.model_fields))
    dual = DualMLP(DualMLPConfig(**fields), num_features=NUM_FEATURES)
    torch.nn.init.zeros_(final.fusion.weight_KXY)
    state = {key.removeprefix("fusion."): value for key, value in final.state_dict().items()}
    del state["weight_KXY"]
    dual.load_state_dict(state)
    emb_BFD = random_inputs()
    torch.testing.assert_close(final(emb_BFD), dual(emb_BFD))


def test_gates_without_context_change_nothing_at_the_start() -> None:
    gated = small_model()
    plain = small_model(use_gates=False)
    plain.load_state_dict(
        {key: value for key, value in gated.state_dict().items() if "gate" not in key}
    )
    emb_BFD = random_inputs()
    assert torch.equal(gated(emb_BFD), plain(emb_BFD))


def test_a_gate_without_context_learns_only_its_output_bias_and_is_the_same_for_all_rows() -> None:
    model = small_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    target_B = (torch.rand(7) > 0.5).float()
    for seed in range(5):
        optimizer.zero_grad()
        logit_B = model(random_inputs(seed=seed))
        torch.nn.functional.binary_cross_entropy_with_logits(logit_B, target_B).backward()
        for gate in (model.gate_1, model.gate_2):
            still = {
                name
                for name, weight in gate.named_parameters()
                if weight.grad is None or not weight.grad.any()
            }
            assert still == {"context_1D", "mlp.0.weight", "mlp.0.bias", "out.weight"}
        optimizer.step()
    gate_1_BFD, gate_2_BFD = model.gates(random_inputs())
    assert gate_1_BFD.shape == gate_2_BFD.shape == (7, NUM_FEATURES, SMALL.embedding_dim)
    assert (gate_1_BFD == gate_1_BFD[0]).all()
    assert not torch.equal(gate_1_BFD[0], torch.ones_like(gate_1_BFD[0]))


def test_gates_follow_their_own_context() -> None:
    model = small_model(gate_1_context=("a", "b"), gate_2_context=("c",))
    emb_BFD = random_inputs()
    context_1, context_2 = torch.randn(7, 2, 4), torch.randn(7, 1, 4)
    gate_1_BFD, gate_2_BFD = model.gates(emb_BFD, context_1, context_2)
    other_1_BFD, other_2_BFD = model.gates(emb_BFD, context_1 + 1, context_2)
    assert not torch.equal(gate_1_BFD, other_1_BFD)
    assert torch.equal(gate_2_BFD, other_2_BFD)


def test_swapping_the_streams_and_transposing_the_heads_changes_nothing() -> None:
    one = small_model(gate_1_context=("a", "b"), gate_2_context=("c",))
    other = small_model(
        hidden_1=(6,), hidden_2=(12, 8), gate_1_context=("c",), gate_2_context=("a", "b")
    )
    swap = {"_1.": "_2.", "_2.": "_1."}
    state = {}
    for key, value in one.state_dict().items():
        for old, new in swap.items():
            if old in key:
                state[key.replace(old, new)] = value
                break
    state["fusion.weight_KXY"] = one.fusion.weight_KXY.transpose(1, 2)
    other.load_state_dict(state)
    emb_BFD, context_1, context_2 = random_inputs(), torch.randn(7, 2, 4), torch.randn(7, 1, 4)
    torch.testing.assert_close(
        one(emb_BFD, context_1, context_2), other(emb_BFD, context_2, context_1)
    )


def test_context_tables_are_not_those_of_the_streams(
    mixed: Schema, make_batch: Callable[..., Batch]
) -> None:
    config = SMALL.model_copy(update={"gate_1_context": ("city",), "gate_2_context": ("price",)})
    network = build_network(mixed, FinalMLP, config, "dense", 0)
    slots = network.embeddings(make_batch(mixed, 5, missing=0)).embeddings
    assert {name: tuple(emb.shape) for name, emb in slots.items()} == {
        "emb_BFD": (5, 6, 4),
        "gate_1_BCD": (5, 1, 4),
        "gate_2_BCD": (5, 1, 4),
    }
    position = [column.name for column in mixed.columns].index("city")
    assert not torch.allclose(slots["gate_1_BCD"][:, 0], slots["emb_BFD"][:, position])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_heads": 3, "hidden_1": (9,), "hidden_2": (8,)}, "3 does not divide 8.*hidden_2"),
        ({"num_heads": 3, "hidden_1": (8,), "hidden_2": (9,)}, "3 does not divide 8.*hidden_1"),
        ({"use_gates": False, "gate_1_context": ("a",)}, "need use_gates"),
        ({"hidden_1": ()}, "at least 1 item"),
        ({"dropout_1": 1.0}, "less than 1"),
        ({"num_head": 1}, "Extra inputs"),
    ],
)
def test_a_contradiction_in_the_settings_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FinalMLPConfig(**settings)


def test_a_context_column_that_is_not_encoded_is_refused_with_the_nearest_name(
    mixed: Schema,
) -> None:
    config = SMALL.model_copy(update={"gate_2_context": ("user_id",)})
    with pytest.raises(JobError, match=r"model\.gate_2_context: 'user_id'.*mean 'user\.id'"):
        build_network(mixed, FinalMLP, config, "dense", 0)


def test_the_same_seed_builds_the_same_network_and_leaves_the_global_one_alone(
    mixed: Schema,
) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    networks = [build_network(mixed, FinalMLP, SMALL, "dense", seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(1), expected)
    one, same, other = (network.state_dict() for network in networks)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["model.mlp_1.0.weight"], other["model.mlp_1.0.weight"])
