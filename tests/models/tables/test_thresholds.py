"""Learned thresholds of rows: what they keep, and how they learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch

from headwater.feature_store.schema import Schema
from headwater.models.base import Slot
from headwater.models.batch import Batch
from headwater.models.tables.dense import MergedTable
from headwater.models.tables.embeddings import Embeddings
from headwater.models.tables.thresholds import step


@pytest.fixture
def table(mixed: Schema) -> MergedTable:
    """Return the merged table of all columns, of visible weights, with thresholds."""
    embeddings = Embeddings(mixed, {"emb": Slot(4)}, "dense")
    table: MergedTable = cast("Any", embeddings.store).merged()["emb"]
    with torch.no_grad():
        table.weight_ND.mul_(1e4)
    table.add_thresholds(1)
    return table


def set_thresholds(table: MergedTable, values: Any) -> None:
    assert table.thresholds is not None
    with torch.no_grad():
        table.thresholds.threshold_F.copy_(torch.as_tensor(values, dtype=torch.float32))


def test_the_gradient_of_a_step_is_long_tailed() -> None:
    z = torch.tensor([-1.2, -1, -0.7, -0.4, -0.1, 0, 0.1, 0.4, 0.7, 1, 1.2], requires_grad=True)
    steps = step(z)
    steps.sum().backward()
    assert steps.tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
    expected = [0, 0.4, 0.4, 0.4, 1.6, 2, 1.6, 0.4, 0.4, 0.4, 0]
    assert z.grad is not None
    assert z.grad.tolist() == pytest.approx(expected)


def test_thresholds_of_zero_keep_every_row_that_is_not_zero_bit_for_bit(
    table: MergedTable, mixed: Schema, make_batch: Callable[..., Batch]
) -> None:
    before = table.weight_ND.detach().clone()
    codes_BW = make_batch(mixed, 16).codes_BW
    masked = table(codes_BW)
    kept = table.prune()
    assert torch.equal(table.weight_ND, before)
    assert torch.equal(table(codes_BW), masked)
    assert {name: int(kept_N.sum()) for name, kept_N in kept.items()} == {
        "user.id": 22,
        "tags": 8,
        "city": 6,
        "history": 10,
    }


@pytest.mark.parametrize("threshold", [torch.inf, -1.0])
def test_a_threshold_above_all_rows_leaves_none_and_row_zero_is_never_kept(
    table: MergedTable, mixed: Schema, make_batch: Callable[..., Batch], threshold: float
) -> None:
    set_thresholds(table, [threshold] * 4)
    emb_BFD = table(make_batch(mixed, 8).codes_BW)
    kept = table.prune()
    assert not any(bool(kept_N[0]) for kept_N in kept.values())
    if threshold > 0:
        assert not emb_BFD.any()
        assert not any(bool(kept_N.any()) for kept_N in kept.values())


def test_a_higher_threshold_keeps_fewer_rows_of_its_column_and_changes_no_other(
    table: MergedTable,
) -> None:
    assert table.thresholds is not None
    counts: list[list[int]] = []
    for threshold in (0.0, 2.0, 3.0, 4.0):
        set_thresholds(table, [0.0, threshold, 2.5, 0.0])
        mask_N = table.thresholds.mask(table.weight_ND)
        counts.append([int(part.sum()) for part in mask_N.split([23, 9, 7, 11])])
    column = [count[1] for count in counts]
    assert column == sorted(column, reverse=True)
    assert column[0] > column[-1]
    assert all(count[:1] + count[2:] == counts[0][:1] + counts[0][2:] for count in counts)


def test_rows_and_thresholds_both_learn_and_row_zero_stays_zero(
    table: MergedTable, mixed: Schema, make_batch: Callable[..., Batch]
) -> None:
    with torch.no_grad():
        table.weight_ND.mul_(0.1)  # near the threshold, where a step has a gradient
    table(make_batch(mixed, 8).codes_BW).square().sum().backward()
    assert table.thresholds is not None
    grad_F = table.thresholds.threshold_F.grad
    assert grad_F is not None
    # The loss falls as rows leave, so the threshold of a column without lists wants to rise.
    assert grad_F.all()
    assert grad_F[0] < 0
    assert grad_F[2] < 0
    assert table.weight_ND.grad is not None
    assert table.weight_ND.grad.any()
    assert not table.weight_ND.grad[0].any()


def test_a_mean_divides_by_the_codes_of_rows_that_were_pruned_too(mixed: Schema) -> None:
    embeddings = Embeddings(mixed, {"emb": Slot(4, ("tags",))}, "dense")
    table: MergedTable = cast("Any", embeddings.store).merged()["emb"]
    with torch.no_grad():
        table.weight_ND.fill_(1.0)[2] = 0.1
        table.weight_ND[0] = 0
    table.add_thresholds(1)
    set_thresholds(table, [1.0])
    codes_BW = torch.zeros(1, mixed.width, dtype=torch.int32)
    (place,) = (place for column, place in mixed.code_places() if column.name == "tags")
    codes_BW[0, place] = torch.tensor([2, 3, 0], dtype=torch.int32)
    batch = Batch(codes_BW, torch.zeros(1, 2), torch.zeros(1))
    torch.testing.assert_close(embeddings(batch).embeddings["emb"], torch.full((1, 1, 4), 0.5))
