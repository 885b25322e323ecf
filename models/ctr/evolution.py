"""Evolutionary search over the dimensions of features, within a memory budget.

A candidate is a dimension for each feature. Every draw is a function of the seed and the generation, so that
a search that was stopped goes on as if it had not been.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator

from headwater.models.seeds import derive_seed

Candidate = tuple[int, ...]
_TRIES = 50
"""Draws for a candidate that was not evaluated before, in each of two ways."""


@dataclass(frozen=True, slots=True)
class Space:
    """Candidates that may be chosen, and what they cost."""

    dims: tuple[int, ...]
    """Dimensions that a feature may have, ascending."""
    bytes_per_dim: tuple[int, ...]
    """Bytes of one dimension of each feature."""
    fixed_bytes: int = 0
    """Bytes that every candidate has."""
    max_bytes: int | None = None

    def num_bytes(self, candidate: Candidate) -> int:
        """Return the bytes of a candidate."""
        own = sum(dim * each for dim, each in zip(candidate, self.bytes_per_dim, strict=True))
        return self.fixed_bytes + own

    def fits(self, candidate: Candidate) -> bool:
        """Return whether a candidate is within the budget."""
        return self.max_bytes is None or self.num_bytes(candidate) <= self.max_bytes

    @property
    def smallest(self) -> Candidate:
        """The candidate with the least dimension for every feature."""
        return (self.dims[0],) * len(self.bytes_per_dim)

    @property
    def widest(self) -> Candidate:
        """The candidate with the greatest dimension for every feature."""
        return (self.dims[-1],) * len(self.bytes_per_dim)

    def draw(self, random: Generator) -> Candidate:
        """Return a candidate drawn uniformly, narrowed to the budget."""
        return self.narrowed(
            tuple(random.choice(self.dims, len(self.bytes_per_dim)).tolist()), random
        )

    def narrowed(self, candidate: Candidate, random: Generator) -> Candidate:
        """Return a candidate with features made narrower, drawn at random, until it fits."""
        while not self.fits(candidate):
            wide = [i for i, dim in enumerate(candidate) if dim > self.dims[0]]
            assert wide, "the smallest candidate fits"
            i = int(random.choice(wide))
            dim = int(random.choice([each for each in self.dims if each < candidate[i]]))
            candidate = (*candidate[:i], dim, *candidate[i + 1 :])
        return candidate


@dataclass(frozen=True, slots=True)
class Breeding:
    """Sizes of a generation, and how it comes from the one before."""

    parents: int
    """Best candidates so far from which the next ones come."""
    mutations: int
    crossovers: int
    probability: float
    """Share of the dimensions that a mutation draws anew."""


def mutated(
    candidate: Candidate, dims: Sequence[int], probability: float, random: Generator
) -> Candidate:
    """Return a copy with each dimension drawn anew, from all of them, with a probability."""
    return tuple(
        int(random.choice(dims)) if random.random() < probability else dim for dim in candidate
    )


def crossed(one: Candidate, other: Candidate, random: Generator) -> Candidate:
    """Return the first features of one candidate with the last of another, at least one of each."""
    cut = int(random.integers(1, len(one)))
    return one[:cut] + other[cut:]


@dataclass(slots=True)
class Evolution:
    """Search of the candidate of highest fitness: `next_generation` and `tell` in turn."""

    space: Space
    breeding: Breeding
    seed: int
    fitness: dict[Candidate, float] = field(default_factory=dict[Candidate, float])
    """Of every candidate that was evaluated, in order."""
    generation: int = 0
    """Generations that were evaluated."""

    def next_generation(self) -> list[Candidate]:
        """Return candidates to evaluate, none of them a second time; empty where no other was found."""
        random = np.random.default_rng(derive_seed(self.seed, "evolution", str(self.generation)))
        num_mutants, num_children = self.breeding.mutations, self.breeding.crossovers
        if len(self.space.bytes_per_dim) == 1:
            num_mutants, num_children = num_mutants + num_children, 0
        new: dict[Candidate, None] = {}
        if self.generation == 0:
            new[self.space.narrowed(self.space.widest, random)] = None
            for _ in range(num_mutants + num_children - 1):
                self._add(new, self.space.draw, random)
            return list(new)
        parents = self.best(self.breeding.parents)

        def mutant(random: Generator) -> Candidate:
            parent = parents[random.integers(len(parents))]
            return mutated(parent, self.space.dims, self.breeding.probability, random)

        def child(random: Generator) -> Candidate:
            one, other = random.integers(len(parents), size=2)
            return crossed(parents[one], parents[other], random)

        for _ in range(num_mutants):
            self._add(new, mutant, random)
        for _ in range(num_children):
            self._add(new, child, random)
        return list(new)

    def tell(self, fitness: Mapping[Candidate, float]) -> None:
        """Take the fitness of a generation."""
        self.fitness.update(fitness)
        self.generation += 1

    def best(self, number: int) -> list[Candidate]:
        """Return the best candidates of all generations, best first; of equal ones the earlier."""
        return sorted(self.fitness, key=lambda each: -self.fitness[each])[:number]

    def _add(
        self,
        new: dict[Candidate, None],
        breed: Callable[[Generator], Candidate],
        random: Generator,
    ) -> None:
        """Add a candidate that is new, one drawn uniformly where breeding finds none."""
        for way in (breed, self.space.draw):
            for _ in range(_TRIES):
                candidate = self.space.narrowed(way(random), random)
                if candidate not in new and candidate not in self.fitness:
                    new[candidate] = None
                    return
