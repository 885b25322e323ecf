"""Dense layers in 8-bit integers: several times less CPU for a small loss, which is measured.

Static quantisation by onnxruntime's own tool: the range of every activation is fixed at export, from the
sample. Dynamic quantisation would take it from the rows of each call, so that a score depended on the
requests that happen to share a batch, and one huge number in a request would spoil the others.

Weights get 7 bits and a scale of their own for each output: processors without instructions for 8-bit dot
products add pairs of products in 16 bits, which 8-bit weights would overflow. Layers with few outputs, as the
last one, stay float32: they cost little, and the logit hangs on them.

N rows.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
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

from headwater.feature_store.errors import ParityError
from headwater.models.batch import Batch
from headwater.models.network import Network
from headwater.pipelines.evaluation.metrics import auc
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


@dataclass(frozen=True, slots=True)
class Int8Cost:
    """Cost of 8-bit layers on labelled rows."""

    auc_float32: float
    auc_int8: float
    num_rows: int

    @property
    def auc_cost(self) -> float:
        """AUC that is lost; below 0, gained by chance. NaN where the rows have one class only."""
        return self.auc_float32 - self.auc_int8

    def values(self) -> dict[str, float]:
        """Return what the manifest holds."""
        return {
            "auc_cost": self.auc_cost,
            "auc_cost_float32": self.auc_float32,
            "auc_cost_int8": self.auc_int8,
            "auc_cost_rows": float(self.num_rows),
        }

    def text(self) -> str:
        """Return the report in a line."""
        return (
            f"int8     costs {self.auc_cost:.6f} AUC: {self.auc_float32:.6f} in float32, "
            f"{self.auc_int8:.6f} in int8, of {self.num_rows:,} validation rows"
        )


def measured_int8(
    network: Network,
    layers: ModelProto,
    parts: Mapping[str, SlotParts],
    sample: Batch,
    valid: Iterable[Batch],
    *,
    max_auc_cost: float,
) -> tuple[ModelProto, Int8Cost]:
    """Return `layers` in 8-bit integers, ranges set by `sample`, and their cost on the rows of `valid`.

    `parts` are those by which `layers` takes in the slots. ParityError where the cost is above
    `max_auc_cost`.
    """
    found = quantized(layers, part_feeds(_slots(network, sample), parts))
    session = onnxruntime.InferenceSession(
        found.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    labels: list[NDArray[Any]] = []
    exact: list[NDArray[np.float32]] = []
    rounded: list[NDArray[np.float32]] = []
    for batch in valid:
        slots = _slots(network, batch)
        with torch.no_grad():
            logit = network.model(**{name: torch.from_numpy(v) for name, v in slots.items()})
        output = session.run(None, part_feeds(slots, parts))[0]
        assert isinstance(output, np.ndarray)
        labels.append(batch.label_B.cpu().numpy() > 0)
        exact.append(logit.numpy())
        rounded.append(output.reshape(-1))
    label_N = np.concatenate(labels)
    cost = Int8Cost(
        auc(label_N, np.concatenate(exact)), auc(label_N, np.concatenate(rounded)), len(label_N)
    )
    if not cost.auc_cost <= max_auc_cost:
        raise ParityError(
            f"int8 costs {cost.auc_cost:.6f} AUC on {cost.num_rows:,} validation rows "
            f"({cost.auc_float32:.6f} in float32, {cost.auc_int8:.6f} in int8), more than "
            f"export.max_auc_cost = {max_auc_cost:g}. "
            'Export with precision = "float32", or raise the bound.'
        )
    return found, cost


def _slots(network: Network, batch: Batch) -> dict[str, NDArray[np.float32]]:
    """Return the embeddings of a batch, [N, F, D] by slot."""
    with torch.no_grad():
        return {
            name: value.cpu().numpy()
            for name, value in network.embeddings(batch).embeddings.items()
        }


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
