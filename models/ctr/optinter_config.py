"""Settings of OptInter, and the pairs of features that they speak of."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast

from pydantic import Field, PositiveInt, field_validator

from headwater.feature_store.config import Config
from headwater.feature_store.encoders import Codes, Crossed
from headwater.feature_store.errors import JobError
from headwater.models.base import ModelConfig
from headwater.models.ctr.architecture import METHODS, Method, Pair, read_pairs

if TYPE_CHECKING:
    from headwater.feature_store.encoders import Declared


class SearchConfig(Config):
    """Settings of the search for an architecture."""

    epochs: int = Field(default=6, gt=0)
    """Passes over the training data; there is no early stop, as temperatures fall over all of them."""
    lr: float = Field(default=3e-3, gt=0)
    """Learning rate of tables and layers."""
    l2: float = Field(default=1e-5, ge=0)
    """Weight of the L2 penalty of tables: (l2 / 2) * sum of squares."""
    architecture_lr: float = Field(default=3e-2, gt=0)
    """Learning rate of the architecture weights."""
    architecture_rows: Literal["held-out", "training"] = "held-out"
    """Rows that teach the architecture weights: a share that the other weights never train on, or, as
    published, the same; then crosses that only repeat the training rows are memorised too."""
    held_out: float = Field(default=0.2, gt=0, lt=1)
    """Share of the training rows that are held out."""
    relaxation: Literal["softmax", "gumbel", "gumbel-straight"] = "softmax"
    """`softmax` of the weights over the temperature, as the published code has it; `gumbel` adds Gumbel noise
    in training, as the paper does; `gumbel-straight` then uses the largest alone in the forward pass."""
    last_temperature: float = Field(default=0.01, gt=0, le=1)
    """Temperature falls linearly from 1 to this over the first 80 % of the steps."""


class OptInterConfig(ModelConfig):
    """Settings of OptInter."""

    hidden: tuple[PositiveInt, ...] = Field(default=(400, 400, 400), min_length=1)
    """Widths of the hidden layers, each with layer normalisation."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout after each hidden layer."""
    interaction_dim: int = Field(default=8, gt=0)
    """Dimension of crossed values, and of the second table; fused tables want a multiple of 4."""
    cross: tuple[str, ...] = ()
    """Features whose pairs are looked at; when absent all with one code an example that are no crosses."""
    min_count: int = Field(default=2, ge=1)
    """Crossed values that training shows less often share one row a pair."""
    architecture: str | tuple[Pair, ...] | None = None
    """Choices for the pairs: an `architecture.toml` of a search, or one method for all of them; a search
    finds them when absent."""
    max_bytes: int | None = Field(default=None, gt=0)
    """Most bytes of all embedding tables, float32: the search gives memorised pairs up until they fit."""
    initialisation: Literal["small", "published"] = "small"
    """First values of the crossed and the second tables: normal(0, 1e-4) as of all tables, or, as published,
    uniform within sqrt(3 / (columns * dimension))."""
    search: SearchConfig = SearchConfig()
    """The search."""

    @field_validator("architecture", mode="before")
    @classmethod
    def _from_file(cls, value: Any) -> Any:
        if isinstance(value, str) and value not in METHODS:
            return read_pairs(Path(value))
        return value

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """The pairs and their methods; of a search all pairs, none of which has its method yet."""
        if isinstance(self.architecture, tuple):
            return self.architecture
        method = cast("Method", self.architecture or "naive")
        return tuple(Pair(columns=each, method=method) for each in combinations(self.cross, 2))

    def of(self, method: Method) -> tuple[Pair, ...]:
        """Return the pairs that tables or products serve by a method; in a search all of them."""
        if self.architecture is None:
            return self.pairs
        return tuple(pair for pair in self.pairs if pair.method == method)

    def second(self) -> tuple[str, ...]:
        """Return the columns of the second table: those of some factorised pair, in the order of `cross`."""
        used = {column for pair in self.of("factorise") for column in pair.columns}
        return tuple(column for column in self.cross if column in used)

    def complete(self, features: Sequence[Declared]) -> Self:
        """Return the settings with the columns that are crossed; JobError for one that cannot be."""
        known = {each.name: each for each in features}
        cross = self.cross or tuple(
            each.name
            for each in features
            if not isinstance(each, Crossed) and _cross_problem(each) is None
        )
        problems = [
            problem
            for name in cross
            if name in known and (problem := _cross_problem(known[name])) is not None
        ]
        if len(cross) < 2:
            problems.append(
                f"model.cross: found {len(cross)} features with one code an example, and a pair needs two. "
                f'Declare more, or choose another model.type, as "dnn".'
            )
        for pair in self.architecture if isinstance(self.architecture, tuple) else ():
            problems += [
                f"model.architecture: a pair names {name!r}, which is not among the crossed features: "
                f"{', '.join(cross)}."
                for name in pair.columns
                if name not in cross
            ]
        if problems:
            raise JobError("\n".join(dict.fromkeys(problems)))
        return self.model_copy(update={"cross": cross})


def _cross_problem(feature: Declared) -> str | None:
    """Return why a feature cannot be crossed, and the remedy."""
    if feature.is_dense:
        return (
            f"model.cross: {feature.name!r} is a number without codes, and only codes are crossed. Declare a "
            f"feature with quantiles or log_buckets over its column, or leave it out."
        )
    if isinstance(feature, Codes) and feature.length is not None:
        return (
            f"model.cross: {feature.name!r} is a list, and only features with one code an example are "
            f"crossed. Leave it out."
        )
    return None
