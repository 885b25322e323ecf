"""The result of a forward pass through embedding tables, which is returned and passed on.

Nothing of a pass is kept in the tables: a method that runs several passes before a step gives all of them to
its optimisers, and gets the gradients of all.

B examples, F features of a slot, R distinct rows that a pass read, D dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(slots=True)
class Rows:
    """Distinct rows of tables that a training pass read, and through which their gradient flows."""

    values_RD: Tensor


@dataclass(frozen=True, slots=True)
class Looked:
    """Embeddings of a batch, and the rows of tables that gave them."""

    embeddings: Mapping[str, Tensor]
    """(B, F, D) for each slot, features in the slot's order."""
    rows: tuple[Rows, ...] = ()
    """Rows whose penalty or update is theirs alone; none where whole tables have one, or in evaluation."""
