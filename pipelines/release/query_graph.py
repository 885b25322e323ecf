"""The graph of a retriever: from a raw user, history or basket to a query's vector, or to its best items.

A history is read as training reads it: items that training never saw are dropped, then all but the newest
that the model reads; of a set each item counts once. Items of the answer are places in `items.arrow`.

N queries, L items of the longest history, W items of it that are read, D dimension, I items, K answers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto, helper
from torch import nn

from headwater.feature_store.onnx_compiler import encoders_graph
from headwater.feature_store.onnx_graph import LEAST_OPSET
from headwater.feature_store.schema import FIRST_CODE, EncodedColumn, RawColumn, Schema
from headwater.models.retrieval.base import ScoreModel, VectorModel
from headwater.models.retrieval.neighbours import NeighboursModel
from headwater.models.retrieval.popularity import Popularity
from headwater.pipelines.release.builder import GraphBuilder, ReleaseGraph, StackedTable
from headwater.pipelines.release.graph import exported
from headwater.serving.manifest import (
    ALLOWED,
    ITEM,
    ITEM_SCORE,
    KNOWN,
    TOP_K,
    VECTOR,
    Input,
    Output,
)

Outputs = Sequence[ValueInfoProto]


def asker(schema: Schema, *, by_user: bool) -> tuple[RawColumn, EncodedColumn]:
    """Return the column that a query gives: the user, or the items of its history as a list."""
    position = 0 if by_user else -1
    raw, column = schema.raw[position], schema.columns[position]
    return RawColumn(name=raw.name, dtype=raw.dtype, is_list=not by_user), column


def query_input(schema: Schema, *, by_user: bool) -> Input:
    """Return the raw input of the graph."""
    raw, _ = asker(schema, by_user=by_user)
    return Input(name=raw.name, dtype=raw.dtype, is_list=raw.is_list)


def vector_outputs(model: VectorModel) -> tuple[Output, ...]:
    """Return the outputs of `vector_graph`."""
    return (
        Output(name=VECTOR, shape=(-1, model.items().shape[1]), meaning="vector", bounds=None),
        Output(name=KNOWN, dtype="int64", meaning="known", bounds=None),
    )


SCORE_OUTPUTS = (
    Output(name=ITEM, dtype="int64", shape=(-1, -1), meaning="item", bounds=None),
    Output(name=ITEM_SCORE, shape=(-1, -1), meaning="score", bounds=None),
    Output(name=KNOWN, dtype="int64", meaning="known", bounds=None),
)
"""Outputs of `score_graph`: of fewer than K items that are allowed, the rest scores -infinity."""


def vector_graph(
    schema: Schema, model: VectorModel, *, longest: int | None, opset: int = LEAST_OPSET
) -> ReleaseGraph:
    """Return the graph to a query's vector, float32 [N, D], and what is known of it, int64 [N].

    That is 1 for a user that training knew, or the number of items of the history that are read; with 0 the
    vector says nothing.
    """
    by_user = model.query == "user"
    graph, code = _start(schema, by_user=by_user, opset=opset)
    rows = model.read_rows().detach().numpy()
    graph.tables.append(StackedTable("read_rows", [rows]))
    dim = model.items().shape[1]
    if by_user:
        code = graph.add("Squeeze", [code, graph.ints("last_axis", [1])], "user")
        is_known = graph.add("GreaterOrEqual", [code, graph.ints("first_code", FIRST_CODE)], "is")
        known = graph.add("Cast", [is_known], KNOWN, to=TensorProto.INT64)
        vector = graph.add("Gather", ["read_rows", code], VECTOR, axis=0)
    else:
        code, known = _read(graph, code, _length(schema), longest)
        token = graph.add("Gather", ["read_rows", code], "tokens", axis=0)
        layers = model.read_layers()
        assert layers is not None, "a history becomes a vector by layers"
        given = {"token_BLD": token, "length_B": known}
        made = _layers(layers, rows.shape[1], opset)
        merged = graph.merge(made, given, prefix="layers/")
        vector = graph.add("Identity", [merged], VECTOR)
        known = graph.add("Identity", [known], KNOWN)
    outputs = [
        helper.make_tensor_value_info(vector, TensorProto.FLOAT, ["N", dim]),
        helper.make_tensor_value_info(known, TensorProto.INT64, ["N"]),
    ]
    return ReleaseGraph(graph.build(*outputs), graph.tables)


def score_graph(schema: Schema, model: ScoreModel, *, opset: int = LEAST_OPSET) -> ReleaseGraph:
    """Return the graph to the best items of a query, int64 [N, K], and their scores, float32 [N, K].

    Beside the history it takes K and the items that are allowed, bool [N, I] or [1, I]. Of equal scores the
    lower place comes first.
    """
    graph, code = _start(schema, by_user=False, opset=opset)
    graph.take(TOP_K, TensorProto.INT64, [1])
    graph.take(ALLOWED, TensorProto.BOOL, ["A", model.num_items - FIRST_CODE])
    code, known = _read(graph, code, _length(schema), None)
    if isinstance(model, NeighboursModel):
        score = _neighbour_scores(graph, model, code)
    else:
        assert isinstance(model, Popularity), "asked before"
        count = graph.floats("count", model.count_N[FIRST_CODE:].cpu().numpy()[None])
        ones = graph.add("Unsqueeze", [known, graph.ints("last_axis", [1])], "rows")
        nothing = graph.add("Mul", [ones, graph.ints("zero", 0)], "nothing")
        nothing = graph.add("Cast", [nothing], "no_score", to=TensorProto.FLOAT)
        score = graph.add("Add", [nothing, count], "scores")
    lowest = graph.floats("lowest", -np.inf)
    score = graph.add("Where", [ALLOWED, score, lowest], "allowed_scores")
    graph.add_many("TopK", [score, TOP_K], [ITEM_SCORE, ITEM], axis=1)
    known = graph.add("Identity", [known], KNOWN)
    outputs = [
        helper.make_tensor_value_info(ITEM, TensorProto.INT64, ["N", "K"]),
        helper.make_tensor_value_info(ITEM_SCORE, TensorProto.FLOAT, ["N", "K"]),
        helper.make_tensor_value_info(known, TensorProto.INT64, ["N"]),
    ]
    return ReleaseGraph(graph.build(*outputs), graph.tables)


def has_score_graph(model: ScoreModel) -> bool:
    """Return whether there is a graph for a model without vectors."""
    return isinstance(model, NeighboursModel | Popularity)


def _start(schema: Schema, *, by_user: bool, opset: int) -> tuple[GraphBuilder, str]:
    """Return a graph from the raw column to its codes, and their name."""
    raw, column = asker(schema, by_user=by_user)
    encoders = encoders_graph(Schema(raw=(raw,), columns=(column,)))
    return GraphBuilder(encoders.model(), opset=opset), f"code.{column.name}"


def _length(schema: Schema) -> str:
    return f"{schema.raw[-1].name}.length"


def _read(graph: GraphBuilder, code: str, length: str, longest: int | None) -> tuple[str, str]:
    """Return the known codes of each history, [N, W], then zeros, and how many there are, [N].

    They are the newest `longest` in their order; without it the distinct ones, ascending.
    """
    axis, zero, one = graph.ints("last_axis", [1]), graph.ints("zero", 0), graph.ints("one", 1)
    width = graph.add("Shape", [code], "width", start=1)
    last = graph.add("Squeeze", [width], "last")
    place = graph.add("Range", [zero, last, one], "places")
    is_inside = graph.add("Less", [place, graph.raw(length)], "inside")
    code = graph.add("Where", [is_inside, code, zero], "given")
    if longest is None:
        code, _ = graph.add_many("TopK", [code, width], ["ascending", "order"], largest=0)
        rows = graph.add("Shape", [code], "num_rows", end=1)
        column = graph.add("Concat", [rows, graph.ints("one_column", [1])], "column", axis=0)
        first = graph.add("Expand", [zero, column], "before_first")
        parts = [graph.ints("start", [0]), graph.ints("minus_one", [-1]), axis]
        others = graph.add("Slice", [code, *parts], "all_but_last")
        before = graph.add("Concat", [first, others], "before", axis=1)
        repeats = graph.add("Equal", [code, before], "repeats")
        code = graph.add("Where", [repeats, zero, code], "distinct")
    is_known = graph.add("GreaterOrEqual", [code, graph.ints("first_code", FIRST_CODE)], "is_known")
    counted = graph.add("Cast", [is_known], "counted", to=TensorProto.INT64)
    from_end = graph.add("CumSum", [counted, one], "from_end", reverse=1)
    number = graph.add("ReduceSum", [counted, axis], "number", keepdims=1)
    if longest is not None:
        most = graph.ints("longest", longest)
        number = graph.add("Min", [number, most], "number_read")
        is_new = graph.add("LessOrEqual", [from_end, most], "is_new")
        is_known = graph.add("And", [is_known, is_new], "is_read")
    # What is not read goes into a column behind the others, which is cut off.
    widest = graph.add("ReduceMax", [number], "widest", keepdims=0)
    widest = graph.add("Max", [widest, one], "width_read")
    place = graph.add("Sub", [number, from_end], "place_read")
    place = graph.add("Where", [is_known, place, widest], "place_or_none")
    end = graph.add("Unsqueeze", [widest, graph.ints("start", [0])], "end")
    wider = graph.add("Add", [end, one], "end_and_one")
    rows = graph.add("Shape", [code], "rows_read", end=1)
    shape = graph.add("Concat", [rows, wider], "shape_read", axis=0)
    empty = graph.add("Expand", [zero, shape], "empty")
    code = graph.add("ScatterElements", [empty, place, code], "scattered", axis=1)
    code = graph.add("Slice", [code, graph.ints("start", [0]), end, axis], "codes_read")
    return code, graph.add("Squeeze", [number, axis], "num_read")


def _neighbour_scores(graph: GraphBuilder, model: NeighboursModel, code: str) -> str:
    """Return the sums of the weights that lead from distinct items to each item, [N, I].

    As `NeighboursModel.scores`: S items of all histories, T weights that start at them.
    """
    zero, one = graph.ints("zero", 0), graph.ints("one", 1)
    axis = graph.ints("start", [0])
    found = graph.add("NonZero", [code], "found")
    pairs = graph.add("Transpose", [found], "pairs", perm=[1, 0])
    item = graph.add("GatherND", [code, pairs], "item_S")
    query = graph.add("Gather", [found, zero], "query_S", axis=0)
    starts = graph.ints("start_N", model.start_N.cpu().numpy())
    first = graph.add("Gather", [starts, item], "first_S")
    following = graph.add("Gather", [starts, graph.add("Add", [item, one], "item_1_S")], "next_S")
    number = graph.add("Sub", [following, first], "number_S")
    ends = graph.add("CumSum", [number, zero], "end_S")
    begins = graph.add("Sub", [ends, number], "begin_S")
    total = graph.add("ReduceSum", [number, axis], "total", keepdims=1)
    # The segment of a weight is the number of segments that began until then; empty ones count too.
    room = graph.add("Expand", [zero, graph.add("Add", [total, one], "total_1")], "room")
    each = graph.add("Expand", [one, graph.add("Shape", [begins], "num_S")], "each_S")
    marks = graph.add("ScatterElements", [room, begins, each], "marks", axis=0, reduction="add")
    marks = graph.add("Slice", [marks, axis, total, axis], "mark_T")
    segment = graph.add("Sub", [graph.add("CumSum", [marks, zero], "begun_T"), one], "segment_T")
    skip = graph.add("Sub", [first, begins], "skip_S")
    skip = graph.add("Gather", [skip, segment], "skip_T")
    count = graph.add("Squeeze", [total], "total_scalar")
    weight_of = graph.add("Range", [zero, count, one], "range_T")
    weight_of = graph.add("Add", [weight_of, skip], "weight_of_T")
    graph.tables += [
        _column("weight_W", model.weight_W.cpu().numpy()),
        _column("target_W", model.item_W.cpu().numpy()),
    ]
    flat = graph.ints("flat", [-1])
    weight = graph.add(
        "Reshape", [graph.add("Gather", ["weight_W", weight_of], "weight_T1"), flat], "weight_T"
    )
    target = graph.add(
        "Reshape", [graph.add("Gather", ["target_W", weight_of], "target_T1"), flat], "target_T"
    )
    target = graph.add("Cast", [target], "target_T64", to=TensorProto.INT64)
    row = graph.add("Gather", [query, segment], "query_T")
    width = graph.ints("num_items", model.num_items)
    place = graph.add("Add", [graph.add("Mul", [row, width], "row_T"), target], "place_T")
    rows = graph.add("Shape", [code], "num_queries", end=1)
    cells = graph.add("Mul", [rows, width], "cells")
    nothing = graph.add("Expand", [graph.floats("no_weight", 0), cells], "nothing")
    sums = graph.add("ScatterElements", [nothing, place, weight], "sums", axis=0, reduction="add")
    shape = graph.add("Concat", [rows, graph.ints("width_1", [model.num_items])], "shape", axis=0)
    score = graph.add("Reshape", [sums, shape], "score_of_rows")
    bounds = [graph.ints("first_item", [FIRST_CODE]), graph.ints("behind", [model.num_items])]
    return graph.add("Slice", [score, *bounds, graph.ints("last_axis", [1])], "scores")


def _column(name: str, values: NDArray[np.generic]) -> StackedTable:
    """Return an array as a table of one column, with a row at least."""
    return StackedTable(name, [(values if len(values) else np.zeros(1, values.dtype))[:, None]])


def _layers(layers: nn.Module, dim: int, opset: int) -> ModelProto:
    """Return the layers as torch exports them, from `token_BLD` and `length_B` to vectors."""
    batch, width = torch.export.Dim("N"), torch.export.Dim("W")
    return exported(
        layers,
        (torch.zeros(3, 5, dim), torch.tensor([5, 2, 0])),
        ({0: batch, 1: width}, {0: batch}),
        inputs=("token_BLD", "length_B"),
        output="vector",
        opset=opset,
    )
