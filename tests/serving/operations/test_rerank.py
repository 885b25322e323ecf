"""Maximal marginal relevance against its definition."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from headwater.serving.operations.rerank import mmr


@given(
    seed=st.integers(0, 2**32 - 1),
    number=st.integers(1, 8),
    k=st.integers(1, 10),
    diversity=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
)
def test_each_place_has_the_largest_value_that_is_left(
    seed: int, number: int, k: int, diversity: float
) -> None:
    random = np.random.default_rng(seed)
    relevance_C = random.normal(size=number)
    vector_CD = random.normal(size=(number, 3))
    unit_CD = vector_CD / np.linalg.norm(vector_CD, axis=1, keepdims=True)
    taken = mmr(relevance_C, unit_CD, k, diversity).tolist()
    low, high = relevance_C.min(), relevance_C.max()
    expected: list[int] = []
    while len(expected) < min(k, number):
        values: dict[int, float] = {}
        for place in range(number):
            if place not in expected:
                scaled = 1.0 if high == low else (relevance_C[place] - low) / (high - low)
                like = max((float(unit_CD[place] @ unit_CD[o]) for o in expected), default=0.0)
                values[place] = (1 - diversity) * scaled - diversity * like
        expected.append(max(values, key=lambda place: (round(values[place], 12), -place)))
    assert taken == expected


def test_without_diversity_it_is_the_order_of_relevance() -> None:
    unit_CD = np.ones((4, 1))
    assert mmr(np.array([3.0, 1.0, 2.0, 3.0]), unit_CD, 4, 0.0).tolist() == [0, 3, 2, 1]
