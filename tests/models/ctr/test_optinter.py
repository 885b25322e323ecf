"""OptInter: a search whose sharp limit is the model that is trained after it, and what its choices hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from headwater.feature_store.encoders import Crossed, Identity, Quantiles, Vocabulary
from headwater.feature_store.errors import JobError
from headwater.feature_store.schema import EncodedColumn, Schema
from headwater.models.batch import Batch
from headwater.models.ctr.architecture import METHODS, FoundPair, Pair, architecture_file
from headwater.models.ctr.interaction_search import (
    InteractionSearch,
    Sizes,
    choose,
    frequent_share,
    held_out,
    mutual_information,
    temperature,
)
from headwater.models.ctr.optinter import OptInter
from headwater.models.ctr.optinter_config import OptInterConfig
from headwater.models.network import Network, build_network, count_parameters
from headwater.models.placement.place import place
from headwater.models.placement.settings import LearnSettings

FIELDS = {"a": 7, "b": 5, "c": 6}
PAIRS = list(combinations(FIELDS, 2))
MIXED = ("memorise", "factorise", "naive")
LEARN = LearnSettings(sparse_lr=0.01, dense_lr=0.01)


@pytest.fixture
def schema(make_schema: Callable[..., Schema], make_column: Callable[..., EncodedColumn]) -> Schema:
    """Return three fields, a list, a number, and the crosses of the fields."""
    return make_schema(
        *(make_column(name, size) for name, size in FIELDS.items()),
        make_column("tags", 9, length=3),
        make_column("price", 0),
        *(make_column(f"{a} x {b}", 4 + i) for i, (a, b) in enumerate(PAIRS)),
    )


def config_of(methods: Sequence[str] | None = None, **settings: Any) -> OptInterConfig:
    pairs = None
    if methods is not None:
        pairs = [
            {"columns": pair, "method": method} for pair, method in zip(PAIRS, methods, strict=True)
        ]
    return OptInterConfig.model_validate(
        {
            "embedding_dim": 4,
            "interaction_dim": 3,
            "hidden": (8, 6),
            "cross": tuple(FIELDS),
            "architecture": pairs,
            **settings,
        }
    )


def network_of(schema: Schema, config: OptInterConfig, seed: int = 1) -> Network:
    names = [column.name for column in schema.columns]
    declared = [name for name in names if " x " not in name]
    network = build_network(schema, OptInter, config, "dense", seed, declared)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(0.5 * torch.randn(weight.shape, generator=generator))
        for view in cast("Any", network.embeddings.store).weights().values():
            view[0] = 0
    return network


def model_of(network: Network) -> OptInter:
    return cast("OptInter", network.model)


def logits(network: Network, batch: Batch) -> Tensor:
    with torch.no_grad():
        return network.eval()(batch)[0]


def sharpen(network: Network, methods: Sequence[str]) -> None:
    """Set the weights of the architecture far apart, and the temperature to its end."""
    model = model_of(network)
    with torch.no_grad():
        model.architecture_P3.fill_(-1)
        for pair, method in enumerate(methods):
            model.architecture_P3[pair, METHODS.index(cast("Any", method))] = 1
        model.temperature.fill_(0.01)


def kept_inputs(methods: Sequence[str], config: OptInterConfig, width: int) -> list[int]:
    """Return the columns of the search's first layer that an architecture keeps, in its order."""
    dim = config.interaction_dim
    order = [i for name in ("memorise", "factorise") for i, m in enumerate(methods) if m == name]
    start = width - dim * len(methods)
    return [*range(start), *(start + dim * pair + i for pair in order for i in range(dim))]


ARCHITECTURES = [MIXED, ("naive",) * 3, ("memorise",) * 3, ("factorise",) * 3]


@pytest.mark.parametrize("methods", ARCHITECTURES)
def test_a_sharp_search_is_the_model_of_its_architecture_alone(
    schema: Schema, make_batch: Callable[..., Batch], methods: Sequence[str]
) -> None:
    search = network_of(schema, config_of())
    chosen = network_of(schema, config_of(methods), seed=2)
    sharpen(search, methods)
    batch = make_batch(schema, 64)
    tables = search.embeddings.tables()
    own = {
        slot: {column: tables[slot][column] for column in columns}
        for slot, columns in chosen.embeddings.tables().items()
    }
    chosen.embeddings.load(own, search.embeddings.numeric_weights())
    state = search.model.state_dict()
    width = state["mlp.0.weight"].shape[1]
    keep = kept_inputs(methods, model_of(chosen).config, width)
    state["mlp.0.weight"] = state["mlp.0.weight"][:, keep]
    chosen.model.load_state_dict({key: state[key] for key in chosen.model.state_dict()})
    torch.testing.assert_close(logits(chosen, batch), logits(search, batch), atol=1e-6, rtol=0)


@pytest.mark.parametrize("methods", ARCHITECTURES)
def test_an_architecture_holds_no_table_that_it_does_not_use(
    schema: Schema, methods: Sequence[str]
) -> None:
    network = network_of(schema, config_of(methods))
    config = model_of(network).config
    memorised = [pair.name for pair in config.of("memorise")]
    products = config.of("factorise")
    second = {column for pair in products for column in pair.columns}
    cardinality = {column.name: column.cardinality for column in schema.columns}
    inputs = 4 * 5 + 3 * (len(memorised) + len(products))
    mlp = inputs * 8 + 8 + 2 * 8 + 8 * 6 + 6 + 2 * 6 + 6 + 1
    assert count_parameters(network) == (
        4 * (sum(FIELDS.values()) + 9 + 1)
        + 3 * sum(cardinality[name] for name in memorised)
        + 3 * sum(cardinality[name] for name in second)
        + mlp
    )
    assert {*network.embeddings.tables()} == (
        {"emb_BFD"}
        | ({"second_BGI"} if second else set())
        | ({"crossed_BMI"} if memorised else set())
    )


def test_the_weights_of_the_methods_sum_to_one(schema: Schema) -> None:
    mix_P3 = model_of(network_of(schema, config_of()).eval()).mixture()
    assert mix_P3.shape == (3, 3)
    torch.testing.assert_close(mix_P3.sum(1), torch.ones(3))


@pytest.mark.parametrize("method", METHODS)
def test_a_method_alone_leaves_the_tables_of_the_others_without_a_gradient(
    schema: Schema, make_batch: Callable[..., Batch], method: str
) -> None:
    network = network_of(schema, config_of())
    sharpen(network, [method] * 3)
    network(make_batch(schema, 32))[0].sum().backward()
    tables = cast("Any", network.embeddings.store).merged()
    moved = {name for name, table in tables.items() if table.weight_ND.grad.abs().sum() > 0}
    owner = {"memorise": {"crossed_BMI"}, "factorise": {"second_BGI"}, "naive": set[str]()}
    assert moved == {"emb_BFD"} | owner[method]


def test_the_order_of_the_pairs_does_not_matter(
    schema: Schema, make_batch: Callable[..., Batch]
) -> None:
    first = network_of(schema, config_of(["memorise"] * 3))
    turned = [pair.model_dump() for pair in reversed(model_of(first).config.pairs)]
    second = network_of(schema, config_of(architecture=turned), seed=2)
    second.embeddings.load(first.embeddings.tables(), first.embeddings.numeric_weights())
    state = first.model.state_dict()
    order = [*range(20), *range(26, 29), *range(23, 26), *range(20, 23)]
    state["mlp.0.weight"] = state["mlp.0.weight"][:, order]
    second.model.load_state_dict(state)
    batch = make_batch(schema, 32)
    torch.testing.assert_close(logits(second, batch), logits(first, batch), atol=1e-6, rtol=0)


# Relaxation


def test_the_temperature_falls_in_a_line_and_then_stays() -> None:
    assert temperature(0, 100, 0.01) == 1
    assert temperature(40, 100, 0.01) == pytest.approx(0.505)
    assert [temperature(done, 100, 0.01) for done in (80, 100)] == pytest.approx([0.01, 0.01])


def test_gumbel_draws_choose_a_method_as_often_as_its_weight_says(schema: Schema) -> None:
    config = config_of(search={"relaxation": "gumbel-straight"})
    network = network_of(schema, config)
    model = model_of(network.train())
    strategy = InteractionSearch(place(network, torch.device("cpu")), LEARN, seed=1, steps=10**9)
    counts_P3 = torch.zeros(3, 3)
    draws = 20_000
    with torch.no_grad():
        for _ in range(draws):
            strategy.anneal()
            strategy.done += 1
            mix_P3 = model.mixture()
            assert ((mix_P3 > 0.999999) | (mix_P3 < 1e-6)).all()
            counts_P3 += mix_P3
    share_P3 = torch.softmax(model.architecture_P3.detach(), 1)
    sigma_P3 = (share_P3 * (1 - share_P3) / draws).sqrt()
    assert ((counts_P3 / draws - share_P3).abs() < 4 * sigma_P3).all()


def test_noise_is_not_for_evaluation(schema: Schema, make_batch: Callable[..., Batch]) -> None:
    network = network_of(schema, config_of(search={"relaxation": "gumbel"}))
    strategy = InteractionSearch(place(network, torch.device("cpu")), LEARN, seed=1, steps=10)
    batch = numbered(make_batch(schema, 32))
    before = logits(network, batch)
    strategy.anneal()
    assert torch.equal(logits(network, batch), before)
    assert int(strategy.done) == 0


# Rows that are held out


def numbered(batch: Batch, first: int = 0) -> Batch:
    return replace(batch, row_B=torch.arange(first, first + len(batch)))


def test_a_fifth_of_the_rows_is_held_out_whatever_the_batch(
    schema: Schema, make_batch: Callable[..., Batch]
) -> None:
    batch = numbered(make_batch(schema, 50_000))
    held_B = held_out(batch, 0.2, seed=7)
    assert held_B.float().mean().item() == pytest.approx(0.2, abs=0.01)
    turned = replace(batch, row_B=batch.row_B.flip(0) if batch.row_B is not None else None)
    assert torch.equal(held_out(turned, 0.2, seed=7).flip(0), held_B)
    assert not torch.equal(held_out(batch, 0.2, seed=8), held_B)


@pytest.mark.parametrize("rows", ["held-out", "training"])
def test_held_out_rows_teach_the_architecture_alone(
    schema: Schema, make_batch: Callable[..., Batch], rows: str
) -> None:
    batch = numbered(make_batch(schema, 512))
    held_B = held_out(batch, 0.2, seed=1)
    others = {
        "held": replace(batch, label_B=torch.where(held_B, 1 - batch.label_B, batch.label_B)),
        "rest": replace(batch, label_B=torch.where(held_B, batch.label_B, 1 - batch.label_B)),
    }
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for name, each in {"as it is": batch, **others}.items():
        network = network_of(schema, config_of(search={"architecture_rows": rows})).train()
        strategy = InteractionSearch(place(network, torch.device("cpu")), LEARN, seed=1, steps=10)
        strategy.step(each, len(each), lambda _: None)
        model = model_of(network)
        table = cast("Any", network.embeddings.store).merged()["crossed_BMI"].weight_ND
        seen[name] = (model.architecture_P3.detach().clone(), table.detach().clone())
    architecture, table = seen["as it is"]
    apart = rows == "held-out"
    assert torch.equal(seen["held"][1], table) == apart
    assert torch.equal(seen["rest"][0], architecture) == apart
    assert not torch.equal(seen["held"][0], architecture)
    assert not torch.equal(seen["rest"][1], table)


# Choosing


def sizes_of(rows: Sequence[int], main: int = 1000) -> Sizes:
    names = [f"{a} x {b}" for a, b in PAIRS]
    return Sizes(
        main,
        dict.fromkeys(FIELDS, 100),
        {name: 12 * count for name, count in zip(names, rows, strict=True)},
        dict(zip(names, rows, strict=True)),
    )


def test_pairs_are_given_up_in_order_of_margin_per_byte() -> None:
    weights = torch.tensor([[3.0, 1.0, 0.0], [2.0, 0.0, 1.5], [1.5, 1.0, 0.0]], dtype=torch.float64)
    sizes = sizes_of([1000, 10, 10])
    everything = 1000 + 12 * 1020
    assert choose(weights, sizes, config_of(max_bytes=everything)) == ["memorise"] * 3
    # 2 for 12,000 bytes is less than 0.5 for 120.
    assert choose(weights, sizes, config_of(max_bytes=everything - 1)) == [
        "factorise",
        "memorise",
        "memorise",
    ]
    assert choose(weights, sizes, config_of(max_bytes=1000)) == ["naive"] * 3


@given(
    st.lists(st.tuples(*[st.floats(-3, 3)] * 3), min_size=3, max_size=3),
    st.lists(st.integers(2, 5000), min_size=3, max_size=3),
    st.integers(1000, 100_000),
)
def test_an_architecture_fits_the_budget_and_gives_up_no_more_than_it_must(
    weights: list[tuple[float, float, float]], rows: list[int], max_bytes: int
) -> None:
    weights_P3 = torch.tensor(weights, dtype=torch.float64)
    sizes, free = sizes_of(rows), config_of()
    best = choose(weights_P3, sizes, free)
    config = config_of(max_bytes=max_bytes)
    found = choose(weights_P3, sizes, config)
    assert sizes.total(config, found) <= max_bytes
    if sizes.total(free, best) <= max_bytes:
        assert found == best


def test_mutual_information_is_that_of_the_definition() -> None:
    assert mutual_information(np.array([[25, 25], [25, 25]])) == pytest.approx(0)
    assert mutual_information(np.array([[50, 0], [0, 50]])) == pytest.approx(math.log(2))
    assert mutual_information(np.array([[30, 10], [0, 0], [5, 55]])) == pytest.approx(
        0.3 * math.log(0.3 / (0.4 * 0.35))
        + 0.1 * math.log(0.1 / (0.4 * 0.65))
        + 0.05 * math.log(0.05 / (0.6 * 0.35))
        + 0.55 * math.log(0.55 / (0.6 * 0.65))
    )


# Settings

FEATURES = [
    Vocabulary(name="a"),
    Vocabulary(name="b"),
    Quantiles(name="c", num_buckets=4),
    Vocabulary(name="tags", length=3),
    Identity(name="price"),
    Crossed(name="ab", columns=["a", "b"]),
]


def test_every_feature_with_one_code_that_is_no_cross_is_crossed_by_default() -> None:
    config = OptInterConfig().complete(FEATURES)
    assert config.cross == ("a", "b", "c")
    assert config.complete(FEATURES) == config
    added = OptInter.columns(config, FEATURES)
    assert [(each.name, each.inputs) for each in added] == [
        ("a x b", ("a", "b")),
        ("a x c", ("a", "c")),
        ("b x c", ("b", "c")),
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cross": ("a", "tags")}, r"model\.cross: 'tags' is a list, .*Leave it out"),
        ({"cross": ("a", "price")}, r"model\.cross: 'price' is a number without codes"),
        ({"cross": ("a",)}, r"model\.cross: found 1 features with one code"),
        (
            {"architecture": [{"columns": ("a", "z"), "method": "naive"}]},
            r"model\.architecture: a pair names 'z', which is not among the crossed features: a, b, c",
        ),
    ],
)
def test_what_cannot_be_crossed_is_refused_by_name(settings: Any, message: str) -> None:
    with pytest.raises(JobError, match=message):
        OptInterConfig.model_validate(settings).complete(FEATURES)


def test_an_architecture_is_read_from_the_file_of_a_search(tmp_path: Path) -> None:
    found = [
        FoundPair(
            columns=pair,
            method=cast("Any", method),
            strength=(0.2, 0.3, 0.5),
            rows=9,
            information=0.1,
        )
        for pair, method in zip(PAIRS, MIXED, strict=True)
    ]
    (tmp_path / "architecture.toml").write_bytes(architecture_file(found))
    config = config_of(architecture=str(tmp_path / "architecture.toml"))
    assert config.architecture == tuple(
        Pair(columns=pair, method=cast("Any", method))
        for pair, method in zip(PAIRS, MIXED, strict=True)
    )
    assert OptInterConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read: No such file"),
        ("pairs = 3", "no architecture of OptInter"),
        ("[[pairs]]\ncolumns = ['a', 'b']", "no architecture of OptInter: 'method'"),
    ],
)
def test_a_file_that_is_no_architecture_is_refused(
    tmp_path: Path, text: str | None, message: str
) -> None:
    path = tmp_path / "architecture.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message):
        config_of(architecture=str(path))


def test_one_method_may_be_given_for_all_pairs() -> None:
    config = config_of(architecture="memorise")
    assert [pair.method for pair in config.pairs] == ["memorise"] * 3
    assert config.second() == ()


def test_the_frequent_share_leaves_out_missing_and_rare_values() -> None:
    assert frequent_share(np.array([[10, 0], [60, 20], [4, 1], [5, 0]])) == pytest.approx(0.1)
    assert frequent_share(np.zeros((2, 2), np.int64)) == 0
