"""A model joined with the embeddings it asked for: from a batch to the click logit."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from headwater.feature_store.errors import JobError, did_you_mean
from headwater.feature_store.schema import Schema
from headwater.models.base import Model, ModelConfig
from headwater.models.batch import Batch
from headwater.models.seeds import derive_seed
from headwater.models.tables.embeddings import Embeddings, Mode
from headwater.models.tables.looked import Looked


class Network(nn.Module):
    """Two steps, `embeddings` and then `model`, so that a method can stand between."""

    def __init__(
        self,
        schema: Schema,
        model: Model,
        mode: Mode,
        seed: int = 0,
        declared: Collection[str] | None = None,
    ) -> None:
        super().__init__()
        self.embeddings = Embeddings(schema, model.slots(model.config), mode, seed, declared)
        self.model = model

    def forward(self, batch: Batch) -> tuple[Tensor, Looked]:
        """Return the click logit, shape (B,), and what was looked up for it."""
        looked = self.embeddings(batch)
        return self.model(**looked.embeddings), looked


def build_network(
    schema: Schema,
    model_class: type[Model],
    config: ModelConfig,
    mode: Mode,
    seed: int,
    declared: Collection[str] | None = None,
) -> Network:
    """Return a network on the CPU whose first values depend on `seed` alone, equal in all modes.

    `declared` are the columns that the job declares, all of the schema when absent. JobError names the
    setting that asks for a column that the schema does not have.
    """
    _require_columns(schema, model_class, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "model"))
        model = model_class(config, num_features=len(declared or schema.columns))
    return Network(schema, model, mode, seed, declared)


def draft_model(
    schema: Schema,
    model_class: type[Model],
    config: ModelConfig,
    declared: Collection[str] | None = None,
) -> Model:
    """Return a model without memory for its weights, to ask it before a network is built.

    JobError as `build_network` raises it.
    """
    _require_columns(schema, model_class, config)
    with torch.device("meta"):
        return model_class(config, num_features=len(declared or schema.columns))


def count_parameters(network: Network) -> int:
    """Return the number of weights, tables with their rows for missing and unknown.

    It is the same in all table modes and on any number of ranks: without padding, every row once.
    """
    rest = (network.embeddings.numeric, network.model)
    return sum(
        column.cardinality * layout.dim
        for layout in network.embeddings.layouts
        for column in layout.tables
    ) + sum(weight.numel() for module in rest for weight in module.parameters())


def least_rows(model: nn.Module) -> int:
    """Return how many rows a process needs for a step: two with batch normalisation, else one."""
    has_batch_norm = any(isinstance(layer, nn.BatchNorm1d) for layer in model.modules())
    return 2 if has_batch_norm else 1


def column_problems(
    known: Sequence[str], model_class: type[Model], config: ModelConfig
) -> list[str]:
    """Return a line for each feature that a setting names and that is not among the `known`."""
    problems: list[str] = []
    for slot, wanted in model_class.slots(config).items():
        for name in wanted.columns or ():
            if name in known:
                continue
            keys = [
                key for key, value in config if isinstance(value, tuple | list) and name in value
            ]
            hint = did_you_mean(name, known) or f" Known: {', '.join(known)}."
            problems.append(f"model.{keys[0] if keys else slot}: {name!r} is not a feature.{hint}")
    return problems


def _require_columns(schema: Schema, model_class: type[Model], config: ModelConfig) -> None:
    known = [column.name for column in schema.columns]
    if problems := column_problems(known, model_class, config):
        raise JobError("\n".join(problems))
