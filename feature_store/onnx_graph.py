"""A graph of encoders that grows node by node."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

LEAST_OPSET = 18
"""Operator set that nodes need at the least."""
_LATER_OPERATORS = {"StringSplit": 20, "StringConcat": 20, "RegexFullMatch": 20}
_DOMAINS = {"LabelEncoder": "ai.onnx.ml", "MurmurHash3": "com.microsoft"}
_VERSIONS = {"ai.onnx.ml": 4, "com.microsoft": 1}
IR_VERSION = 10
"""Version of the file format; onnxruntime reads it since 1.18."""


class Tensor(NamedTuple):
    """A value of the graph: its name, and its element type as in TensorProto."""

    name: str
    element: int


def free_prefix(prefix: str, names: Collection[str]) -> str:
    """Return a prefix with which none of the names begins, `prefix` itself if it is one."""
    while any(name.startswith(prefix) for name in names):
        prefix = f"_{prefix}"
    return prefix


@dataclass(slots=True)
class EncoderGraph:
    """Nodes from raw columns to codes and dense numbers, to run alone or to put before a model."""

    prefix: str = "encode/"
    """Before the names of inner values; no raw column begins with it."""
    inputs: list[ValueInfoProto] = field(default_factory=list)
    outputs: list[ValueInfoProto] = field(default_factory=list)
    nodes: list[NodeProto] = field(default_factory=list)
    initializers: list[TensorProto] = field(default_factory=list)
    opset: int = LEAST_OPSET
    """Operator set that the nodes need."""
    _constants: dict[tuple[int, bytes, tuple[int, ...]], Tensor] = field(default_factory=dict)

    def model(self) -> onnx.ModelProto:
        """Return the graph as a model of its own."""
        graph = helper.make_graph(
            self.nodes, "encoders", self.inputs, self.outputs, self.initializers
        )
        versions = {"": self.opset} | _VERSIONS
        opsets = [helper.make_opsetid(*each) for each in versions.items()]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)

    def add(self, operator: str, *inputs: Tensor, element: int, **attributes: Any) -> Tensor:
        """Append a node and return its output, of type `element`."""
        return self.add_many(operator, *inputs, elements=(element,), **attributes)[0]

    def add_many(
        self, operator: str, *inputs: Tensor, elements: tuple[int, ...], **attributes: Any
    ) -> list[Tensor]:
        """Append a node and return its outputs, of the types `elements`."""
        number = len(self.nodes)
        names = [
            f"{self.prefix}{number}" + (f".{place}" if place else "")
            for place in range(len(elements))
        ]
        outputs = [Tensor(name, element) for name, element in zip(names, elements, strict=True)]
        domain = _DOMAINS.get(operator, "")
        given = [tensor.name for tensor in inputs]
        self.nodes.append(helper.make_node(operator, given, names, domain=domain, **attributes))
        self.opset = max(self.opset, _LATER_OPERATORS.get(operator, LEAST_OPSET))
        return outputs

    def cast(self, value: Tensor, element: int) -> Tensor:
        """Return the value as another element type."""
        if value.element == element:
            return value
        return self.add("Cast", value, element=element, to=element)

    def constant(self, values: object, element: int = TensorProto.INT64) -> Tensor:
        """Return an initializer with these values; equal ones are stored once."""
        array = np.asarray(values, dtype=helper.tensor_dtype_to_np_dtype(element))
        content = repr(array.tolist()).encode() if array.dtype == object else array.tobytes()
        key = (element, content, array.shape)
        if key not in self._constants:
            tensor = Tensor(f"{self.prefix}constant/{len(self.initializers)}", element)
            self.initializers.append(numpy_helper.from_array(array, tensor.name))
            self._constants[key] = tensor
        return self._constants[key]
