"""The ONNX graph of a release: raw features in, one probability a row out.

Three parts joined in one graph: the encoders (`feature_store.onnx_compiler`), the embedding
lookups written by hand, and the dense layers as torch exports them. Exporting the TorchRec modules
themselves gives hundreds of nodes and is many times slower; here a slot costs an Add and a Gather,
and a few nodes more where it has lists or numbers, or tables of less than float32 (`tables`). At one
row the number of nodes decides the time, so the codes become one matrix at once. What context columns
alone decide is computed for one row, up to and with the first dense layers (`context`).

N rows, W code slots, F features, D dimension.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto, helper
from torch import Tensor, nn

from headwater.feature_store.onnx_compiler import encoders_graph
from headwater.feature_store.onnx_graph import LEAST_OPSET, EncoderGraph
from headwater.feature_store.schema import EncodedColumn, Schema
from headwater.models.tables.embeddings import Embeddings
from headwater.pipelines.release.builder import OUTPUT, GraphBuilder, ReleaseGraph
from headwater.pipelines.release.context import ONCE_ROWS, SlotParts, split_context
from headwater.pipelines.release.tables import look_up
from headwater.serving.manifest import TableType

SlotTables = Mapping[str, NDArray[np.float32]]
"""Weights of a slot by column, in feature order: (cardinality, D), or (D,) for a dense column."""
SlotRemap = Mapping[str, NDArray[np.int32]]
"""Row by code of the tables of pruned columns in a slot."""


def release_layers(
    schema: Schema,
    slots: Mapping[str, SlotTables],
    model: nn.Module,
    *,
    context: Sequence[str] = (),
    opset: int = 18,
) -> ModelProto:
    """Return the dense layers: their inputs as `split_context` names them, their output the logit, [N]."""
    dims = {n: (len(t), next(iter(t.values())).shape[-1]) for n, t in slots.items()}
    layers = dense_layers(model, dims, opset=opset)
    parts = slot_parts(schema, slots, context)
    return split_context(layers, parts) if any(part.once for part in parts.values()) else layers


def release_graph(
    schema: Schema,
    slots: Mapping[str, SlotTables],
    layers: ModelProto,
    *,
    remaps: Mapping[str, SlotRemap] | None = None,
    context: Sequence[str] = (),
    negative_rate: float = 1.0,
    opset: int = 18,
    stored: TableType = "float32",
) -> ReleaseGraph:
    """Return the graph from raw columns through `layers`, whose output is `prob`, float32 [N].

    Parameters
    ----------
    slots
        Weights by argument name of `model.forward`, as `slot_tables` gives them.
    layers
        What `release_layers` gives for the same slots, context and operator set.
    remaps
        Rows by code of pruned columns, by slot, as `Embeddings.remaps` gives them.
    context
        Raw columns that may be given once, as [1, ..], for N candidates.
    negative_rate
        Share of the negatives that sampling left in the training data. It made the odds 1 / rate
        times too large, so the logit is corrected by log(rate).
    stored
        Type of the embedding tables in the graph.
    """
    encoders = encoders_graph(schema).model()
    for value in encoders.graph.input:
        # A name of its own: onnxruntime may share memory between tensors of equal named shapes.
        if value.name.removesuffix(".length") in context or value.name in context:
            value.type.tensor_type.shape.dim[0].dim_param = ONCE_ROWS
    graph = GraphBuilder(encoders, opset=opset)
    logit = _logit(graph, schema, slots, layers, remaps or {}, context, stored)
    if negative_rate < 1:
        logit = graph.add(
            "Add", [logit, graph.floats("log_rate", math.log(negative_rate))], "logit"
        )
    graph.add("Sigmoid", [logit], OUTPUT)
    return ReleaseGraph(graph.build(_one_a_row(OUTPUT)), graph.tables)


def encoded_graph(
    schema: Schema,
    slots: Mapping[str, SlotTables],
    layers: ModelProto,
    *,
    remaps: Mapping[str, SlotRemap] | None = None,
    context: Sequence[str] = (),
    opset: int = 18,
    stored: TableType = "float32",
) -> ReleaseGraph:
    """Return the part of `release_graph` behind the encoders: its output is the logit, float32 [N].

    Its inputs are the encoded columns by name: codes, int64 [N, length], or a number, float32 [N, 1].
    """
    given = EncoderGraph()
    for column in schema.columns:
        kind, element = (
            ("dense", TensorProto.FLOAT) if column.is_dense else ("code", TensorProto.INT64)
        )
        shape = ["N", column.length]
        output = f"{kind}.{column.name}"
        given.inputs.append(helper.make_tensor_value_info(column.name, element, shape))
        given.outputs.append(helper.make_tensor_value_info(output, element, shape))
        given.nodes.append(helper.make_node("Identity", [column.name], [output]))
    graph = GraphBuilder(given.model(), opset=opset)
    logit = _logit(graph, schema, slots, layers, remaps or {}, context, stored)
    return ReleaseGraph(graph.build(_one_a_row(logit)), graph.tables)


def _one_a_row(output: str) -> ValueInfoProto:
    return helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N"])


def _logit(
    graph: GraphBuilder,
    schema: Schema,
    slots: Mapping[str, SlotTables],
    layers: ModelProto,
    remaps: Mapping[str, SlotRemap],
    context: Sequence[str],
    stored: TableType,
) -> str:
    """Append lookups and dense layers behind encoded columns; return the name of the logit."""
    parts = slot_parts(schema, slots, context)
    once = _context_columns(schema, context)
    matrices = {
        part: _matrices(graph, [c for c in schema.columns if (c.name in once) == is_once], part)
        for part, is_once in (("once", True), ("each", False))
    }
    values: dict[str, str] = {}
    for slot, tables in slots.items():
        names = list(tables)
        for part, positions in (("once", parts[slot].once), ("each", parts[slot].each)):
            if positions:
                name = slot if len(positions) == len(names) else f"{slot}.{part}"
                some = {names[position]: tables[names[position]] for position in positions}
                remap = remaps.get(slot, {})
                values[name] = _slot(graph, schema, name, some, *matrices[part], remap, stored)
    return graph.merge(layers, values, prefix="dense/")


def slot_tables(embeddings: Embeddings) -> dict[str, SlotTables]:
    """Return the trained weights of each slot, its columns in the order of its features."""
    tables, numeric = embeddings.tables(), embeddings.numeric_weights()
    slots: dict[str, SlotTables] = {}
    for layout in embeddings.layouts:
        weights = tables[layout.name] | numeric[layout.name]
        columns = [
            column
            for is_dense, start, stop in layout.runs
            for column in (layout.dense if is_dense else layout.tables)[start:stop]
        ]
        slots[layout.name] = {column.name: weights[column.name] for column in columns}
    return slots


def dense_layers(
    model: nn.Module, dims: Mapping[str, tuple[int, int]], *, opset: int = 18
) -> ModelProto:
    """Return `model` as torch exports it: inputs [N, F, D] by `dims`, one output `logit` [N]."""
    rows = torch.export.Dim("N")
    return exported(
        _Positional(model, tuple(dims)),
        tuple(torch.zeros(3, *shape) for shape in dims.values()),
        (tuple({0: rows} for _ in dims),),
        inputs=tuple(dims),
        output="logit",
        opset=opset,
    )


def exported(
    layers: nn.Module,
    example: tuple[Tensor, ...],
    dynamic_shapes: tuple[Any, ...],
    *,
    inputs: Sequence[str],
    output: str,
    opset: int = LEAST_OPSET,
) -> ModelProto:
    """Return layers in evaluation mode as torch exports them, with one output."""
    trained = [module for module in layers.modules() if module.training]
    try:
        with _quiet_exporter(), torch.no_grad():
            program = torch.onnx.export(
                layers.eval(),
                example,
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=dynamic_shapes,
                input_names=list(inputs),
                output_names=[output],
                verbose=False,
            )
    finally:
        for module in trained:
            module.training = True
    assert program is not None
    return _without_traces(program.model_proto)


def _without_traces(model: ModelProto) -> ModelProto:
    """Drop what the exporter notes of the Python source, with paths of this machine, at each part."""
    graph = model.graph
    for part in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]
    for whole in (model, graph):
        whole.doc_string = ""
        del whole.metadata_props[:]
    return model


class _Positional(nn.Module):
    """A model with its slots by position, which is how the exporter calls it."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *slots: Tensor) -> Tensor:
        """Return the logit, shape (N,)."""
        return self.model(**dict(zip(self.names, slots, strict=True)))


@dataclass(frozen=True, slots=True)
class _Matrix:
    """Encoded columns side by side in one [N, width] tensor, in the order of `columns`."""

    name: str
    columns: tuple[EncodedColumn, ...]

    def positions(self, names: Sequence[str]) -> list[int]:
        """Return the positions in the tensor of the columns in `names`, in their order."""
        start: dict[str, range] = {}
        width = 0
        for column in self.columns:
            start[column.name] = range(width, width + column.length)
            width += column.length
        return [position for name in names for position in start[name]]

    def select(self, graph: GraphBuilder, names: Sequence[str], output: str) -> str:
        """Return a tensor of the columns `names` in order; the matrix itself where it is that."""
        positions = self.positions(names)
        if positions == list(range(sum(column.length for column in self.columns))):
            return self.name
        where = graph.ints(f"{output}_at", positions)
        return graph.once("Gather", [self.name, where], output, axis=1)


def _matrices(
    graph: GraphBuilder, columns: Sequence[EncodedColumn], part: str
) -> tuple[_Matrix, _Matrix]:
    """Return codes [.., W] and dense columns [.., D] of some features, each side by side."""
    matrices: list[_Matrix] = []
    for kind, is_dense in (("code", False), ("dense", True)):
        some = tuple(column for column in columns if column.is_dense == is_dense)
        names = [f"{kind}.{column.name}" for column in some]
        matrices.append(_Matrix(_concat(graph, names, f"emb/{kind}s_{part}") if some else "", some))
    return matrices[0], matrices[1]


def slot_parts(
    schema: Schema, slots: Mapping[str, SlotTables], context: Sequence[str]
) -> dict[str, SlotParts]:
    """Return which features of each slot `context` alone decides; none where there is nothing else."""
    once = _context_columns(schema, context)
    return {
        slot: SlotParts(
            tuple(i for i, name in enumerate(tables) if name in once),
            tuple(i for i, name in enumerate(tables) if name not in once),
        )
        for slot, tables in slots.items()
    }


def _context_columns(schema: Schema, context: Sequence[str]) -> set[str]:
    """Return the encoded columns that depend on context inputs alone, none where all of them do."""
    known = set(context)
    once: set[str] = set()
    for column in schema.columns:
        if all(name in (once if column.is_crossed else known) for name in column.inputs):
            once.add(column.name)
    return once if len(once) < len(schema.columns) else set()


def _slot(
    graph: GraphBuilder,
    schema: Schema,
    slot: str,
    tables: SlotTables,
    codes: _Matrix,
    dense: _Matrix,
    remap: SlotRemap,
    stored: TableType,
) -> str:
    """Append the lookups of one slot, and return the name of its tensor [N, F, D]."""
    columns = {column.name: column for column in schema.columns}
    runs = [list(run) for _, run in groupby((columns[name] for name in tables), key=_run_key)]
    embedded = [run for run in runs if not run[0].is_dense]
    numbers = [run for run in runs if run[0].is_dense]
    pieces = {
        False: iter(
            _looked_up(graph, slot, embedded, tables, codes, remap, stored) if embedded else ()
        ),
        True: iter(_scaled(graph, slot, numbers, tables, dense) if numbers else ()),
    }
    return _concat(graph, [next(pieces[run[0].is_dense]) for run in runs], f"{slot}/all")


def _run_key(column: EncodedColumn) -> tuple[bool, str]:
    """Return equal keys for neighbours that stay together: scalars, or numbers; a list is alone."""
    return column.is_dense, column.name if column.length > 1 else ""


def _looked_up(
    graph: GraphBuilder,
    slot: str,
    runs: list[list[EncodedColumn]],
    tables: SlotTables,
    codes: _Matrix,
    remap: SlotRemap,
    stored: TableType,
) -> Sequence[str]:
    """Look codes up in one stacked table; return [N, F, D] a run, lists pooled to F = 1."""
    columns = [column for run in runs for column in run]
    stacked = {column.name: tables[column.name] for column in columns}
    starts = np.cumsum([0] + [len(table) for table in stacked.values()])[:-1]
    rows_of: list[NDArray[np.int32]] = []
    if remap:  # codes lead to rows through one vector of all columns
        rows_of = [
            (start + remap.get(column.name, np.arange(column.cardinality))).astype(np.int32)
            for start, column in zip(starts, columns, strict=True)
        ]
        starts = np.cumsum([0] + [len(part) for part in rows_of[:-1]])
    offsets = [start for start, c in zip(starts, columns, strict=True) for _ in range(c.length)]
    ids = codes.select(graph, [column.name for column in columns], f"{slot}/codes")
    rows = graph.add("Add", [ids, graph.ints(f"{slot}/offsets", offsets)], f"{slot}/rows")
    if remap:
        new = graph.int32s(f"{slot}/remap", np.concatenate(rows_of))
        rows = graph.add("Gather", [new, rows], f"{slot}/kept_rows", axis=0)
    vectors = look_up(graph, slot, stacked, rows, stored)
    parts = _split(graph, vectors, [sum(c.length for c in run) for run in runs], f"{slot}/run")
    return [
        part if run[0].length == 1 else _pooled(graph, slot, run[0], part, codes)
        for part, run in zip(parts, runs, strict=True)
    ]


def _pooled(
    graph: GraphBuilder, slot: str, column: EncodedColumn, vectors: str, codes: _Matrix
) -> str:
    """Sum a list's vectors, [N, L, D] to [N, 1, D]; for a mean, divide by its number of entries."""
    axis = graph.ints("emb/axis_1", [1])
    total = graph.add("ReduceSum", [vectors, axis], f"{slot}/sum/{column.name}", keepdims=1)
    if column.pooling == "sum":
        return total
    name = f"emb/count/{column.name}"
    ids = codes.select(graph, [column.name], f"{name}/codes")
    present = graph.once("Cast", [ids], f"{name}/present", to=TensorProto.BOOL)
    ones = graph.once("Cast", [present], f"{name}/ones", to=TensorProto.FLOAT)
    count = graph.once("ReduceSum", [ones, axis], f"{name}/sum", keepdims=1)
    count = graph.once("Max", [count, graph.floats("emb/one", 1)], f"{name}/least_1")
    count = graph.once("Unsqueeze", [count, axis], name)
    return graph.add("Div", [total, count], f"{slot}/mean/{column.name}")


def _scaled(
    graph: GraphBuilder,
    slot: str,
    runs: list[list[EncodedColumn]],
    tables: SlotTables,
    dense: _Matrix,
) -> Sequence[str]:
    """Scale each number's vector by the number; return a tensor [N, F, D] a run."""
    names = [column.name for run in runs for column in run]
    weights = np.stack([np.reshape(tables[name], -1) for name in names])
    numbers = dense.select(graph, names, f"{slot}/numbers")
    column = graph.add("Unsqueeze", [numbers, graph.ints("emb/axis_2", [2])], f"{slot}/numbers_1")
    vectors = graph.add("Mul", [column, graph.floats(f"{slot}/numeric", weights)], f"{slot}/scaled")
    return _split(graph, vectors, [len(run) for run in runs], f"{slot}/number_run")


def _split(graph: GraphBuilder, value: str, sizes: list[int], output: str) -> Sequence[str]:
    """Split [N, sum of sizes, ..] along its second axis; nothing to do for one size."""
    if len(sizes) == 1:
        return [value]
    names = [f"{output}_{position}" for position in range(len(sizes))]
    return graph.add_many("Split", [value, graph.ints(f"{output}_sizes", sizes)], names, axis=1)


def _concat(graph: GraphBuilder, values: Sequence[str], output: str) -> str:
    """Join along the second axis; nothing to do for one value."""
    return values[0] if len(values) == 1 else graph.add("Concat", values, output, axis=1)


@contextmanager
def _quiet_exporter() -> Generator[None]:
    """Silence what torch's exporter says about itself, and about packages that it does without."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
