"""Diagnosis of a loss that is not a number: the columns, tables or modules that hold non-finite values."""

from __future__ import annotations

import torch
from torch import Tensor

from headwater.feature_store.errors import TrainingError
from headwater.feature_store.schema import Schema
from headwater.models.batch import Batch
from headwater.models.network import Network


def non_finite_loss(
    network: Network, batch: Batch, schema: Schema, *, step: int, epoch: int, world_size: int = 1
) -> TrainingError:
    """Return the error that names step, epoch, what is not finite, and the remedy.

    Causes are looked for in the order in which they reach the loss: numbers of the batch, embeddings
    that it looks up (in one process; several would have to look up together), weights of modules.
    """
    where = f"epoch {epoch}, step {step}: the loss is not finite"
    columns = [
        column.name
        for column, is_bad in zip(schema.dense, _bad_columns(batch.dense_BD), strict=True)
        if is_bad
    ]
    if columns:
        return TrainingError(
            f"{where}. Non-finite values in the dense column {_names(columns)} of the batch; "
            "expected finite numbers. Filter or clean it in [data], or encode it with `quantiles`."
        )
    if batch.weight_B is not None and not _is_finite(batch.weight_B):
        return TrainingError(
            f"{where}. Non-finite values in the column of features.weight; "
            "expected finite numbers. Filter or clean it in [data]."
        )
    tables = _bad_tables(network, batch) if world_size == 1 else []
    if tables:
        return TrainingError(
            f"{where}. The embedding table of {_names(tables)} holds non-finite rows; "
            "it diverged in earlier steps. Lower train.sparse.lr."
        )
    return diverged_weights(network, where) or TrainingError(
        f"{where}. Every input and weight is finite, so the sums overflowed. Lower train.dense.lr "
        "and train.sparse.lr, or scale large dense columns with `standardized`."
    )


def diverged_weights(network: Network, where: str) -> TrainingError | None:
    """Return the error that names the modules with weights that are not finite; None where all are."""
    modules = sorted(
        {
            name.rpartition(".")[0] or name
            for name, weight in network.model.named_parameters()
            if not _is_finite(weight)
        }
    )
    if not modules:
        return None
    return TrainingError(
        f"{where}. The weights of {_names(modules)} are not finite; "
        "they diverged in earlier steps. Lower train.dense.lr or train.clip_norm."
    )


def _bad_tables(network: Network, batch: Batch) -> list[str]:
    names: set[str] = set()
    with torch.no_grad():
        pooled = network.embeddings(batch).embeddings
    for layout in network.embeddings.layouts:
        bad_F = (~pooled[layout.name].isfinite()).any(2).any(0)
        tables, dense = iter(layout.tables), iter(layout.dense)
        columns = [
            next(dense if is_dense else tables)
            for is_dense, start, stop in layout.runs
            for _ in range(start, stop)
        ]
        names |= {
            column.name for column, is_bad in zip(columns, bad_F.tolist(), strict=True) if is_bad
        }
    return sorted(names)


def _bad_columns(dense_BD: Tensor) -> list[bool]:
    return (~dense_BD.isfinite()).any(0).tolist()


def _is_finite(values: Tensor) -> bool:
    return bool(values.isfinite().all())


def _names(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names)
