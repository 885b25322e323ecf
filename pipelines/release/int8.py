"""Dense layers in 8-bit integers: several times less CPU for a small loss, which `cost` measures.

Static quantisation by onnxruntime's own tool: the range of every activation is fixed at export, from the
sample. Dynamic quantisation would take it from the rows of each call, so that a score depended on the
requests that happen to share a batch, and one huge number in a request would spoil the others.

Weights get 7 bits and a scale of their own for each output: processors without instructions for 8-bit dot
products add pairs of products in 16 bits, which 8-bit weights would overflow. Layers with few outputs, as the
last one, stay float32: they cost little, and the logit hangs on them.

N rows, F features, D dimension.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto, helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from headwater.models.batch import Batch
from headwater.models.network import Network
from headwater.pipelines.release.context import SlotParts

MIN_WIDTH = 16
"""A layer with fewer inputs or outputs stays float32."""
_CALIBRATION_ROWS = 512

Feeds = dict[str, NDArray[np.float32]]


def quantized(model: ModelProto, feeds: Feeds) -> ModelProto:
    """Return dense layers in 8-bit integers, with the same inputs and output.

    `feeds` are inputs of real rows: their activations set the ranges.
    """
    with tempfile.TemporaryDirectory(prefix="headwater-int8-") as folder, _quiet():
        # By files: the tool changes a model that it gets in memory.
        given, plain, result = (
            Path(folder) / f"{name}.onnx" for name in ("given", "plain", "int8")
        )
        onnx.save(model, given)
        quant_pre_process(given, plain, skip_symbolic_shape=True)
        prepared = onnx.load(plain)
        _free_bias(prepared)
        onnx.save(prepared, plain)
        quantize_static(
            plain,
            result,
            _Rows(feeds),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_exclude=list(_kept(prepared)),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        found = onnx.load(result)
    # The tool names every domain that it knows, in versions of its own.
    used = {node.domain for node in found.graph.node}
    opsets = [item for item in found.opset_import if item.domain in used]
    del found.opset_import[:]
    found.opset_import.extend(opsets)
    return found


def _free_bias(model: ModelProto) -> None:
    """Add the computed bias of a layer, its share of the context, behind it: the tool wants constants."""
    constant = {tensor.name for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        nodes.append(node)
        if node.op_type == "Gemm" and len(node.input) == 3 and node.input[2] not in constant:
            bias, output = node.input.pop(), node.output[0]
            node.output[0] = f"{output}/product"
            nodes.append(
                helper.make_node("Add", [node.output[0], bias], [output], name=f"{output}/sum")
            )
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def _kept(model: ModelProto) -> Iterator[str]:
    """Yield the names of layers that stay float32."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("MatMul", "Gemm"):
            shape = shapes.get(node.input[1], ())
            # A weight by head is of three dimensions; onnxruntime cannot scale its outputs one by one.
            if len(shape) != 2 or min(shape) < MIN_WIDTH:
                yield node.name


class _Rows(CalibrationDataReader):
    """Rows in pieces, which is how the tool asks for them."""

    def __init__(self, feeds: Feeds) -> None:
        num_rows = max(len(array) for array in feeds.values())
        self._pieces = iter(
            [
                {name: array[start : start + _CALIBRATION_ROWS] for name, array in feeds.items()}
                for start in range(0, num_rows, _CALIBRATION_ROWS)
            ]
        )

    def get_next(self) -> dict[str, Any]:
        """Return the next piece, an empty one behind the last."""
        return next(self._pieces, {})


def part_feeds(slots: Mapping[str, NDArray[np.float32]], parts: Mapping[str, SlotParts]) -> Feeds:
    """Return slots [N, F, D] as the inputs that `split_context` makes of them."""
    feeds: Feeds = {}
    for slot, values in slots.items():
        for part, positions in (("once", parts[slot].once), ("each", parts[slot].each)):
            if positions:
                name = slot if len(positions) == values.shape[1] else f"{slot}.{part}"
                feeds[name] = np.ascontiguousarray(values[:, list(positions)])
    return feeds


def int8_layers(
    network: Network, layers: ModelProto, parts: Mapping[str, SlotParts], sample: Batch
) -> ModelProto:
    """Return `layers` in 8-bit integers, ranges set by `sample`.

    `parts` are those by which `layers` takes in the slots.
    """
    with torch.no_grad():
        looked = network.embeddings(sample).embeddings
    slots = {name: value.cpu().numpy() for name, value in looked.items()}
    return quantized(layers, part_feeds(slots, parts))


@contextmanager
def _quiet() -> Generator[None]:
    """Silence what the tool says about itself: it warns on the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
