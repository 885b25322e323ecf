"""The truth that is planted: fields, pairs, and what they add to the logit.

Letters: N rows, V values of a field, K latent dimensions. Values are ids 0 to V - 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from headwater.pipelines.evaluation.metrics import sigmoid
from headwater.pipelines.planted.config import PlantedConfig, SplitName

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Values = Mapping[str, Integers]
"""Values of some rows, by field."""
Pair = tuple[str, str]

_SWEEPS = 20
"""Times that each row of a table of signs is mixed with another."""


@dataclass(frozen=True, slots=True)
class Field:
    """A column of ids, and how frequent each is."""

    name: str
    kind: Literal["small", "large", "useless"]
    id_of_rank_V: Integers
    """Its values, the most frequent first."""
    prob_V: Floats
    """Probability of each value."""
    useful_V: NDArray[np.bool_]
    """Whether a value may have an effect."""
    exponent: float

    def draw(self, uniform_N: Floats) -> Integers:
        """Return a value for each number in [0, 1)."""
        size = len(self.id_of_rank_V)
        whole = _area(np.array([size + 1.0]), self.exponent)[0]
        if self.exponent == 1:
            place_N = np.exp(uniform_N * whole)
        else:
            rest = 1 - self.exponent
            place_N = (1 + uniform_N * whole * rest) ** (1 / rest)
        return self.id_of_rank_V[np.minimum(place_N.astype(np.int64) - 1, size - 1)]


@dataclass(slots=True)
class Counts:
    """How often values, and combinations of memorised pairs, were seen."""

    values: dict[str, Integers]
    cells: dict[Pair, Integers]

    def add(self, values: Values) -> None:
        """Count some rows."""
        for name, count_V in self.values.items():
            count_V += np.bincount(values[name], minlength=len(count_V))
        for (first, second), count_VV in self.cells.items():
            cell_N = values[first] * count_VV.shape[1] + values[second]
            count_VV += np.bincount(cell_N, minlength=count_VV.size).reshape(count_VV.shape)


@dataclass(frozen=True, slots=True)
class Effects:
    """What values and pairs of values add to the logit."""

    ids: Mapping[str, Floats]
    """For each field that of its values alone, (V,)."""
    cells: Mapping[Pair, Floats]
    """For each memorised pair that of a combination, (V, V)."""
    products: Mapping[Pair, tuple[Floats, Floats]]
    """For each factorised pair the vectors whose inner product it is, (V, K) of either field."""

    def logit(self, values: Values) -> Floats:
        """Return the logit of each row."""
        logit_N = np.zeros(len(next(iter(values.values()))))
        for name, effect_V in self.ids.items():
            logit_N += effect_V[values[name]]
        for (first, second), effect_VV in self.cells.items():
            logit_N += effect_VV[values[first], values[second]]
        for (first, second), (left_VK, right_VK) in self.products.items():
            # A dimension at a time: the order of the sum is then the same for any number of rows.
            for left_V, right_V in zip(left_VK.T, right_VK.T, strict=True):
                logit_N += left_V[values[first]] * right_V[values[second]]
        return logit_N

    def seen(self, counts: Counts, min_count: int) -> Effects:
        """Return what rows can teach: values seen at all, combinations seen `min_count` times."""
        known = {name: count_V > 0 for name, count_V in counts.values.items()}
        return Effects(
            ids={name: effect_V * known[name] for name, effect_V in self.ids.items()},
            cells={
                pair: effect_VV * (counts.cells[pair] >= min_count)
                for pair, effect_VV in self.cells.items()
            },
            products={
                (first, second): (
                    left_VK * known[first][:, None],
                    right_VK * known[second][:, None],
                )
                for (first, second), (left_VK, right_VK) in self.products.items()
            },
        )

    def of_ids(self) -> Effects:
        """Return the effects of values alone."""
        return Effects(self.ids, {}, {})


@dataclass(frozen=True, slots=True)
class Truth:
    """What decides the label, drawn from the settings' seed."""

    config: PlantedConfig
    fields: Mapping[str, Field]
    effects: Effects

    def counts(self) -> Counts:
        """Return counts of no rows."""
        return Counts(
            {name: np.zeros(len(field.prob_V), np.int64) for name, field in self.fields.items()},
            {pair: np.zeros(cell.shape, np.int64) for pair, cell in self.effects.cells.items()},
        )

    def sizes(self, name: str) -> Floats:
        """Return for each value of a field the root mean square of what it adds to the logit, (V,)."""
        square_V = self.effects.ids[name] ** 2
        for (first, second), cell_VV in self.effects.cells.items():
            if name == first:
                square_V += cell_VV**2 @ self.fields[second].prob_V
            elif name == second:
                square_V += self.fields[first].prob_V @ cell_VV**2
        for pair, both in self.effects.products.items():
            if name in pair:
                mine = pair.index(name)
                other_VK, prob_V = both[1 - mine], self.fields[pair[1 - mine]].prob_V
                moment_KK = other_VK.T @ (prob_V[:, None] * other_VK)
                square_V += ((both[mine] @ moment_KK) * both[mine]).sum(1)
        return np.sqrt(square_V)

    def rows(self, chunk: int) -> Iterator[tuple[SplitName, dict[str, Integers], NDArray[np.int8]]]:
        """Yield file, values and labels of `chunk` rows at a time, the same ones for any `chunk`."""
        seed = self.config.seed
        draws = {name: stream(seed, "values", name) for name in self.fields}
        noises, chances = stream(seed, "noise"), stream(seed, "label")
        for part, size in self.config.split.items():
            for start in range(0, size, chunk):
                num_rows = min(chunk, size - start)
                values = {
                    name: field.draw(draws[name].random(num_rows))
                    for name, field in self.fields.items()
                }
                logit_N = self.effects.logit(values)
                if self.config.noise:
                    logit_N += self.config.noise * noises.standard_normal(num_rows)
                label_N = chances.random(num_rows) < sigmoid(logit_N)
                yield part, values, label_N.astype(np.int8)


def plant(config: PlantedConfig) -> Truth:
    """Draw the truth that the settings describe."""
    fields = {field.name: field for field in _fields(config)}
    random = stream(config.seed, "pairs")
    cells = {
        pair: config.cell_effect * balanced_signs(config.small_ids, random)
        for pair in _pairs(fields, "small", config.memorised, random)
    }
    products = {
        pair: _vectors(fields[pair[0]], fields[pair[1]], config, random)
        for pair in _pairs(fields, "large", config.factorised, random)
    }
    ids = {name: _id_effects(field, config) for name, field in fields.items()}
    return Truth(config, fields, Effects(ids, cells, products))


def stream(seed: int, *names: str) -> Generator:
    """Return the random numbers of one purpose, independent of those of any other."""
    return np.random.default_rng([seed, *" ".join(names).encode()])


def balanced_signs(size: int, random: Generator) -> Floats:
    """Return random signs, (size, size), whose rows and columns sum to 0, or to 1 or -1 where `size` is odd.

    With sums of 0 no value has an effect by itself. A checkerboard has them, and keeps them while two rows
    exchange at random what they differ in (the curveball algorithm); mixed, it has full rank but for them.
    """
    sign_VV = np.add.outer(np.arange(size), np.arange(size)) % 2 == 0
    for _ in range(_SWEEPS):
        order = random.permutation(size)
        for one, other in zip(order[::2], order[1::2], strict=False):
            differ = np.flatnonzero(sign_VV[one] != sign_VV[other])
            sign_VV[one, differ] = random.permutation(sign_VV[one, differ])
            sign_VV[other, differ] = ~sign_VV[one, differ]
    return np.where(sign_VV, 1.0, -1.0)


def _fields(config: PlantedConfig) -> Iterator[Field]:
    others = config.fields - config.small_fields
    rest = config.ids - config.small_fields * config.small_ids
    sizes = [rest // others + (index < rest % others) for index in range(others)]
    for index in range(config.small_fields):
        yield _field(f"small_{index + 1}", "small", config.small_ids, config)
    for index, size in enumerate(sizes[: config.large_fields]):
        yield _field(f"large_{index + 1}", "large", size, config)
    for index, size in enumerate(sizes[config.large_fields :]):
        yield _field(f"useless_{index + 1}", "useless", size, config)


def _field(
    name: str, kind: Literal["small", "large", "useless"], size: int, config: PlantedConfig
) -> Field:
    random = stream(config.seed, "field", name)
    exponent = 0.0 if kind == "small" else config.exponent
    id_of_rank_V = random.permutation(size)
    prob_V, useful_V = np.empty(size), np.empty(size, np.bool_)
    area_V = _area(np.arange(1.0, size + 2), exponent)
    prob_V[id_of_rank_V] = np.diff(area_V) / area_V[-1]
    # Every so many ranks one is useless, so that useless values are as frequent as the others.
    share = {"small": 0.0, "large": config.useless_ids, "useless": 1.0}[kind]
    useful_V[id_of_rank_V] = np.diff(np.floor(np.arange(size + 1) * share + random.random())) == 0
    return Field(name, kind, id_of_rank_V, prob_V, useful_V, exponent)


def _area(place: Floats, exponent: float) -> Floats:
    """Return the integral of x to the power of `-exponent` from 1 to each place."""
    if exponent == 1:
        return np.log(place)
    return (place ** (1 - exponent) - 1) / (1 - exponent)


def _pairs(fields: Mapping[str, Field], kind: str, num: int, random: Generator) -> list[Pair]:
    names = [field.name for field in fields.values() if field.kind == kind]
    pairs = list(combinations(names, 2))
    return [pairs[index] for index in sorted(random.choice(len(pairs), num, replace=False))]


def _vectors(
    first: Field, second: Field, config: PlantedConfig, random: Generator
) -> tuple[Floats, Floats]:
    """Return vectors whose inner product has over rows of useful values mean 0 and the wanted deviation.

    So have its means over the values of either field: no value has an effect by itself.
    """
    scale = np.sqrt(config.product_effect / np.sqrt(config.rank))
    found: list[Floats] = []
    for field in (first, second):
        vector_VK = random.standard_normal((len(field.prob_V), config.rank))
        weight_V = field.prob_V * field.useful_V
        weight_V /= weight_V.sum()
        vector_VK -= weight_V @ vector_VK
        vector_VK *= scale / np.sqrt(weight_V @ vector_VK**2)
        found.append(vector_VK * field.useful_V[:, None])
    return found[0], found[1]


def _id_effects(field: Field, config: PlantedConfig) -> Floats:
    random = stream(config.seed, "effects", field.name)
    size_V = random.uniform(*config.id_effects, len(field.prob_V))
    sign_V = random.choice([-1.0, 1.0], len(field.prob_V))
    return size_V * sign_V * field.useful_V
