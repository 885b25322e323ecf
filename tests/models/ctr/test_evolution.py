"""Evolutionary search: what it keeps, what it evaluates, and what it finds."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pytest

from headwater.models.ctr.evolution import (
    Breeding,
    Candidate,
    Evolution,
    Space,
    crossed,
    mutated,
)

BREEDING = Breeding(parents=4, mutations=5, crossovers=5, probability=0.1)
WIDE = Space(dims=tuple(range(1, 17)), bytes_per_dim=(40,) * 6)


def fitness(candidate: Candidate) -> float:
    """Prefer a dimension of its own for each feature."""
    return -float(sum(abs(dim - 2 * i) for i, dim in enumerate(candidate)))


def search(space: Space, generations: int, seed: int = 0) -> tuple[Evolution, list[float]]:
    """Return the search after so many generations, and its best fitness after each."""
    evolution = Evolution(space, BREEDING, seed)
    best: list[float] = []
    for _ in range(generations):
        evolution.tell({each: fitness(each) for each in evolution.next_generation()})
        best.append(evolution.fitness[evolution.best(1)[0]])
    return evolution, best


def test_mutation_and_crossover_leave_the_parents_as_they_were() -> None:
    # The published code writes mutants over their parents, the remembered best among them.
    random = np.random.default_rng(0)
    evolution, _ = search(WIDE, 3)
    before = dict(evolution.fitness)
    evolution.next_generation()
    assert evolution.fitness == before
    parent = (1, 2, 3)
    assert mutated(parent, (7, 8), 1.0, random) != parent
    assert parent == (1, 2, 3)


def test_a_mutation_draws_from_all_dimensions_with_the_given_probability() -> None:
    random = np.random.default_rng(0)
    parent = (5,) * 10_000
    mutant = mutated(parent, (1, 2, 5), 0.1, random)
    changed = [dim for dim in mutant if dim != 5]
    assert len(changed) / len(parent) == pytest.approx(0.1 * 2 / 3, abs=0.01)
    assert set(changed) == {1, 2}


def test_a_crossover_takes_a_feature_of_each_parent_at_least() -> None:
    # The published code draws the cut up to D, so that most children are copies of one parent.
    random = np.random.default_rng(0)
    children = {crossed((1,) * 4, (2,) * 4, random) for _ in range(200)}
    assert children == {(1, 2, 2, 2), (1, 1, 2, 2), (1, 1, 1, 2)}


def test_children_come_from_the_best_of_all_generations() -> None:
    # The published code takes parents beyond the best, after they were overwritten.
    evolution, _ = search(WIDE, 4)
    parents = set(evolution.best(BREEDING.parents))
    children = evolution.next_generation()[BREEDING.mutations :]
    for child in children:
        cuts = range(1, len(child))
        heads = [any(child[:cut] == parent[:cut] for parent in parents) for cut in cuts]
        tails = [any(child[cut:] == parent[cut:] for parent in parents) for cut in cuts]
        assert any(head and tail for head, tail in zip(heads, tails, strict=True))


def test_the_best_never_falls_and_is_found_again_from_its_seed() -> None:
    # The published code keeps no elites.
    evolution, best = search(WIDE, 30)
    assert best == sorted(best)
    assert best[-1] > best[0]
    again, _ = search(WIDE, 30)
    assert again.fitness == evolution.fitness
    assert search(WIDE, 30, seed=1)[0].fitness != evolution.fitness


def test_a_search_goes_on_from_what_was_evaluated_as_if_it_had_not_stopped() -> None:
    whole, _ = search(WIDE, 6)
    half, _ = search(WIDE, 3)
    resumed = Evolution(WIDE, BREEDING, 0, dict(half.fitness), half.generation)
    for _ in range(3):
        resumed.tell({each: fitness(each) for each in resumed.next_generation()})
    assert list(resumed.fitness.items()) == list(whole.fitness.items())


def test_no_candidate_is_evaluated_twice_and_a_small_space_is_searched_whole() -> None:
    space = Space(dims=(1, 2, 3, 4), bytes_per_dim=(10, 10))
    values: Mapping[Candidate, float] = {
        each: np.random.default_rng(7).permutation(16)[i].item()
        for i, each in enumerate(itertools.product(space.dims, repeat=2))
    }
    evolution = Evolution(space, BREEDING, 0)
    evaluated: list[Candidate] = []
    while generation := evolution.next_generation():
        evaluated += generation
        evolution.tell({each: values[each] for each in generation})
    assert sorted(evaluated) == sorted(values)
    assert evolution.best(1) == [max(values, key=lambda each: values[each])]


def test_every_candidate_is_within_the_budget() -> None:
    space = Space(WIDE.dims, (40, 4, 400, 40, 40, 4000), fixed_bytes=100, max_bytes=9000)
    evolution, _ = search(space, 5)
    assert len(evolution.fitness) == 50
    assert all(space.num_bytes(each) <= 9000 for each in evolution.fitness)
    assert space.num_bytes((2, 1, 1, 1, 1, 1)) == 100 + 80 + 4 + 400 + 40 + 40 + 4000


def test_one_feature_has_no_crossover() -> None:
    evolution, _ = search(Space(tuple(range(1, 65)), (4,)), 3)
    assert len(evolution.fitness) == 30
