"""Metrics at k: by hand, and equal to ir-measures and ranx on the same scores."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import ir_measures
import numpy as np
import pytest

from headwater.pipelines.evaluation.ranking import Ranked
from headwater.pipelines.evaluation.ranking_metrics import MAX_K, METRICS, Measures, measure

KS = (1, 3, 10)
THEIRS = {
    "recall": ir_measures.R,
    "ndcg": ir_measures.nDCG,
    "hit_rate": ir_measures.Success,
    "mrr": ir_measures.RR,
    "precision": ir_measures.P,
    "map": ir_measures.AP,
}


def ranked_of(
    answers: list[list[int]], relevant: list[list[int]], num_items: int = 40, k: int = 10
) -> Ranked:
    """Return answers, best first, as the evaluator leaves them."""
    item_QK = np.zeros((len(answers), k), np.int32)
    for row, items in zip(item_QK, answers, strict=True):
        row[: len(items)] = items
    hits = [np.isin(row, items) & (row > 1) for row, items in zip(item_QK, relevant, strict=True)]
    return Ranked(
        num_items,
        np.arange(len(answers)),
        item_QK,
        np.array(hits),
        np.array([*map(len, relevant)]),
        np.concatenate([np.sort(items) for items in relevant]).astype(np.int32),
    )


def measures(answers: list[list[int]], relevant: list[list[int]], k: int = 10) -> Measures:
    return measure(ranked_of(answers, relevant, k=k), KS, np.arange(40))


def test_values_by_hand() -> None:
    # Hits at places 2 and 4; three relevant items, one of them unknown.
    found = measures([[5, 7, 9, 11]], [[7, 11, 1]], k=4).values
    assert found["recall@1"] == 0
    assert found["recall@3"] == pytest.approx(1 / 3)
    assert found["recall@10"] == pytest.approx(2 / 3)
    assert found["precision@10"] == pytest.approx(2 / 10)
    assert found["hit_rate@1"] == 0
    assert found["hit_rate@3"] == 1
    assert found["mrr@10"] == 1 / 2
    assert found["map@10"] == pytest.approx((1 / 2 + 2 / 4) / 3)
    best = 1 + 1 / np.log2(3) + 1 / np.log2(4)
    assert found["ndcg@10"] == pytest.approx((1 / np.log2(3) + 1 / np.log2(5)) / best)
    assert found["ndcg@3"] == pytest.approx(1 / np.log2(3) / best)


def test_ideal_gain_is_that_of_k_items_and_recall_is_over_all_relevant_ones() -> None:
    found = measures([list(range(2, 12))], [list(range(2, 27))]).values
    assert found["recall@10"] == pytest.approx(10 / 25)
    assert found["ndcg@10"] == 1


def test_coverage_novelty_and_popularity_are_of_what_is_answered() -> None:
    events_N = np.array([0, 6, 8, 4, 2, 2, 0])
    ranked = ranked_of([[2, 3], [2, 4], []], [[4], [1, 3], [5]], num_items=7, k=2)
    found = measure(ranked, [1, 2], events_N).values
    assert found["coverage@1"] == 1 / 5
    assert found["coverage@2"] == 3 / 5
    # A user without an answer has no novelty: means are over the two others.
    share_N = events_N / events_N.sum()
    assert found["novelty@1"] == pytest.approx(-np.log2(share_N[2]))
    assert found["novelty@2"] == pytest.approx(-np.log2(share_N[[2, 3, 2, 4]]).mean())
    taken = np.mean([2, (0 + 4) / 2, 2])
    assert found["popularity_bias@1"] == pytest.approx(8 / taken)
    assert found["popularity_bias@2"] == pytest.approx(np.mean([6, 5]) / taken)


def test_nothing_asked_leaves_every_metric_undefined() -> None:
    ranked = ranked_of([[2]], [[2]]).where(np.array([False]))
    found = measure(ranked, KS, np.ones(40, np.int64)).values
    assert set(found) <= set(METRICS)
    assert all(np.isnan(value) for value in found.values())


def test_every_metric_has_a_record_that_says_what_is_best() -> None:
    found = measures([[5]], [[5]]).values
    assert [name for name in METRICS if name in found] == list(found)
    assert METRICS["ndcg@10"].gain(0.3) > METRICS["ndcg@10"].gain(0.2)
    assert METRICS["popularity_bias@3"].best == 1.0
    assert "first 3" in METRICS["recall@3"].meaning
    assert f"recall@{MAX_K}" in METRICS


def drawn() -> tuple[list[list[int]], list[list[int]]]:
    """Return answers and relevant items of 50 users, with fewer answers than asked for and many hits."""
    rng = np.random.default_rng(0)
    answers = [(2 + rng.permutation(38)[: rng.integers(1, 11)]).tolist() for _ in range(50)]
    return answers, [(2 + rng.permutation(38)[: rng.integers(1, 16)]).tolist() for _ in range(50)]


def test_values_equal_those_of_ir_measures() -> None:
    answers, relevant = drawn()
    ours = measures(answers, relevant).values
    truth = [
        ir_measures.Qrel(str(query), str(item), 1)
        for query, items in enumerate(relevant)
        for item in items
    ]
    told = [
        ir_measures.ScoredDoc(str(query), str(item), -float(place))
        for query, items in enumerate(answers)
        for place, item in enumerate(items)
    ]
    wanted = {f"{name}@{k}": kind @ k for name, kind in THEIRS.items() for k in KS}
    theirs = ir_measures.calc_aggregate(list(wanted.values()), truth, told)
    expected = {name: theirs[each] for name, each in wanted.items()}
    assert {name: ours[name] for name in wanted} == pytest.approx(expected, abs=1e-12)


@pytest.mark.slow
@pytest.mark.timeout(600)  # ranx compiles its metrics when it first runs
def test_values_equal_those_of_ranx() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own escapes and casts
        import ranx

        answers, relevant = drawn()
        truth = {str(q): {str(item): 1 for item in row} for q, row in enumerate(relevant)}
        told = {
            str(q): {str(item): 1.0 - place / 100 for place, item in enumerate(row)}
            for q, row in enumerate(answers)
        }
        names = [f"{name}@{k}" for name in THEIRS for k in KS]
        found = ranx.evaluate(ranx.Qrels(truth), ranx.Run(told), names)
    assert isinstance(found, Mapping)
    ours = measures(answers, relevant).values
    assert {name: ours[name] for name in names} == pytest.approx(dict(found), abs=1e-12)
