"""The outcome of OptEmbed's search as files: dimensions, rows that are kept, weights to train again from.

<folder>/
    architecture.toml    base, AUC, bytes, and for each feature its dimension and how many rows it keeps
    rows.arrow           every code of every column, and whether its row is kept
    initial.pt           the weights that the search started from, of what is kept

F features, D dimension of the search.
"""

from __future__ import annotations

import io
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import tomli_w
import torch
from numpy.typing import NDArray

from headwater.feature_store.errors import JobError
from headwater.models.ctr.architecture import ARCHITECTURE

ROWS, INITIAL = "rows.arrow", "initial.pt"
FILES = (INITIAL, ROWS, ARCHITECTURE)
"""In the order in which they are written: with the last one all are there."""

Kept = Mapping[str, NDArray[np.bool_]]
"""Whether the row of each code is kept, by column; row 0, of missing values, never counts."""
Weights = Mapping[str, Any]
"""Tables and vectors of dense columns by slot and column, and the state of the model: tensors."""


class Feature(msgspec.Struct, frozen=True):
    """One feature of an architecture."""

    dimension: int
    kept: int | None = None
    """Rows that are kept; None for a dense column, whose one vector is never pruned."""
    rows: int | None = None
    """Rows that there were, without that of missing values."""

    @property
    def is_pruned(self) -> bool:
        """True where rows were left out."""
        return self.kept != self.rows


class Architecture(msgspec.Struct, frozen=True, kw_only=True):
    """Dimensions and rows that a search chose, and what they reached."""

    base: str
    """Registered name of the base model."""
    embedding_dim: int
    """Dimension of the search."""
    auc: float
    """AUC on the validation rows, by the weights of the search."""
    bytes: int
    """Of all embedding tables and remaps of the model to train."""
    features: dict[str, Feature]


@dataclass(frozen=True, slots=True)
class Chosen:
    """An architecture with its rows and the weights to start from."""

    architecture: Architecture
    kept: Kept
    weights: Weights

    def files(self) -> dict[str, bytes]:
        """Return the content of its files by name."""
        weights, text = io.BytesIO(), msgspec.to_builtins(self.architecture)
        torch.save(dict(self.weights), weights)
        features = text.pop("features").items()
        text["features"] = {
            name: {key: value for key, value in feature.items() if value is not None}
            for name, feature in features
        }
        return {
            INITIAL: weights.getvalue(),
            ROWS: _rows_file(self.kept),
            ARCHITECTURE: tomli_w.dumps(text).encode(),
        }


def _rows_file(kept: Kept) -> bytes:
    """Return an Arrow file with a record batch for each column."""
    schema = pa.schema([("column", pa.string()), ("code", pa.int32()), ("kept", pa.bool_())])
    sink = pa.BufferOutputStream()
    # Compressed, a column's name costs nothing at each of its codes.
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_file(sink, schema, options=options) as writer:
        for name, kept_N in kept.items():
            code_N = np.arange(len(kept_N), dtype=np.int32)
            writer.write_batch(
                pa.record_batch([pa.array([name] * len(kept_N)), code_N, kept_N], schema=schema)
            )
    return sink.getvalue().to_pybytes()


def read_architecture(path: Path) -> Architecture:
    """Return an architecture from its file or folder; JobError where there is none."""
    path = folder_of(path) / ARCHITECTURE
    try:
        return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Architecture)
    except OSError as error:
        raise JobError(
            f"model.architecture: {path}: cannot be read: {error.strerror}. "
            "Expected what `headwater search` writes."
        ) from error
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise JobError(f"model.architecture: {path}: {error}. Search again.") from error


def read_chosen(path: Path) -> Chosen:
    """Return an architecture with its rows and weights; JobError where a file is absent or damaged."""
    architecture = read_architecture(path)
    rows_path, weights_path = folder_of(path) / ROWS, folder_of(path) / INITIAL
    try:
        with pa.memory_map(str(rows_path)) as source:
            reader = pa.ipc.open_file(source)
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
            kept = {
                batch["column"][0].as_py(): batch["kept"].to_numpy(zero_copy_only=False)
                for batch in batches
            }
        weights = torch.load(weights_path, weights_only=True)
    except (OSError, pa.ArrowInvalid, RuntimeError) as error:
        raise JobError(
            f"model.architecture: {path}: {error}. {ROWS} and {INITIAL} belong beside {ARCHITECTURE}: "
            "give the whole folder, or search again."
        ) from error
    return Chosen(architecture, kept, weights)


def folder_of(path: Path) -> Path:
    """Return the folder of an architecture, which is named by it or by `architecture.toml` in it."""
    return path.parent if path.name == ARCHITECTURE else path
