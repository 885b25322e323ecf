"""Planted effects have the shapes that each method needs, and values come as often as they should."""

from __future__ import annotations

import numpy as np
import pytest

from headwater.pipelines.planted.config import PlantedConfig
from headwater.pipelines.planted.truth import Truth, balanced_signs, plant

ROWS = 200_000


def many(truth: Truth, rows: int = ROWS) -> dict[str, np.ndarray]:
    """Return values of some rows."""
    random = np.random.default_rng(1)
    return {name: field.draw(random.random(rows)) for name, field in truth.fields.items()}


@pytest.mark.parametrize("size", [2, 3, 10, 51, 64])
def test_no_row_or_column_of_signs_has_a_mean(size: int) -> None:
    sign_VV = balanced_signs(size, np.random.default_rng(0))
    assert set(np.unique(sign_VV)) == {-1.0, 1.0}
    assert np.abs(sign_VV.sum(0)).max() == size % 2
    assert np.abs(sign_VV.sum(1)).max() == size % 2


@pytest.mark.parametrize("seed", range(5))
def test_signs_have_full_rank_as_random_ones_have(seed: int) -> None:
    size = 50
    singular = np.linalg.svd(balanced_signs(size, np.random.default_rng(seed)), compute_uv=False)
    # The zero sums take one dimension.
    assert (singular > 1e-9).sum() == size - 1
    # Singular values of random signs lie below 2 sqrt(size), in a quarter of a circle; a few more for chance.
    assert singular[0] < 2.3 * np.sqrt(size)
    random = np.random.default_rng(100 + seed).choice([-1.0, 1.0], (size, size))
    expected = np.linalg.svd(random, compute_uv=False)
    share, expected_share = (np.cumsum(each**2) / size**2 for each in (singular, expected))
    assert np.abs(share - expected_share).max() < 0.06


def test_neighbouring_signs_are_unrelated() -> None:
    sign_VV = balanced_signs(100, np.random.default_rng(0))
    for shift in (1, 2, 50):
        for axis in (0, 1):
            assert abs((sign_VV * np.roll(sign_VV, shift, axis)).mean()) < 0.05


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 1.5])
def test_values_come_as_often_as_the_truth_says(exponent: float) -> None:
    truth = plant(PlantedConfig(exponent=exponent, ids=250 + 7 * 40))
    values = many(truth)
    for name, field in truth.fields.items():
        assert field.prob_V.sum() == pytest.approx(1)
        count_V = np.bincount(values[name], minlength=len(field.prob_V))
        expected_V = ROWS * field.prob_V
        square = ((count_V - expected_V) ** 2 / expected_V).sum()
        freedom = len(expected_V) - 1
        assert abs(square - freedom) < 5 * np.sqrt(2 * freedom)
    skewed = truth.fields["large_1"]
    falling_V = skewed.prob_V[skewed.id_of_rank_V]
    assert falling_V[0] / falling_V[9] == pytest.approx(
        {0.0: 1, 0.5: 2.7, 1.0: 7.3, 1.5: 19.9}[exponent], rel=0.05
    )


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.9])
def test_useless_values_are_as_frequent_as_useful_ones(share: float) -> None:
    config = PlantedConfig(useless_ids=share, exponent=1.0, ids=250 + 7 * 1000)
    truth = plant(config)
    of_rows: list[float] = []
    for name, field in truth.fields.items():
        useless = {"small": 0.0, "large": share, "useless": 1.0}[field.kind]
        assert (~field.useful_V).mean() == pytest.approx(useless, abs=0.002)
        assert not truth.sizes(name)[~field.useful_V].any()
        if field.kind == "large":
            of_rows.append(field.prob_V[~field.useful_V].sum())
    assert np.mean(of_rows) == pytest.approx(share, abs=0.06)


def test_product_has_the_stated_size_and_rank_and_no_value_an_effect_by_itself() -> None:
    truth = plant(
        PlantedConfig(product_effect=0.7, rank=3, exponent=1.0, useless_ids=0.2, ids=250 + 7 * 150)
    )
    assert len(truth.effects.products) == 3
    for (first, second), (left_VK, right_VK) in truth.effects.products.items():
        left, right = truth.fields[first], truth.fields[second]
        product_VV = left_VK @ right_VK.T
        assert np.linalg.matrix_rank(product_VV) == 3
        assert np.abs(product_VV @ right.prob_V).max() < 1e-9
        assert np.abs(left.prob_V @ product_VV).max() < 1e-9
        square = left.prob_V @ product_VV**2 @ right.prob_V
        useful = left.prob_V[left.useful_V].sum() * right.prob_V[right.useful_V].sum()
        assert np.sqrt(square / useful) == pytest.approx(0.7, rel=0.1)


def test_size_of_a_value_is_what_it_adds_over_its_rows() -> None:
    truth = plant(PlantedConfig(ids=250 + 7 * 20, memorised=6, factorised=6, useless_ids=0.3))
    values = many(truth)
    for name in truth.fields:
        added_N = truth.effects.ids[name][values[name]]
        for pair, cell_VV in truth.effects.cells.items():
            if name in pair:
                added_N += cell_VV[values[pair[0]], values[pair[1]]]
        for pair, (left_VK, right_VK) in truth.effects.products.items():
            if name in pair:
                added_N += (left_VK[values[pair[0]]] * right_VK[values[pair[1]]]).sum(1)
        square_V = np.bincount(values[name], added_N**2) / np.bincount(values[name])
        assert np.sqrt(square_V) == pytest.approx(truth.sizes(name), rel=0.1, abs=0.02)


def test_another_seed_has_another_truth() -> None:
    one, same, other = (plant(PlantedConfig(seed=seed)) for seed in (1, 1, 2))
    for pair, cell_VV in one.effects.cells.items():
        assert (cell_VV == same.effects.cells[pair]).all()
    assert set(one.effects.cells) != set(other.effects.cells) or any(
        (cell_VV != other.effects.cells[pair]).any() for pair, cell_VV in one.effects.cells.items()
    )
    assert (one.effects.ids["small_1"] != other.effects.ids["small_1"]).any()
