"""Base of models of users and items that learn from pairs: a user prefers its item to another.

U rows of users, N rows of items, V = U + N, B examples, D dimension.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from headwater.models.base import ModelConfig
from headwater.models.retrieval.base import QueryKind, Taught, VectorModel
from headwater.models.retrieval.interactions import Interactions, Pairs, Queries


class PairwiseModel(VectorModel):
    """A table of users and items and final vectors that follow from it.

    The rows for missing and unknown stay zeros, in the table and among the final vectors: such a user likes
    all items alike, so whoever serves it answers with something else.
    """

    query: ClassVar[QueryKind] = "user"
    taught: ClassVar[Taught] = "pairs"
    final_VD: Tensor

    def __init__(self, config: ModelConfig, interactions: Interactions) -> None:
        super().__init__(config, interactions)
        dim = config.embedding_dim
        self.node_VD = nn.Parameter(torch.zeros(self.num_users + self.num_items, dim))
        """Rows of users, then rows of items: as a graph has them."""
        self.register_buffer("final_VD", torch.empty(0, dim), persistent=False)

    def known(self) -> tuple[Tensor, Tensor]:
        """Return the rows of known users and those of known items in the table, as views to fill."""
        table = self.node_VD.detach()
        return table[2 : self.num_users], table[self.num_users + 2 :]

    def vectors(self) -> Tensor:
        """Return the final vectors, with gradients: by default the table, (V, D)."""
        return self.node_VD

    def rows(self, batch: Pairs) -> tuple[Tensor, Tensor, Tensor]:
        """Return the nodes of a batch's users, items and other items, (B,) each."""
        return (
            batch.user_B,
            self.num_users + batch.positive_B,
            self.num_users + batch.negative_B,
        )

    def margin(self, vector_VD: Tensor, batch: Pairs) -> Tensor:
        """Return by how much the score of each example's item is above that of the other item, (B,)."""
        user_BD, positive_BD, negative_BD = (vector_VD[rows_B] for rows_B in self.rows(batch))
        return (user_BD * (positive_BD - negative_BD)).sum(1)

    def row_norms(self, batch: Pairs) -> Tensor:
        """Return the squared norm of the batch's rows of the table; a row that comes twice counts twice."""
        return sum(
            (self.node_VD[rows_B].square().sum() for rows_B in self.rows(batch)),
            self.node_VD.new_zeros(()),
        )

    def refresh(self) -> None:
        """Compute the final vectors that `queries` and `items` give."""
        with torch.no_grad():
            self.final_VD = self.vectors().clone()
            for unknown in (self.final_VD[:2], self.final_VD[self.num_users :][:2]):
                unknown.zero_()

    def queries(self, asked: Queries) -> Tensor:
        """Return the vectors of users as of the last `refresh`, (B, D)."""
        return self.final_VD[asked.user_B]

    def read_rows(self) -> Tensor:
        """Return the vectors of users as of the last `refresh`, (U, D)."""
        return self.final_VD[: self.num_users]

    def items(self) -> Tensor:
        """Return the vectors of all items as of the last `refresh`, (N, D)."""
        return self.final_VD[self.num_users :]


def bpr(margin_B: Tensor) -> Tensor:
    """Return the sum of -log sigmoid of margins (Bayesian personalised ranking)."""
    return nn.functional.softplus(-margin_B).sum()
