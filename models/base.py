"""Base of every model: a config, the embeddings it asks for, how it is trained, and a module.

B examples, F features (in schema order; a list column is one, after pooling), D dimension.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from headwater.feature_store.config import Config
from headwater.models.layers import MLP

if TYPE_CHECKING:
    from headwater.feature_store.encoders import Declared

FamilyName = Literal["ctr", "retrieval"]


class ModelConfig(Config):
    """Settings that every model shares; each model adds its own fields."""

    embedding_dim: int = Field(default=16, gt=0)
    """Dimension of the embedding of one feature; fused tables want a multiple of 4."""

    def complete(self, features: Sequence[Declared]) -> Self:  # noqa: ARG002
        """Return the settings with what they leave open to the declared features; JobError where they cannot.

        What is complete stays as it is, so that a run's own job gives the same network again.
        """
        return self


class MLPConfig(ModelConfig):
    """Settings of a model with one multi-layer perceptron."""

    hidden: tuple[PositiveInt, ...] = (400, 400, 400)
    """Widths of the hidden layers of the multi-layer perceptron."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout after each hidden layer."""
    batch_norm: bool = False
    """Batch normalisation before each ReLU."""

    def mlp(self, width_in: int) -> MLP:
        """Return the perceptron, untrained, without an output layer."""
        return MLP(width_in, self.hidden, dropout=self.dropout, batch_norm=self.batch_norm)


@dataclass(frozen=True, slots=True)
class Slot:
    """A set of embedding tables that a model asks for: a vector a feature, as (B, F, dim)."""

    dim: int
    columns: tuple[str, ...] | None = None
    """Encoded columns to embed, in this order; None for all that the job declares, in schema order."""
    bound: float | None = None
    """First values of tables are uniform in (-bound, bound); normal(0, 1e-4) when absent."""
    rows: Mapping[str, int] = field(default_factory=dict[str, int])
    """How many rows the table of a pruned column keeps, without row 0; it has a remap of its codes."""


class Model(nn.Module):
    """Base of all models: each family has its own below this one, which says what `forward` takes.

    A model never sees a column name, an optimiser or a device: `models/tables/embeddings.py` turns a batch
    into the tensors that `slots` names.
    """

    family: ClassVar[FamilyName]
    needs_whole_batch: ClassVar[bool] = False
    """Whether the loss of a row depends on the others of its batch, so that ranks can not share one."""
    config_class: ClassVar[type[ModelConfig]]

    def __init__(self, config: ModelConfig, *, num_features: int) -> None:
        """Build the layers for `num_features` features of dimension `config.embedding_dim`."""
        super().__init__()
        self.config = config
        self.num_features = num_features

    @classmethod
    def slots(cls, config: ModelConfig) -> Mapping[str, Slot]:
        """Return the embeddings that the model wants, by name; by default one main slot."""
        return {"emb_BFD": Slot(config.embedding_dim)}

    @classmethod
    def columns(cls, config: ModelConfig, features: Sequence[Declared]) -> Sequence[Declared]:  # noqa: ARG003
        """Return encoders of columns that the model reads beside the declared `features`, as crosses.

        They are fitted and encoded behind the declared ones, and only a slot that names them reads them. A
        model that has some is listed in `models.registry.ADDING_COLUMNS`.
        """
        return ()

    @classmethod
    @abstractmethod
    def phases(cls, config: ModelConfig) -> tuple[Any, ...]:
        """Return the phases of training (`models.phases`); the last one trains the network of the run."""

    def make_room(self, weights: Mapping[str, Tensor]) -> None:
        """Give what has its shape from training that of its weight, by name; by default nothing has.

        It is called before `weights` are loaded.
        """

    @abstractmethod
    def loss(self, output: Any, batch: Any) -> Tensor:
        """Return the sum over a batch's rows of the loss of what `forward` gave."""
