"""Settings of OptEmbed, and what follows from the dimensions that its search found.

F features, D dimension of the search.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from headwater.feature_store.config import Config
from headwater.feature_store.errors import JobError
from headwater.models.base import ModelConfig, Slot
from headwater.models.ctr.dcnv2 import DCNv2Config
from headwater.models.ctr.deepfm import DeepFMConfig
from headwater.models.ctr.dnn import DNNConfig
from headwater.models.ctr.finalmlp import FinalMLPConfig
from headwater.models.ctr.fm import FMConfig
from headwater.models.ctr.pruning import Feature, read_architecture
from headwater.models.tables.thresholds import Norm

if TYPE_CHECKING:
    from headwater.feature_store.encoders import Declared

MAIN = "emb_BFD"
"""Slot of the main tables of every base."""
THRESHOLD_STEPS = 8.8
"""Steps times learning rate of thresholds: 1e-2 in the 880 steps in which it was tried on planted data."""
L2_STEPS = 2.6
"""Steps times L2 of tables: 3e-3 in as many steps."""
MOST = 0.05
"""Largest value of either, however few the steps."""


class FMBase(FMConfig):
    """FM as the base."""

    type: Literal["fm"]


class DNNBase(DNNConfig):
    """DNN as the base."""

    type: Literal["dnn"]


class DeepFMBase(DeepFMConfig):
    """DeepFM as the base."""

    type: Literal["deepfm"]


class DCNv2Base(DCNv2Config):
    """DCN-V2 as the base."""

    type: Literal["dcnv2"]


class FinalMLPBase(FinalMLPConfig):
    """FinalMLP as the base."""

    type: Literal["finalmlp"]


Base = Annotated[
    FMBase | DNNBase | DeepFMBase | DCNv2Base | FinalMLPBase, Field(discriminator="type")
]


class EmbeddingSearchConfig(Config):
    """Settings of the search for rows and dimensions."""

    epochs: int = Field(default=6, gt=0)
    """Passes of the supernet over the training data, without early stop, as rows leave little by little."""
    lr: float = Field(default=1e-3, gt=0)
    """Learning rate of the supernet's tables."""
    l2: float | None = Field(default=None, ge=0)
    """Weight of the L2 penalty of tables, which shrinks rows that help little; 2.6 / steps when absent."""
    threshold_lr: float | None = Field(default=None, ge=0)
    """Learning rate of thresholds; 8.8 / steps when absent."""
    alpha: float = Field(default=1e-2, ge=0)
    """Weight of the penalty exp(-threshold) of each feature, which raises thresholds."""
    norm: Norm = 1
    """Norm of a row that is compared with the threshold: 1 or 2."""
    dim_multiple: PositiveInt = 1
    """Dimensions are multiples of it; fused tables want 4."""
    generations: PositiveInt = 10
    """Generations of candidates; the paper has 30."""
    mutations: PositiveInt = 10
    """Candidates of a generation that are mutants of one of the best."""
    crossovers: PositiveInt = 10
    """Candidates of a generation that have their first features of one of the best, the rest of another."""
    mutation_rate: float = Field(default=0.1, gt=0, le=1)
    """Share of the dimensions that a mutation draws anew."""
    parents: PositiveInt = 15
    """Best candidates so far, from which the next generation comes."""

    def threshold_rate(self, steps: int) -> float:
        """Return the learning rate of thresholds: by default they move as far in few steps as in many."""
        return (
            min(THRESHOLD_STEPS / steps, MOST) if self.threshold_lr is None else self.threshold_lr
        )

    def penalty(self, steps: int) -> float:
        """Return the L2 of tables: by default rows shrink as far in few steps as in many."""
        return min(L2_STEPS / steps, MOST) if self.l2 is None else self.l2

    def dims(self, most: int) -> tuple[int, ...]:
        """Return the dimensions that a feature may have, up to the most."""
        return tuple(range(self.dim_multiple, most + 1, self.dim_multiple))


class OptEmbedConfig(ModelConfig):
    """Settings of OptEmbed: the base model, its search, and what the search found."""

    embedding_dim: int = 0
    """Left out: the largest dimension is `base.embedding_dim`."""
    base: Base = Field(default_factory=lambda: DeepFMBase(type="deepfm", embedding_dim=32))
    """The model to prune: `type` (fm, dnn, deepfm, dcnv2 or finalmlp) and its settings; `embedding_dim` is
    the largest dimension that the search may give a feature."""
    architecture: str | None = None
    """Folder of what a search found, or `architecture.toml` in it, to train from; when absent a search comes
    first."""
    search: EmbeddingSearchConfig = EmbeddingSearchConfig()
    """The search."""
    max_bytes: int | None = Field(default=None, gt=0)
    """Most bytes of all embedding tables and remaps, float32: the search evaluates nothing larger."""
    dimensions: dict[str, PositiveInt] = Field(default_factory=dict[str, int])
    """Dimension of each feature; filled in from the architecture."""
    kept_rows: dict[str, int] = Field(default_factory=dict[str, int])
    """Rows that each feature keeps that lost some; filled in from the architecture."""

    @model_validator(mode="after")
    def _has_dimensions(self) -> Self:
        most, least = self.base.embedding_dim, self.search.dim_multiple
        if self.embedding_dim:
            raise ValueError("embedding_dim is that of the base: set base.embedding_dim")
        if most < least:
            raise ValueError(
                f"search.dim_multiple = {least} is above base.embedding_dim = {most}, which leaves no "
                "dimension to choose"
            )
        return self

    def complete(self, features: Sequence[Declared]) -> Self:
        """Return the settings with what the architecture says; JobError for that of another job."""
        names = [feature.name for feature in features]
        if self.architecture is None or self.dimensions:
            return self
        found = read_architecture(Path(self.architecture))
        own = {"base": self.base.type, "base.embedding_dim": self.base.embedding_dim}
        its = {"base": found.base, "base.embedding_dim": found.embedding_dim}
        problems = [
            f"model.architecture: {self.architecture} was found with {key} = {its[key]!r}, not {own[key]!r}. "
            f"Set it so, or search again."
            for key in own
            if own[key] != its[key]
        ]
        if set(names) != set(found.features):
            problems.append(
                f"model.architecture: {self.architecture} is of the features {', '.join(found.features)}, "
                f"but the job declares {', '.join(names)}. Search again."
            )
        if problems:
            raise JobError("\n".join(problems))
        return self.with_features({name: found.features[name] for name in names})

    def with_features(self, features: Mapping[str, Feature]) -> Self:
        """Return the settings with the dimensions and rows that a search found."""
        return self.model_copy(
            update={
                "dimensions": {name: feature.dimension for name, feature in features.items()},
                "kept_rows": {
                    name: feature.kept for name, feature in features.items() if feature.is_pruned
                },
            }
        )


def main_slots(config: OptEmbedConfig) -> dict[str, Slot]:
    """Return the main slots after the search: of features of one dimension, those that lost rows apart."""
    groups: dict[tuple[int, bool], list[str]] = {}
    for name, dim in config.dimensions.items():
        groups.setdefault((dim, name in config.kept_rows), []).append(name)
    return {
        f"emb_{dim}_pruned" if is_pruned else f"emb_{dim}": Slot(
            dim,
            tuple(names),
            rows={name: config.kept_rows[name] for name in names if is_pruned},
        )
        for (dim, is_pruned), names in sorted(groups.items())
    }


def live_coordinates(config: OptEmbedConfig, columns: Sequence[str]) -> Tensor:
    """Return where the coordinates that are kept lie among all F * D, in the order of `main_slots`."""
    dim, place = config.base.embedding_dim, {name: i for i, name in enumerate(columns)}
    return torch.tensor(
        [
            place[name] * dim + coordinate
            for slot in main_slots(config).values()
            for name in slot.columns or ()
            for coordinate in range(slot.dim)
        ]
    )
