"""Base of retrieval models: from a query to items.

U rows of users and N rows of items, with those for missing and unknown; B queries, D dimension.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import Tensor, nn

from headwater.models.base import FamilyName, Model, ModelConfig, Slot
from headwater.models.phases import Descend, Phase
from headwater.models.retrieval.interactions import Interactions, Queries
from headwater.models.strategy import OneLoss

QueryKind = Literal["user", "history", "basket"]
Taught = Literal["pairs", "prefixes", "sequences", "sets"]
"""Examples that a model learns from: `Pairs`, `Prefixes`, `Sequences` or `Sets`."""


class RetrievalModel(Model):
    """Base of retrieval models: a subclass sets the class variables and builds layers.

    It is a `VectorModel` or a `ScoreModel`. `forward` takes a batch of the examples that it is taught, and
    `loss` what it gave. Rows 0 and 1 of items, missing and unknown, take no part in a softmax, and no answer
    names them.
    """

    family: ClassVar[FamilyName] = "retrieval"
    query: ClassVar[QueryKind]
    """What asks: a user that training knew, a history in the order of time, or a basket."""
    taught: ClassVar[Taught]

    def __init__(self, config: ModelConfig, interactions: Interactions) -> None:
        """Build the layers for the users and items of the training interactions."""
        super().__init__(config, num_features=0)
        self.num_users = interactions.num_users
        self.num_items = interactions.num_items

    @classmethod
    def slots(cls, config: ModelConfig) -> Mapping[str, Slot]:  # noqa: ARG003
        """Return no slots: the weights are the model's own, as graphs and catalogues are read as a whole."""
        return {}

    @classmethod
    def phases(cls, config: ModelConfig) -> tuple[Phase, ...]:  # noqa: ARG003
        """Return the phases of training: one descent on one loss."""
        return (Descend(OneLoss, mode="dense"),)

    @classmethod
    def taught_of(cls, config: ModelConfig) -> Taught:  # noqa: ARG003
        """Return the examples that a model with these settings learns from: by default `taught`."""
        return cls.taught

    @classmethod
    def draws_of(cls, config: ModelConfig) -> int | None:  # noqa: ARG003
        """Return how many users, drawn evenly with replacement, make an epoch of pairs.

        None, the default, where each interaction comes once.
        """
        return None

    @classmethod
    def longest_of(cls, config: ModelConfig) -> int | None:  # noqa: ARG003
        """Return how many of its newest items a history has; None, the default, for all."""
        return None

    def refresh(self) -> None:
        """Compute what all queries share, as vectors of a whole graph; by default nothing.

        It is called before queries, whenever weights have changed since.
        """


class VectorModel(RetrievalModel):
    """Base of models whose score is the product of a query's vector and an item's."""

    @abstractmethod
    def items(self) -> Tensor:
        """Return the vectors of all items, (N, D)."""

    @abstractmethod
    def queries(self, asked: Queries) -> Tensor:
        """Return the vectors of queries, (B, D)."""

    @abstractmethod
    def read_rows(self) -> Tensor:
        """Return the table whose rows a query reads in a release: of its user, or of its items."""

    def read_layers(self) -> nn.Module | None:
        """Return what makes the vectors of queries, (B, D), of the rows that they read.

        Its inputs are these rows, (B, L, D), behind one another and zeros or any rows after them, and their
        numbers, int64 (B,). None, the default, where the row of the user is the vector.
        """
        return None


class ScoreModel(RetrievalModel):
    """Base of models that score all items at once."""

    @abstractmethod
    def scores(self, asked: Queries) -> Tensor:
        """Return the scores of all items, (B, N)."""
