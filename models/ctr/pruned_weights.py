"""Weights of OptEmbed on the way from the supernet to the model of its architecture, and what tables cost.

F features, D dimension of the search, E coordinates that are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from headwater.feature_store.errors import JobError
from headwater.models.ctr.evolution import Candidate, Space
from headwater.models.ctr.optembed_config import MAIN, OptEmbedConfig, live_coordinates, main_slots
from headwater.models.ctr.pruning import Chosen, Feature, Kept, Weights
from headwater.models.network import Network
from headwater.models.registry import load_model
from headwater.models.tables.embeddings import Embeddings
from headwater.models.tables.layout import SlotLayout

_BYTES = 4
"""Of a weight, float32, and of a code in a remap, int32."""


def main_layout(embeddings: Embeddings) -> SlotLayout:
    """Return the layout of the main tables of a supernet."""
    return next(layout for layout in embeddings.layouts if layout.name == MAIN)


def search_space(embeddings: Embeddings, config: OptEmbedConfig, kept: Kept | None) -> Space:
    """Return the candidates of a search and their bytes, whole tables and remaps counted.

    Without `kept` each column has the rows that cost least, of which a search can only need more. JobError
    where not even the smallest candidate is within `max_bytes`.
    """
    dims = config.search.dims(config.base.embedding_dim)
    per_dim: list[int] = []
    fixed = sum(
        _BYTES * layout.dim * (sum(c.cardinality for c in layout.tables) + len(layout.dense))
        for layout in embeddings.layouts
        if layout.name != MAIN
    )
    for column in main_layout(embeddings).columns:
        whole = max(column.cardinality, 1)
        rows = whole
        if kept is not None and not column.is_dense:
            rows = 1 + int(kept[column.name].sum())
        elif not column.is_dense and dims[0] * whole > dims[0] + whole:
            rows = 1
        per_dim.append(_BYTES * rows)
        fixed += _BYTES * whole if rows < whole else 0
    space = Space(dims, tuple(per_dim), fixed, config.max_bytes)
    if not space.fits(space.smallest):
        raise JobError(
            f"model.max_bytes: found {config.max_bytes:,}, but the smallest candidate, dimension {dims[0]} "
            f"for every feature, takes {'at least ' if kept is None else ''}"
            f"{space.num_bytes(space.smallest):,}, of which {fixed:,} are other tables and remaps. Raise it, "
            "or raise min_count of the features."
        )
    return space


def features_of(embeddings: Embeddings, candidate: Candidate, kept: Kept) -> dict[str, Feature]:
    """Return the features of an architecture."""
    return {
        column.name: Feature(dim)
        if column.is_dense
        else Feature(dim, int(kept[column.name].sum()), column.cardinality - 1)
        for column, dim in zip(main_layout(embeddings).columns, candidate, strict=True)
    }


def first_weights(network: Network) -> Weights:
    """Return copies of the weights of an untrained supernet."""
    embeddings = network.embeddings
    return {
        "tables": _tensors(embeddings.tables()),
        "vectors": _tensors(embeddings.numeric_weights()),
        "base": {name: value.cpu().clone() for name, value in _base(network).state_dict().items()},
    }


def compact_weights(
    first: Weights, config: OptEmbedConfig, kept: Kept, columns: list[str]
) -> Weights:
    """Return the weights of what is kept: of tables rows and first coordinates, of layers live coordinates.

    `config` has the architecture, `columns` are the features in their order.
    """
    compact: dict[str, dict[str, dict[str, Tensor]]] = {}
    for kind in ("tables", "vectors"):
        slots = {slot: values for slot, values in first[kind].items() if slot != MAIN}
        whole: Mapping[str, Tensor] = first[kind][MAIN]
        for name, slot in main_slots(config).items():
            own = slots[name] = {}
            for column in slot.columns or ():
                if column in whole:
                    weight = whole[column][..., : slot.dim]
                    if column in slot.rows:
                        is_kept_N = torch.from_numpy(kept[column])
                        is_kept_N = is_kept_N.index_fill(0, torch.tensor([0]), True)
                        weight = weight[is_kept_N]
                    own[column] = weight.clone()
        compact[kind] = slots
    width = sum(config.dimensions.values())
    with torch.device("meta"):
        base: Any = load_model(config.base.type)(
            config.base, num_features=len(columns), width=width
        )
    live_E = live_coordinates(config, columns)
    shapes = {name: value.shape for name, value in base.state_dict().items()}
    layers = {name: _live(value, shapes[name], live_E) for name, value in first["base"].items()}
    return {**compact, "base": layers}


def load_chosen(network: Network, config: OptEmbedConfig, chosen: Chosen) -> None:
    """Give a network of the architecture its first weights and remaps; JobError where they do not fit."""
    embeddings = network.embeddings
    problem = (
        "model.architecture: {} differs from the search, so that its rows and weights do not fit. Give the "
        "settings of the search, or search again."
    )
    sizes = {c.name: c.cardinality for layout in embeddings.layouts for c in layout.sources}
    for name, kept_N in chosen.kept.items():
        if sizes[name] != len(kept_N):
            raise JobError(problem.format(f"{name!r}, which has {sizes[name]:,} codes,"))
    own = _base(network).state_dict()
    saved: Mapping[str, Tensor] = chosen.weights["base"]
    if {name: value.shape for name, value in own.items()} != {
        name: value.shape for name, value in saved.items()
    }:
        raise JobError(problem.format("model.base"))
    _base(network).load_state_dict(saved)
    embeddings.load(_arrays(chosen.weights["tables"]), _arrays(chosen.weights["vectors"]))
    for slot, wanted in main_slots(config).items():
        for column in wanted.rows:
            assert embeddings.remap is not None
            kept_N = chosen.kept[column]
            new_N = np.where(kept_N, np.cumsum(kept_N), 0)
            embeddings.remap.write(slot, column, new_N.astype(np.int32))


def _base(network: Network) -> Any:
    return cast("Any", network.model).base


def _live(weight: Tensor, shape: torch.Size, live_E: Tensor) -> Tensor:
    """Return a weight without dead coordinates: they lead each axis that is longer than in `shape`."""
    for axis, (full, size) in enumerate(zip(weight.shape, shape, strict=True)):
        if full != size:
            rest = torch.arange(full - (size - len(live_E)), full)
            weight = weight.index_select(axis, torch.cat([live_E, rest]))
    return weight.clone()


def _tensors(slots: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Tensor]]:
    return {
        slot: {column: torch.from_numpy(values) for column, values in columns.items()}
        for slot, columns in slots.items()
    }


def _arrays(slots: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Any]]:
    return {
        slot: {column: values.numpy() for column, values in columns.items()}
        for slot, columns in slots.items()
    }
