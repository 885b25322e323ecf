"""OptEmbed: a supernet masks what the model of its architecture leaves out, for every base."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from headwater.feature_store.encoders import Vocabulary
from headwater.feature_store.errors import JobError
from headwater.feature_store.schema import Schema
from headwater.models.batch import Batch
from headwater.models.ctr.embedding_search import (
    Supernet,
    main_table,
    prefix,
    recalibrated,
    scorer,
)
from headwater.models.ctr.evolution import Candidate
from headwater.models.ctr.optembed import OptEmbed
from headwater.models.ctr.optembed_config import OptEmbedConfig
from headwater.models.ctr.pruned_weights import (
    compact_weights,
    features_of,
    first_weights,
    load_chosen,
    search_space,
)
from headwater.models.ctr.pruning import Architecture, Chosen, Kept, read_chosen
from headwater.models.network import Network, build_network, count_parameters
from headwater.models.placement.place import place
from headwater.models.placement.settings import LearnSettings
from headwater.models.registry import load_model

DIM = 6
BASES: dict[str, dict[str, Any]] = {
    "fm": {"type": "fm"},
    "dnn": {"type": "dnn", "hidden": (16, 8), "batch_norm": True},
    "deepfm": {"type": "deepfm", "hidden": (16, 8)},
    "dcnv2": {"type": "dcnv2", "hidden": (16, 8)},
    "dcnv2-stacked": {"type": "dcnv2", "hidden": (16,), "structure": "stacked"},
    "finalmlp": {
        "type": "finalmlp",
        "hidden_1": (16, 8),
        "hidden_2": (8,),
        "num_heads": 2,
        "gate_hidden": (8,),
        "gate_1_context": ("user.id",),
        "gate_2_context": ("price", "tags"),
    },
    "finalmlp-static": {
        "type": "finalmlp",
        "hidden_1": (16,),
        "hidden_2": (8,),
        "num_heads": 2,
        "gate_hidden": (8,),
    },
}
CANDIDATE: Candidate = (2, 5, 6, 1, 3, 2)
"""A dimension for each column of `mixed`: one is whole, and two are alike."""
LEARN = LearnSettings(sparse_lr=1e-2, dense_lr=1e-2)
MakeBatch = Callable[..., Batch]


def config_of(name: str = "deepfm", **settings: Any) -> OptEmbedConfig:
    whole = {"base": {"embedding_dim": DIM, **BASES[name]}, **settings}
    return OptEmbedConfig.model_validate(whole)


def supernet_of(schema: Schema, config: OptEmbedConfig) -> Network:
    """Return an untrained network of large weights."""
    network = build_network(schema, OptEmbed, config, "dense", 1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
        for table in cast("Any", network.embeddings.store).merged().values():
            for view_ND in table.views().values():
                view_ND[0] = 0
    return network


def pruned(network: Network, threshold: float) -> Kept:
    """Prune the main tables at one threshold for all columns."""
    table = main_table(network)
    assert table is not None
    thresholds = table.add_thresholds(1)
    with torch.no_grad():
        thresholds.threshold_F.fill_(threshold)
    return {name: kept_N.numpy() for name, kept_N in table.prune().items()}


def chosen_of(network: Network, config: OptEmbedConfig, kept: Kept) -> Chosen:
    """Return `CANDIDATE` as a search would, with the weights that the network has."""
    features = features_of(network.embeddings, CANDIDATE, kept)
    found = Architecture(
        base=config.base.type,
        embedding_dim=DIM,
        auc=0.75,
        bytes=search_space(network.embeddings, config, kept).num_bytes(CANDIDATE),
        features=features,
    )
    columns = list(features)
    weights = compact_weights(first_weights(network), config.with_features(features), kept, columns)
    return Chosen(found, kept, weights)


def compact_of(
    schema: Schema, config: OptEmbedConfig, chosen: Chosen, mode: Any = "dense"
) -> Network:
    config = config.with_features(chosen.architecture.features)
    network = build_network(schema, OptEmbed, config, mode, 2)
    place(network, torch.device("cpu"), LEARN)
    load_chosen(network, config, chosen)
    return network.eval()


def logits(network: Network, batch: Batch) -> Tensor:
    with torch.no_grad():
        return network.eval()(batch)[0]


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("threshold", [0.0, 1.4, 100.0])
def test_the_compact_model_scores_as_the_masked_one(
    base: str, threshold: float, mixed: Schema, make_batch: MakeBatch
) -> None:
    config = config_of(base)
    network = supernet_of(mixed, config)
    kept = pruned(network, threshold)
    batch = make_batch(mixed, 64)
    with torch.no_grad():
        expected_B = scorer(network.eval(), [(network.model, CANDIDATE)])(batch)[0]
    compact = compact_of(mixed, config, chosen_of(network, config, kept))
    torch.testing.assert_close(logits(compact, batch), expected_B, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("base", BASES)
def test_without_thresholds_and_at_full_width_a_supernet_is_its_base(
    base: str, mixed: Schema, make_batch: MakeBatch
) -> None:
    config = config_of(base)
    network = build_network(mixed, OptEmbed, config, "dense", 1)
    plain_class = load_model(config.base.type)
    plain = build_network(mixed, plain_class, config.base, "dense", 1)
    batch = make_batch(mixed, 16)
    table = main_table(network)
    assert table is not None
    table.add_thresholds(1)
    assert torch.equal(logits(network, batch), logits(plain, batch))


def test_the_compact_model_holds_what_is_kept_and_nothing_else(mixed: Schema) -> None:
    config = config_of("dnn")
    network = supernet_of(mixed, config)
    kept = pruned(network, 1.4)
    chosen = chosen_of(network, config, kept)
    compact = compact_of(mixed, config, chosen)
    # Counted from the masks: a weight for each coordinate of each row that is kept.
    masks = prefix(torch.tensor(CANDIDATE), DIM)
    names = [column.name for column in mixed.columns]
    rows = {name: int(kept[name].sum()) if name in kept else 1 for name in names}
    expected = sum(
        rows[name] * int(mask_D.sum()) for name, mask_D in zip(names, masks, strict=True)
    )
    zeros = sum(dim for name, dim in zip(names, CANDIDATE, strict=True) if name in kept)
    layers = (sum(CANDIDATE) * 16 + 3 * 16) + (16 * 8 + 3 * 8) + 9
    assert count_parameters(compact) == expected + zeros + layers
    remaps = sum(len(kept_N) for kept_N in kept.values())
    assert chosen.architecture.bytes == 4 * (expected + zeros + remaps)
    assert 0 < sum(rows[name] for name in kept) < remaps - len(kept)


def test_a_column_that_lost_no_row_has_no_remap(mixed: Schema) -> None:
    config = config_of("fm")
    network = supernet_of(mixed, config)
    chosen = chosen_of(network, config, pruned(network, 0.0))
    compact = compact_of(mixed, config, chosen)
    assert compact.embeddings.remap is None
    sizes = {column.name: max(column.cardinality, 1) for column in mixed.columns}
    main = sum(size * dim for size, dim in zip(sizes.values(), CANDIDATE, strict=True))
    assert chosen.architecture.bytes == 4 * (main + sum(sizes.values()))


def test_thresholds_above_all_rows_leave_a_constant(mixed: Schema, make_batch: MakeBatch) -> None:
    config = config_of("dnn")
    network = supernet_of(mixed, config)
    kept = pruned(network, torch.inf)
    assert not any(kept_N.any() for kept_N in kept.values())
    batch = make_batch(mixed, 16)
    batch = Batch(batch.codes_BW, torch.zeros_like(batch.dense_BD), batch.label_B)
    logit_B = logits(compact_of(mixed, config, chosen_of(network, config, kept)), batch)
    assert torch.equal(logit_B, logit_B[:1].expand(16))


def test_prefix_masks_are_a_triangle() -> None:
    mask_DD = prefix(torch.arange(1, DIM + 1), DIM)
    assert mask_DD.sum(0).tolist() == list(range(DIM, 0, -1))
    assert mask_DD.sum(1).tolist() == list(range(1, DIM + 1))


def train_supernet(
    schema: Schema, batches: list[Batch], base: str = "deepfm", **search: Any
) -> Supernet:
    config = config_of(base, search=search)
    network = build_network(schema, OptEmbed, config, "dense", 1)
    placement = place(network, torch.device("cpu"), LEARN)
    strategy = Supernet(placement, LEARN, config=config, steps=100)
    for batch in batches:
        strategy.step(batch, len(batch), lambda _: None)
    return strategy


def test_dimensions_are_drawn_uniformly_and_independently(mixed: Schema) -> None:
    strategy = train_supernet(mixed, [])
    torch.manual_seed(0)
    first_BF, second_BF = strategy.draw(5000, 6), strategy.draw(5000, 6)
    assert not torch.equal(first_BF, second_BF)
    for field_B in (*first_BF.T, first_BF[:, 0] * 0 + second_BF[:, 1]):
        counts = torch.bincount(field_B, minlength=DIM + 1)[1:].double()
        chi_square = ((counts - 5000 / DIM) ** 2 / (5000 / DIM)).sum().item()
        assert (
            chi_square < 20.5
        )  # passed by one in a thousand of uniform draws, 5 degrees of freedom
    joint = torch.bincount((first_BF[:, 0] - 1) * DIM + first_BF[:, 1] - 1, minlength=DIM**2)
    assert ((joint - 5000 / DIM**2) ** 2 / (5000 / DIM**2)).sum().item() < 66.6
    multiples = train_supernet(mixed, [], dim_multiple=4).draw(100, 6)
    assert multiples.unique().tolist() == [4]


def test_a_supernet_scores_without_drawing(mixed: Schema, make_batch: MakeBatch) -> None:
    strategy = train_supernet(mixed, [make_batch(mixed, 32)])
    batch = make_batch(mixed, 16)
    network = strategy.placement.network
    assert torch.equal(logits(network, batch), logits(network, batch))


def test_thresholds_rise_by_their_penalty_and_stay_without_a_rate(
    mixed: Schema, make_batch: MakeBatch
) -> None:
    batches = [make_batch(mixed, 32, seed) for seed in range(3)]
    still = train_supernet(mixed, batches, alpha=0.0, threshold_lr=0.0)
    assert not still.thresholds[0].any()
    rising = train_supernet(mixed, batches, alpha=1.0, threshold_lr=0.1)
    assert (rising.thresholds[0] > 0.2).all()
    for tables in rising.placement.network.embeddings.tables().values():
        assert not any(table_ND[0].any() for table_ND in tables.values())


def test_rates_fall_with_the_steps(mixed: Schema) -> None:
    search = config_of().search
    assert search.threshold_rate(880) == pytest.approx(1e-2)
    assert search.threshold_rate(88_000) == pytest.approx(1e-4)
    assert search.penalty(880) == pytest.approx(3e-3, rel=0.02)
    assert search.threshold_rate(10) == search.penalty(10) == 0.05
    given = config_of(search={"threshold_lr": 0.3, "l2": 0.2}).search
    assert (given.threshold_rate(10), given.penalty(10)) == (0.3, 0.2)
    strategy = train_supernet(mixed, [])
    assert strategy.sgd is not None
    assert strategy.sgd.param_groups[0]["lr"] == 0.05


def test_finalists_get_batch_statistics_of_their_own_and_the_supernet_keeps_its(
    mixed: Schema, make_batch: MakeBatch
) -> None:
    # The published search reads statistics that were collected under random dimensions.
    batches = [make_batch(mixed, 64, seed) for seed in range(4)]
    network = train_supernet(mixed, batches, "dnn").placement.network
    before = {key: value.clone() for key, value in network.model.state_dict().items()}
    model = cast("Any", recalibrated(network, CANDIDATE, batches))
    mask_FD = prefix(torch.tensor(CANDIDATE), DIM)
    with torch.no_grad():
        inputs = [network.embeddings(each).embeddings["emb_BFD"] * mask_FD for each in batches]
        means = [model.base.mlp[0](emb_BFD.flatten(1)).mean(0) for emb_BFD in inputs]
    torch.testing.assert_close(model.base.mlp[1].running_mean, torch.stack(means).mean(0))
    for key, value in network.model.state_dict().items():
        assert torch.equal(value, before[key])
    assert not any(layer.training for layer in model.modules())


def test_an_architecture_comes_back_from_its_files(mixed: Schema, tmp_path: Path) -> None:
    config = config_of("finalmlp")
    network = supernet_of(mixed, config)
    chosen = chosen_of(network, config, pruned(network, 1.4))
    for name, content in chosen.files().items():
        (tmp_path / name).write_bytes(content)
    for path in (tmp_path, tmp_path / "architecture.toml"):
        found = read_chosen(path)
        assert found.architecture == chosen.architecture
        assert {name: kept_N.tolist() for name, kept_N in found.kept.items()} == {
            name: kept_N.tolist() for name, kept_N in chosen.kept.items()
        }
        for name, weight in chosen.weights["base"].items():
            assert torch.equal(found.weights["base"][name], weight)
    text = (tmp_path / "architecture.toml").read_text()
    assert '[features."user.id"]\ndimension = 2\nkept = ' in text
    (tmp_path / "rows.arrow").write_bytes(b"ARROW1")
    with pytest.raises(JobError, match=r"rows\.arrow and initial\.pt belong beside"):
        read_chosen(tmp_path)
    with pytest.raises(JobError, match="No such"):
        read_chosen(tmp_path / "elsewhere")


def test_an_architecture_of_another_job_is_refused_by_name(mixed: Schema, tmp_path: Path) -> None:
    config = config_of("dnn")
    network = supernet_of(mixed, config)
    chosen = chosen_of(network, config, pruned(network, 1.4))
    (tmp_path / "architecture.toml").write_bytes(chosen.files()["architecture.toml"])
    features = [Vocabulary(name=column.name) for column in mixed.columns]
    found = config_of("dnn", architecture=str(tmp_path)).complete(features)
    assert list(found.dimensions.values()) == list(CANDIDATE)
    assert found.complete(features) is found
    with pytest.raises(JobError, match=r"found with base = 'dnn', not 'fm'"):
        config_of("fm", architecture=str(tmp_path)).complete(features)
    with pytest.raises(JobError, match=r"is of the features user\.id, .* declares user\.id, price"):
        config_of("dnn", architecture=str(tmp_path)).complete(features[:2])
    with pytest.raises(JobError, match=r"model\.base differs from the search"):
        compact_of(mixed, config_of("dcnv2"), chosen)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"embedding_dim": 8}, "set base.embedding_dim"),
        ({"search": {"dim_multiple": 8}}, "dim_multiple = 8 is above base.embedding_dim = 6"),
        ({"base": {"type": "dual_mlp"}}, "'fm', 'dnn', 'deepfm', 'dcnv2', 'finalmlp'"),
        ({"base": {"type": "dnn", "hiden": (4,)}}, "Extra inputs"),
    ],
)
def test_a_contradiction_in_the_settings_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config_of("dnn", **settings)


def test_a_budget_below_the_smallest_candidate_is_refused_with_its_bytes(mixed: Schema) -> None:
    network = supernet_of(mixed, config_of("fm"))
    rows = 23 + 9 + 7 + 11 + 2
    smallest = 4 * (rows + rows)  # dimension 1 of every row, and the first-order weights
    assert search_space(network.embeddings, config_of("fm", max_bytes=smallest), None)
    message = (
        rf"model\.max_bytes: found {smallest - 1}, but the smallest .* takes at least {smallest}"
    )
    with pytest.raises(JobError, match=message):
        search_space(network.embeddings, config_of("fm", max_bytes=smallest - 1), None)


def test_bytes_count_every_dimension(mixed: Schema) -> None:
    # The published search counts one dimension too few of each feature.
    network = supernet_of(mixed, config_of("dnn"))
    space = search_space(network.embeddings, config_of("dnn"), pruned(network, 0.0))
    assert space.num_bytes((1,) * 6) == 4 * (23 + 9 + 7 + 11 + 2)
    assert space.num_bytes(space.widest) == DIM * space.num_bytes(space.smallest)


def test_the_weights_of_an_architecture_are_those_that_the_search_started_from(
    mixed: Schema,
) -> None:
    config = config_of("finalmlp")
    network = build_network(mixed, OptEmbed, config, "dense", 1)
    first = first_weights(network)
    kept = {"user.id": np.arange(23) % 2 == 1, "city": np.arange(7) > 0}
    kept |= {name: np.arange(size) > 3 for name, size in (("tags", 9), ("history", 11))}
    features = features_of(network.embeddings, CANDIDATE, kept)
    weights = compact_weights(first, config.with_features(features), kept, list(features))
    table_ND = first["tables"]["emb_BFD"]["user.id"]
    expected_ND = torch.cat([table_ND[:1], table_ND[1::2]])[:, :2]
    assert torch.equal(weights["tables"]["emb_2_pruned"]["user.id"], expected_ND)
    assert torch.equal(
        weights["tables"]["emb_1"]["city"], first["tables"]["emb_BFD"]["city"][:, :1]
    )
    assert torch.equal(
        weights["vectors"]["emb_5"]["price"], first["vectors"]["emb_BFD"]["price"][:5]
    )
    assert weights["base"]["mlp_1.0.weight"].shape == (16, sum(CANDIDATE))
    assert torch.equal(
        weights["tables"]["gate_1_BCD"]["user.id"], first["tables"]["gate_1_BCD"]["user.id"]
    )
    chosen = Chosen(
        Architecture(base="finalmlp", embedding_dim=DIM, auc=0.5, bytes=1, features=features),
        kept,
        torch.load(io.BytesIO(_saved(weights)), weights_only=True),
    )
    compact = compact_of(mixed, config, chosen)
    found = compact.embeddings.tables()
    for slot, columns in weights["tables"].items():
        for column, table in columns.items():
            assert np.array_equal(found[slot][column], table.numpy())


def _saved(weights: Any) -> bytes:
    content = io.BytesIO()
    torch.save(weights, content)
    return content.getvalue()
