"""Models that are solved instead of trained, and the phase that does it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from headwater.models.base import ModelConfig
from headwater.models.phases import Phase, Stage
from headwater.models.retrieval.base import QueryKind, ScoreModel, Taught
from headwater.models.retrieval.interactions import Interactions
from headwater.models.strategy import Strategy
from headwater.models.tables.embeddings import Mode


class SolvedConfig(ModelConfig):
    """Settings that solved models share."""

    embedding_dim: int = Field(default=1, ge=1, le=1)
    """There are no vectors; no other value is accepted."""


class SolvedModel(ScoreModel):
    """Base of models that follow from the training interactions in one computation.

    A subclass keeps what it finds in persistent buffers, whose shape may depend on the solution.
    """

    query: ClassVar[QueryKind] = "history"
    taught: ClassVar[Taught] = "sets"

    def __init__(self, config: SolvedConfig, interactions: Interactions) -> None:
        super().__init__(config, interactions)
        self.interactions = interactions

    @classmethod
    def phases(cls, config: ModelConfig) -> tuple[Phase, ...]:  # noqa: ARG003
        """Return the one phase, which solves."""
        return (Solve(),)

    @abstractmethod
    def solve(self, note: Callable[[str], None]) -> None:
        """Fill the buffers from the training interactions; `note` tells the user something."""

    def make_room(self, weights: Mapping[str, Tensor]) -> None:
        """Give each buffer the shape that it has in `weights`."""
        for name, buffer in list(self.named_buffers()):
            if name in weights:
                setattr(self, name, buffer.new_empty(weights[name].shape))


@dataclass(frozen=True, slots=True)
class Solve:
    """Solve the network of the job; a solve that is stopped is done again from its start."""

    name: str = "solve"
    mode: Mode | None = "dense"

    @property
    def strategies(self) -> tuple[type[Strategy[Any]], ...]:
        """No strategies."""
        return ()

    def run(self, stage: Stage) -> None:
        """Carry the phase to its end."""
        placement = stage.build(stage.config, self.mode)
        model = placement.network.model
        assert isinstance(model, SolvedModel), "the phase is of solved models"
        model.solve(stage.note)
        stage.keep(placement)
