"""Bytes of a release, and what less than float32 costs in AUC, of layers and tables together.

For the cost, the network and the graph behind the encoders score the same encoded rows: all of validation,
of which no raw rows are kept.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headwater.feature_store.errors import ParityError
from headwater.feature_store.schema import Schema
from headwater.models.batch import Batch
from headwater.models.network import Network
from headwater.pipelines.evaluation.metrics import auc
from headwater.pipelines.job import Export
from headwater.pipelines.output import writing
from headwater.pipelines.release.builder import ReleaseGraph
from headwater.serving.kinds.graph import open_session
from headwater.serving.manifest import MODEL_NAME, TableType


@dataclass(frozen=True, slots=True)
class ReleaseSize:
    """Bytes of a release."""

    tables: TableType
    table_bytes: int
    """Of embedding tables with their scales, once for each slot that looks them up."""
    float32_bytes: int
    """Of the same tables in float32."""
    release_bytes: int
    """Of the graph with its tables."""

    def values(self) -> dict[str, float]:
        """Return what the manifest holds."""
        return {
            "table_bytes": float(self.table_bytes),
            "table_bytes_float32": float(self.float32_bytes),
            "release_bytes": float(self.release_bytes),
        }

    def text(self) -> str:
        """Return the report in a line."""
        share = self.table_bytes / max(1, self.float32_bytes)
        compared = "" if self.tables == "float32" else f", {share:.1%} of float32"
        return (
            f"size     {self.release_bytes:,} bytes, of which tables {self.table_bytes:,} in {self.tables}"
            f"{compared}"
        )


@dataclass(frozen=True, slots=True)
class AucCost:
    """AUC of the network and of the release on the same labelled rows."""

    reduced: str
    """What is of less than float32."""
    auc_float32: float
    auc_release: float
    num_rows: int

    @property
    def auc_cost(self) -> float:
        """AUC that is lost; below 0, gained by chance. NaN where the rows have one class only."""
        return self.auc_float32 - self.auc_release

    def values(self) -> dict[str, float]:
        """Return what the manifest holds."""
        return {
            "auc_cost": self.auc_cost,
            "auc_cost_float32": self.auc_float32,
            "auc_cost_release": self.auc_release,
            "auc_cost_rows": float(self.num_rows),
        }

    def text(self) -> str:
        """Return the report in a line."""
        return (
            f"cost     {self.auc_cost:.6f} AUC for {self.reduced}: {self.auc_float32:.6f} in float32, "
            f"{self.auc_release:.6f} in the release, of {self.num_rows:,} validation rows"
        )

    def require(self, settings: Export) -> None:
        """Raise ParityError where the cost is above `max_auc_cost`, or unknown."""
        if self.auc_cost <= settings.max_auc_cost:
            return
        milder = [
            f'{key} = "float32"' for key in ("precision", "tables") if key in _reduced(settings)
        ]
        if settings.tables == "int8":
            milder.append('tables = "float16"')
        raise ParityError(
            f"{self.reduced} cost {self.auc_cost:.6f} AUC on {self.num_rows:,} validation rows "
            f"({self.auc_float32:.6f} in float32, {self.auc_release:.6f} in the release), more than "
            f"export.max_auc_cost = {settings.max_auc_cost:g}. "
            f"Export with {' or '.join(milder)}, or raise the bound."
        )


def is_reduced(settings: Export) -> bool:
    """Return whether anything of a release is of less than float32."""
    return bool(_reduced(settings))


def _reduced(settings: Export) -> dict[str, str]:
    """Return what is of less than float32, by the key that says so."""
    parts = {"precision": (settings.precision, "layers"), "tables": (settings.tables, "tables")}
    return {key: f"{kind} {part}" for key, (kind, part) in parts.items() if kind != "float32"}


def measured_cost(
    network: Network,
    graph: ReleaseGraph,
    schema: Schema,
    batches: Iterable[Batch],
    settings: Export,
    folder: Path,
) -> AucCost:
    """Return the cost on labelled batches of `graph`, which `encoded_graph` gave.

    The graph lies in `folder` while it is measured.
    """
    labels: list[NDArray[Any]] = []
    exact: list[NDArray[np.float32]] = []
    rounded: list[NDArray[np.float32]] = []
    with tempfile.TemporaryDirectory(dir=folder) as part:
        path = Path(part) / MODEL_NAME
        with writing(folder):
            graph.write(path)
        session = open_session(path)
        for batch in batches:
            # Not inference mode: fbgemm's lookup has no kernel for it on a CPU.
            with torch.no_grad():
                logit, _ = network(batch)
            output = session.run(None, _feeds(batch, schema))[0]
            assert isinstance(output, np.ndarray)
            labels.append(batch.label_B.cpu().numpy() > 0)
            exact.append(logit.cpu().numpy())
            rounded.append(output.reshape(-1))
    label_N = np.concatenate(labels)
    return AucCost(
        reduced=" and ".join(_reduced(settings).values()),
        auc_float32=auc(label_N, np.concatenate(exact)),
        auc_release=auc(label_N, np.concatenate(rounded)),
        num_rows=len(label_N),
    )


def _feeds(batch: Batch, schema: Schema) -> dict[str, NDArray[Any]]:
    """Return encoded rows as the inputs of `encoded_graph`."""
    codes_BW = batch.codes_BW.cpu().numpy().astype(np.int64)
    dense_BD = batch.dense_BD.cpu().numpy()
    feeds: dict[str, NDArray[Any]] = {
        column.name: codes_BW[:, places] for column, places in schema.code_places()
    }
    for place, column in enumerate(schema.dense):
        feeds[column.name] = dense_BD[:, place : place + 1]
    return feeds
