"""What a trained network makes of each column: permutation importance, and the values of its gates.

B examples of the sample, W code slots, D dense columns or embedding dimension, F features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headwater.feature_store.schema import Schema
from headwater.models.batch import Batch
from headwater.models.network import Network
from headwater.pipelines.evaluation import metrics

MAX_ROWS = 20_000
_ROWS_AT_ONCE = 4096


def permutation_importance(
    logits: Callable[[Batch], Tensor], sample: Batch, schema: Schema, *, seed: int = 0
) -> dict[str, Any] | None:
    """Return the AUC of the sample and its drop when one column is shuffled among the rows.

    A list column is shuffled as a whole. None where the sample has one class only, as AUC is not
    defined then. Cost: one scoring of the sample for each column.
    """
    label_B = sample.label_B.cpu().numpy().astype(np.uint8)
    base = metrics.auc(label_B, _score(logits, sample))
    if np.isnan(base):
        return None
    rng = np.random.default_rng(seed)
    drops: dict[str, float] = {}
    for column, place in _places(schema):
        order_B = torch.from_numpy(rng.permutation(len(sample)))
        values_BX = getattr(sample, place[0])
        shuffled_BX = values_BX.clone()
        shuffled_BX[:, place[1]] = values_BX[:, place[1]][order_B.to(values_BX.device)]
        changed = dataclasses.replace(sample, **{place[0]: shuffled_BX})
        drops[column] = base - metrics.auc(label_B, _score(logits, changed))
    names = [column.name for column in schema.columns]
    return {
        "rows": len(sample),
        "auc": base,
        "columns": [{"column": name, "auc_drop": drops[name]} for name in names],
    }


def gate_values(network: Network, sample: Batch, schema: Schema) -> list[dict[str, Any]]:
    """Return mean and deviation of each gate for each feature; empty where the model has no gates.

    A model has gates when it has a method `gates`, which takes what `forward` takes and returns a
    tensor (B, F, D) a gate, features in schema order.
    """
    model = network.model
    gates_of: Callable[..., tuple[Tensor, ...]] | None = getattr(model, "gates", None)
    if gates_of is None or not getattr(model.config, "use_gates", True):
        return []
    parts: list[list[Tensor]] = []
    with torch.no_grad():
        for batch in _split(sample):
            gates = gates_of(**network.embeddings(batch).embeddings)
            parts.append([gate_BFD.float().cpu() for gate_BFD in gates])
    rows: list[dict[str, Any]] = []
    for number, pieces in enumerate(zip(*parts, strict=True), start=1):
        value_FX = torch.cat(pieces).transpose(0, 1).flatten(1).double()
        deviation_F, mean_F = torch.std_mean(value_FX, dim=1, correction=0)
        rows += [
            {"gate": f"gate_{number}", "column": column.name, "mean": mean, "std": deviation}
            for column, mean, deviation in zip(
                schema.columns, mean_F.tolist(), deviation_F.tolist(), strict=True
            )
        ]
    return rows


def _places(schema: Schema) -> list[tuple[str, tuple[str, slice]]]:
    """Return each column with the tensor of a batch that holds it, and its place there."""
    codes = [(column.name, ("codes_BW", place)) for column, place in schema.slots()]
    dense = [(column.name, ("dense_BD", slice(i, i + 1))) for i, column in enumerate(schema.dense)]
    return codes + dense


def _score(logits: Callable[[Batch], Tensor], sample: Batch) -> NDArray[np.float32]:
    with torch.no_grad():
        return np.concatenate([logits(batch).float().cpu().numpy() for batch in _split(sample)])


def _split(sample: Batch) -> list[Batch]:
    """Return the sample in parts that need little memory."""
    parts: list[Batch] = []
    for start in range(0, len(sample), _ROWS_AT_ONCE):
        chosen = slice(start, start + _ROWS_AT_ONCE)
        tensors = (getattr(sample, field.name) for field in dataclasses.fields(sample))
        parts.append(Batch(*(None if t is None else t[chosen] for t in tensors)))  # pyright: ignore[reportArgumentType]
    return parts


def concatenate(batches: list[Batch], rows: int) -> Batch:
    """Return the first `rows` examples of the batches as one."""
    columns: list[Tensor | None] = []
    for field in dataclasses.fields(Batch):
        tensors = [getattr(batch, field.name) for batch in batches]
        columns.append(None if tensors[0] is None else torch.cat(tensors)[:rows])
    return Batch(*columns)  # pyright: ignore[reportArgumentType]
