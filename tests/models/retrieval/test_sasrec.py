"""SASRec: its two ways give the same gradients, and its loss equals a plain one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from headwater.models.retrieval.interactions import Interactions, Prefixes, Queries, Sequences
from headwater.models.retrieval.sasrec import SASRec, SASRecConfig

NUM_ITEMS = 14


def make(**changes: Any) -> SASRec:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "embedding_dim": 8,
        "max_length": 6,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    }
    none = Interactions(4, NUM_ITEMS, np.zeros(5, np.int64), np.zeros(0, np.int32))
    return SASRec(SASRecConfig(**{**settings, **changes}), none).double()


def users() -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randint(2, NUM_ITEMS, (size,)) for size in (2, 5, 7)]


def padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor(
        [len(row) for row in rows]
    )


def test_both_ways_have_the_same_loss_and_gradients() -> None:
    items_BL, length_B = padded([row[:-1] for row in users()])
    target_BL, _ = padded([row[1:] for row in users()])
    whole = Sequences(items_BL, length_B, target_BL)
    cut = [(row[:end], row[end]) for row in users() for end in range(1, len(row))]
    prefixes = Prefixes(*padded([row for row, _ in cut]), torch.stack([item for _, item in cut]))
    found: list[tuple[Tensor, list[Tensor]]] = []
    for batch in (whole, prefixes):
        model = make()
        loss = model.loss(model(batch), batch)
        loss.backward()
        found.append((loss, [p.grad for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])


def test_loss_is_cross_entropy_without_the_rows_of_missing_and_unknown() -> None:
    model = make()
    batch = Prefixes(*padded([row[:-1][:6] for row in users()]), torch.tensor([2, 5, 13]))
    output = model(batch)
    logits = output @ model.items()[2:].T
    plain = torch.nn.functional.cross_entropy(logits, batch.target_B - 2, reduction="sum")
    torch.testing.assert_close(model.loss(output, batch), plain)


def test_padding_and_the_future_change_nothing_and_an_empty_history_is_zeros() -> None:
    model = make().eval()
    items_BL = torch.tensor([[3, 4, 5, 0, 0], [0, 0, 0, 0, 0], [2, 0, 7, 8, 9]])
    length_B = torch.tensor([3, 0, 5])
    asked = Queries(torch.ones(3, dtype=torch.int64), items_BL, length_B)
    vector_BD = model.queries(asked)
    dirty_BL = items_BL.clone()
    dirty_BL[0, 3:] = 9
    dirty_BL[1] = 5
    again_BD = model.queries(Queries(asked.user_B, dirty_BL, length_B))
    assert torch.equal(vector_BD, again_BD)
    assert not vector_BD[1].any()
    assert torch.isfinite(vector_BD).all()
    alone_BD = model.queries(Queries(asked.user_B[:1], items_BL[:1, :3], length_B[:1]))
    torch.testing.assert_close(vector_BD[:1], alone_BD)
