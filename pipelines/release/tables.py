"""Embedding tables in the graph: float32, float16, or rows of 8-bit integers with a float16 scale each.

The graph looks rows up first and makes float32 of those alone, so that a request pays for its own rows and
never for the table.

An int8 row is symmetric: value * scale, the largest value of a row at 127 or -127. Of D values it takes D + 2
bytes. An offset a row would take two more, and round real tables by a fifth less, of which their AUC shows
nothing (docs/release.md). Row 0, for missing and padding, is zero in any type.

R rows, D dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from headwater.feature_store.errors import ParityError
from headwater.pipelines.evaluation.metrics import chunks
from headwater.pipelines.release.builder import GraphBuilder, StackedTable
from headwater.pipelines.rules.release import LEAST_INT8_DIM
from headwater.serving.manifest import TableType

_STEPS = 127
_LEAST_SCALE = np.float32(2.0**-24)
"""The smallest float16 above 0."""
_LARGEST_SCALE = 2.0**15
"""Where a scale is larger, all of the slot are float32."""


def look_up(
    graph: GraphBuilder,
    slot: str,
    tables: Mapping[str, NDArray[np.float32]],
    rows: str,
    stored: TableType,
) -> str:
    """Append the lookup of `rows` in the stacked tables of a slot; return its vectors, float32 [.., D].

    With int8, tables of so few dimensions that it would save nothing are float16.
    """
    parts = list(tables.values())
    name, vectors = f"{slot}/table", f"{slot}/vectors"
    if stored == "float32":
        return _gather(graph, StackedTable(name, parts), rows, vectors)
    if stored == "float16" or parts[0].shape[1] < LEAST_INT8_DIM:
        halves = [_float16(column, table) for column, table in tables.items()]
        return _gather(graph, StackedTable(name, halves), rows, vectors)
    values, scale_R1 = int8_rows(parts)
    steps = _gather(graph, StackedTable(name, values), rows, f"{slot}/steps")
    scale = _gather(graph, StackedTable(f"{slot}/scales", [scale_R1]), rows, f"{slot}/scale")
    return graph.add("Mul", [steps, scale], vectors)


def int8_rows(parts: Sequence[NDArray[np.float32]]) -> tuple[list[NDArray[np.int8]], NDArray[Any]]:
    """Return tables [R, D] in 8 bits, and the scale of each row of all of them, [R, 1].

    value * scale differs from the number by half a scale at most. Scales are float16, and float32 where a
    row has a number above 4 million.
    """
    largest = [np.maximum(part.max(1), -part.min(1)) for part in parts]
    scale_R1 = _scales(np.concatenate(largest)[:, None])
    values: list[NDArray[np.int8]] = []
    start = 0
    for part in parts:
        scale = scale_R1[start : start + len(part)].astype(np.float32)
        steps = np.empty(part.shape, np.int8)
        for some in chunks(len(part)):
            steps[some] = np.rint(part[some] / scale[some])
        values.append(steps)
        start += len(part)
    return values, scale_R1


def _scales(largest_R1: NDArray[np.float32]) -> NDArray[Any]:
    """Return scales of which 127 reach the largest number of each row, or its neighbour in float32."""
    exact = np.maximum(largest_R1 / np.float32(_STEPS), _LEAST_SCALE)
    if not exact.max() <= _LARGEST_SCALE:
        # A bit less: 127 times the scale of the largest float32 would be infinite.
        return np.nextafter(exact, np.float32(0))
    scale = exact.astype(np.float16)
    return np.where(scale < exact, np.nextafter(scale, np.float16(np.inf)), scale)


def _float16(column: str, table: NDArray[np.float32]) -> NDArray[np.float16]:
    """Return a table in float16; ParityError where a number is out of its range."""
    with np.errstate(over="ignore"):
        halves = table.astype(np.float16)
    if not np.isfinite(halves).all():
        raise ParityError(
            f"export.tables: a row of feature {column!r} holds {np.abs(table).max():g}, and float16 ends at "
            f"{np.finfo(np.float16).max:g}. "
            'Export with tables = "float32", or train with a lower learning rate.'
        )
    return halves


def _gather(graph: GraphBuilder, table: StackedTable, rows: str, output: str) -> str:
    """Append the lookup of rows of one table; return them in float32."""
    graph.tables.append(table)
    if table.dtype == np.float32:
        return graph.add("Gather", [table.name, rows], output, axis=0)
    found = graph.add("Gather", [table.name, rows], f"{output}/{table.dtype}", axis=0)
    return graph.add("Cast", [found], output, to=TensorProto.FLOAT)
