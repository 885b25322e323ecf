"""Dense layers of which the context part runs once a request, whatever the number of candidates.

Embeddings of the context are the same for all candidates of a request. So a slot comes in two parts,
`<slot>.once` and `<slot>.each`, and a linear layer over both becomes two that are added: of W x, the share of
the context is computed for one row and broadcast. The first layers cost most where features are many, and
context features are often most of them.

Works on the graph that torch exported, so that models know nothing of it: gates, reshapes and slots side by
side are followed up to a linear layer; whatever else reads a slot gets both parts joined, as before.

N candidates, F features, D dimension, H width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

ONCE_ROWS = "one or N"
"""First dimension of what comes from the context, as the graph names it: a name of its own, because
onnxruntime may share memory between tensors of equal named shapes."""

_BROADCASTS = frozenset(("Add", "Sub", "Mul", "Div", "Max", "Min", "Where"))


class _MixedError(Exception):
    """A node joins values of one row with values of N in a way that is not followed."""


@dataclass(frozen=True, slots=True)
class SlotParts:
    """Positions of the features of a slot that come from the context."""

    once: tuple[int, ...]
    each: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Parted:
    """A value in two parts along its second axis: [1 or N, F', D] and [N, F'', D], or flat, without D."""

    once: str
    each: str
    at_once: NDArray[np.int64]
    """Where the first part lies in the whole."""
    at_each: NDArray[np.int64]
    is_flat: bool

    def parts(self) -> tuple[tuple[str, NDArray[np.int64]], tuple[str, NDArray[np.int64]]]:
        """Return each part and where it lies."""
        return (self.once, self.at_once), (self.each, self.at_each)


def split_context(model: ModelProto, slots: Mapping[str, SlotParts]) -> ModelProto:
    """Return `model` with the inputs of `slots` in two parts; a slot of one part keeps its name.

    A part is `<slot>.once`, `[1 or N, F', D]`, or `<slot>.each`, `[N, F'', D]`. At least one slot has
    features of candidates: their number is N.
    """
    try:
        return _Splitter(model, slots, expand=False).run()
    except _MixedError:
        return _Splitter(model, slots, expand=True).run()


class _Splitter:
    """One walk over the nodes, in the order in which they run."""

    def __init__(self, model: ModelProto, slots: Mapping[str, SlotParts], *, expand: bool) -> None:
        self._model = onnx.shape_inference.infer_shapes(model)
        self._slots = slots
        self._expand = expand
        self._weights = {tensor.name: tensor for tensor in self._model.graph.initializer}
        self._shapes = _shapes(self._model)
        self._constant = {*self._weights, ""}
        self._once: set[str] = set()
        self._parted: dict[str, _Parted] = {}
        self._joined: dict[str, str] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._nodes: list[NodeProto] = []
        self._made: dict[str, TensorProto] = {}
        self._rows = ""

    def run(self) -> ModelProto:
        """Return the new model."""
        for value in self._model.graph.input:
            self._take(value, self._slots[value.name])
        for name in [name for name in self._once if self._expand]:
            self._once.remove(name)
            self._joined[name] = self._expanded(name, f"{name}/all")
        for node in self._model.graph.node:
            self._follow(node)
        (output,) = self._model.graph.output
        if output.name in self._once or output.name in self._parted:
            raise _MixedError
        used = {name for node in self._nodes for name in node.input}
        tensors = [t for t in (*self._weights.values(), *self._made.values()) if t.name in used]
        graph = helper.make_graph(self._nodes, "dense", self._inputs, [output], tensors)
        return helper.make_model(
            graph,
            opset_imports=list(self._model.opset_import),
            ir_version=self._model.ir_version,
        )

    def _take(self, value: onnx.ValueInfoProto, parts: SlotParts) -> None:
        """Declare the parts of an input; the first with candidates says how many there are."""
        name = value.name
        _, dim = self._size(name)
        if parts.once and parts.each:
            once, each = f"{name}.once", f"{name}.each"
            at_once, at_each = (np.array(part, np.int64) for part in (parts.once, parts.each))
            self._parted[name] = _Parted(once, each, at_once, at_each, is_flat=False)
        else:
            once = each = name
            if parts.once:
                self._once.add(name)
        if parts.once:
            self._declare(once, [ONCE_ROWS, len(parts.once), dim])
        if parts.each:
            self._declare(each, ["N", len(parts.each), dim])
            self._rows = self._rows or self._add("Shape", [each], "context/rows", start=0, end=1)

    def _declare(self, name: str, shape: Sequence[str | int]) -> None:
        self._inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def _follow(self, node: NodeProto) -> None:
        found = [name for name in node.input if name in self._parted]
        if self._joint(node):
            return
        if found and (self._gated(node, found) or self._flat(node) or self._linear(node)):
            return
        for position, name in enumerate(node.input):
            if name in self._parted or name in self._joined:
                node.input[position] = self._whole(name)
        once = [name for name in node.input if name in self._once]
        rest = [name for name in node.input if name not in self._once]
        each = [name for name in rest if name not in self._constant]
        if once and each and node.op_type not in _BROADCASTS:
            raise _MixedError
        self._nodes.append(node)
        if not each:
            (self._once if once else self._constant).update(node.output)

    def _gated(self, node: NodeProto, found: list[str]) -> bool:
        """Follow `slot * gate`, the gate one for all rows or set by the context."""
        if node.op_type != "Mul" or len(found) != 1:
            return False
        (gate,) = (name for name in node.input if name != found[0])
        known = gate in self._constant or gate in self._once
        shape = self._shapes.get(found[0], ())[1:]
        if not known or not shape or self._shapes.get(gate, ())[1:] != shape:
            return False
        parted = self._parted[found[0]]
        names: list[str] = []
        for value, at in parted.parts():
            output = f"{node.output[0]}/{len(names)}"
            index = self._tensor(f"{output}_at", at)
            some = self._add("Gather", [gate, index], f"{output}_gate", axis=1)
            names.append(self._add("Mul", [value, some], output))
        self._parted[node.output[0]] = replace(parted, once=names[0], each=names[1])
        return True

    def _flat(self, node: NodeProto) -> bool:
        """Follow the step from [N, F, D] to [N, F * D]."""
        parted = self._parted.get(node.input[0])
        if parted is None or parted.is_flat or node.op_type not in ("Reshape", "Flatten"):
            return False
        features, dim = self._size(node.input[0])
        if self._shapes.get(node.output[0], ())[1:] != (features * dim,):
            return False
        names: list[str] = []
        places: list[NDArray[np.int64]] = []
        for value, at in parted.parts():
            output = f"{node.output[0]}/{len(names)}"
            shape = self._tensor(f"{output}_shape", np.array([-1, len(at) * dim], np.int64))
            names.append(self._add("Reshape", [value, shape], output))
            places.append((at[:, None] * dim + np.arange(dim)).reshape(-1))
        self._parted[node.output[0]] = _Parted(
            names[0], names[1], places[0], places[1], is_flat=True
        )
        return True

    def _joint(self, node: NodeProto) -> bool:
        """Follow slots that are put side by side, some of the context and some of candidates."""
        if node.op_type != "Concat" or helper.get_node_attr_value(node, "axis") != 1:
            return False
        shapes = [self._shapes.get(name, ()) for name in node.input]
        widths = [shape[1] if len(shape) in (2, 3) else "" for shape in shapes]
        once: list[tuple[str, NDArray[np.int64]]] = []
        each: list[tuple[str, NDArray[np.int64]]] = []
        start = 0
        for name, width in zip(node.input, widths, strict=True):
            if not isinstance(width, int) or name in self._constant:
                return False
            parted = self._parted.get(name)
            if parted is not None:
                once.append((parted.once, parted.at_once + start))
                each.append((parted.each, parted.at_each + start))
            else:
                part = once if name in self._once else each
                part.append((name, np.arange(start, start + width)))
            start += width
        if not once or not each:
            return False
        names: list[str] = []
        for part in (once, each):
            values = [value for value, _ in part]
            output = f"{node.output[0]}/{len(names)}"
            names.append(
                values[0] if len(values) == 1 else self._add("Concat", values, output, axis=1)
            )
        at_once, at_each = (np.concatenate([at for _, at in part]) for part in (once, each))
        self._parted[node.output[0]] = _Parted(
            names[0], names[1], at_once, at_each, is_flat=len(shapes[0]) == 2
        )
        return True

    def _linear(self, node: NodeProto) -> bool:
        """Divide a linear layer: the share of the context is the bias of that of the candidate."""
        parted = self._parted.get(node.input[0])
        if parted is None or not parted.is_flat or node.op_type not in ("Gemm", "MatMul"):
            return False
        settings = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        transposed = settings.pop("transB", 0)
        plain = all(value == (0 if key == "transA" else 1) for key, value in settings.items())
        if node.input[1] not in self._weights or not plain:
            return False
        weight = numpy_helper.to_array(self._weights[node.input[1]])
        if weight.ndim != 2:
            return False
        weight_HI = weight if transposed else weight.T
        if any(name not in self._constant for name in node.input[2:]):
            return False
        output = node.output[0]
        weights = [
            self._tensor(f"{output}/weight_{part}", np.ascontiguousarray(weight_HI[:, at]))
            for part, at in (("once", parted.at_once), ("each", parted.at_each))
        ]
        bias = self._add(
            "Gemm", [parted.once, weights[0], *node.input[2:]], f"{output}/once", transB=1
        )
        self._add("Gemm", [parted.each, weights[1], bias], output, transB=1)
        return True

    def _whole(self, name: str) -> str:
        """Return the value of both parts together, [N, ..], its features in the order of the slot."""
        if name not in self._joined:
            parted = self._parted[name]
            once = self._expanded(parted.once, f"{name}/once_all", is_flat=parted.is_flat)
            value = self._add("Concat", [once, parted.each], f"{name}/parts", axis=1)
            order = np.argsort(np.concatenate([parted.at_once, parted.at_each]))
            if (order != np.arange(len(order))).any():
                index = self._tensor(f"{name}/order", order.astype(np.int64))
                value = self._add("Gather", [value, index], f"{name}/all", axis=1)
            self._joined[name] = value
        return self._joined[name]

    def _expanded(self, name: str, output: str, *, is_flat: bool = False) -> str:
        """Return [1 or N, F, D], or flat, as [N, ..]."""
        num_ones = 1 if is_flat else 2
        ones = self._tensor(f"context/ones_{num_ones}", np.ones(num_ones, np.int64))
        shape = self._add("Concat", [self._rows, ones], f"{output}_shape", axis=0)
        return self._add("Expand", [name, shape], output)

    def _size(self, name: str) -> tuple[int, int]:
        """Return the number of features of a value that is not flat, and their dimension."""
        _, features, dim = self._shapes[name]
        assert isinstance(features, int)
        assert isinstance(dim, int)
        return features, dim

    def _tensor(self, name: str, values: NDArray[np.int64] | NDArray[np.float32]) -> str:
        self._made[name] = numpy_helper.from_array(values, name)
        return name

    def _add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self._nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output


def _shapes(model: ModelProto) -> dict[str, tuple[int | str, ...]]:
    """Return the shapes that are known, symbols as text."""
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    shapes = {
        value.name: tuple(
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param
            for dim in value.type.tensor_type.shape.dim
        )
        for value in values
    }
    return shapes | {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
