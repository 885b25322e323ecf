"""Building an ONNX graph node by node, and writing it with large tables beside it.

onnxruntime maps external data into memory, so that a table of gigabytes loads at once and is shared
by all processes on a host; protobuf, on the other hand, cannot hold a model.onnx of 2 GiB.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from headwater.feature_store.onnx_graph import free_prefix

OUTPUT = "prob"
TABLES_NAME = "tables.bin"
EXTERNAL_BYTES = 64 << 20
"""A stacked table of this size or more goes to `tables.bin`, which onnxruntime maps into memory."""
INLINE_BYTES = 1 << 30
"""Tables inside model.onnx add up to less: protobuf cannot hold 2 GiB."""
_ALIGN_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class StackedTable:
    """The tables of one slot under each other; kept apart, so that a big one is never copied."""

    name: str
    parts: Sequence[NDArray[Any]]
    """Of one type and dimension."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows of all parts, and the dimension."""
        return sum(len(part) for part in self.parts), self.parts[0].shape[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of each number."""
        return self.parts[0].dtype

    @property
    def num_bytes(self) -> int:
        """Size in the file."""
        return self.dtype.itemsize * math.prod(self.shape)


@dataclass(slots=True)
class ReleaseGraph:
    """A graph without its stacked tables; `write` puts these inside or beside it."""

    model: ModelProto
    tables: list[StackedTable] = field(default_factory=list)

    def write(self, path: Path) -> list[Path]:
        """Write `path` and, beside it, tables of EXTERNAL_BYTES or more; return the files."""
        model = ModelProto()
        model.CopyFrom(self.model)
        external: list[tuple[StackedTable, int]] = []
        inline_bytes = offset = 0
        for table in sorted(self.tables, key=lambda table: table.num_bytes):
            inline_bytes += table.num_bytes
            if table.num_bytes < EXTERNAL_BYTES and inline_bytes < INLINE_BYTES:
                tensor = numpy_helper.from_array(np.concatenate(table.parts), table.name)
            else:
                tensor = _external_tensor(table, offset)
                external.append((table, offset))
                offset += -(-table.num_bytes // _ALIGN_BYTES) * _ALIGN_BYTES
            model.graph.initializer.append(tensor)
        files = [path]
        if external:
            files.append(path.with_name(TABLES_NAME))
            with files[-1].open("wb") as file:
                for table, start in external:
                    file.seek(start)
                    for part in table.parts:
                        file.write(np.ascontiguousarray(part, part.dtype.newbyteorder("<")).data)
        path.write_bytes(model.SerializeToString(deterministic=True))
        onnx.checker.check_model(str(path))
        return files


class GraphBuilder:
    """A graph that grows at its end: nodes are added in the order in which they run."""

    def __init__(self, model: ModelProto, *, opset: int) -> None:
        """Start from `model`; its outputs become inner values, its nodes are the same in `opset`."""
        self._model = ModelProto()
        self._model.CopyFrom(model)
        del self._model.graph.output[:]
        # A raw column may have any name: until the graph is complete, none that a node may have.
        names = [value.name for value in model.graph.input]
        prefix = free_prefix("raw/", names)
        self._raw = {name: prefix + name for name in names}
        _rename(self._model, self._raw)
        for item in self._model.opset_import:
            if not item.domain:
                assert item.version <= opset, f"the encoders need operator set {item.version}"
                item.version = opset
        self._known: dict[str, str] = {}
        self.tables: list[StackedTable] = []

    def add(self, op_type: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Append a node with one output, whose name it returns."""
        return self.add_many(op_type, inputs, [output], **attributes)[0]

    def add_many(
        self, op_type: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any
    ) -> Sequence[str]:
        """Append a node with several outputs, whose names it returns."""
        self._model.graph.node.append(
            helper.make_node(op_type, inputs, outputs, name=outputs[0], **attributes)
        )
        return outputs

    def once(self, op_type: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Append a node unless one of this output name is there: a value that several slots use."""
        if output not in self._known:
            self._known[output] = self.add(op_type, inputs, output, **attributes)
        return output

    def ints(self, name: str, values: Any) -> str:
        """Store an int64 constant under `name`, once."""
        return self._constant(name, np.asarray(values, dtype=np.int64))

    def int32s(self, name: str, values: Any) -> str:
        """Store an int32 constant under `name`, once."""
        return self._constant(name, np.asarray(values, dtype=np.int32))

    def floats(self, name: str, values: Any) -> str:
        """Store a float32 constant under `name`, once."""
        return self._constant(name, np.asarray(values, dtype=np.float32))

    def _constant(self, name: str, values: NDArray[Any]) -> str:
        if name not in self._known:
            self._known[name] = name
            self._model.graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def merge(self, other: ModelProto, inputs: Mapping[str, str], *, prefix: str) -> str:
        """Append another graph, its inputs fed by the values `inputs`; return its only output."""

        def rename(name: str) -> str:
            return inputs.get(name, prefix + name if name else name)

        for node in other.graph.node:
            self._model.graph.node.append(_renamed(node, rename))
        for tensor in other.graph.initializer:
            copy = self._model.graph.initializer.add()
            copy.CopyFrom(tensor)
            copy.name = rename(tensor.name)
        versions = {item.domain: item.version for item in self._model.opset_import}
        for item in other.opset_import:
            assert versions.setdefault(item.domain, item.version) == item.version, item.domain
        del self._model.opset_import[:]
        self._model.opset_import.extend(helper.make_opsetid(*item) for item in versions.items())
        (output,) = other.graph.output
        return rename(output.name)

    def take(self, name: str, element: int, dims: Sequence[int | str]) -> None:
        """Add an input that is no raw column."""
        self._model.graph.input.append(helper.make_tensor_value_info(name, element, dims))

    def raw(self, name: str) -> str:
        """Return the name that a raw column, or its length, has in the graph until it is built."""
        return self._raw[name]

    def build(self, *outputs: ValueInfoProto) -> ModelProto:
        """Return the model with these outputs, its inputs named as raw columns."""
        self._model.graph.name = "headwater"
        self._model.producer_name = "headwater"
        self._model.graph.output.extend(outputs)
        prefix = free_prefix("inner/", self._raw)
        inner = {name: prefix + name for name in self._raw}
        self.tables = [replace(each, name=inner.get(each.name, each.name)) for each in self.tables]
        _rename(self._model, inner)
        _rename(self._model, {own: name for name, own in self._raw.items()})
        return self._model


def _rename(model: ModelProto, names: Mapping[str, str]) -> None:
    """Give values of a graph other names."""
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


def _renamed(node: NodeProto, rename: Callable[[str], str]) -> NodeProto:
    """Return a copy of a node with other names of its values; subgraphs do not occur."""
    copy = NodeProto()
    copy.CopyFrom(node)
    assert not any(a.type in (a.GRAPH, a.GRAPHS) for a in copy.attribute), node.op_type
    copy.name = rename(node.name)
    copy.input[:] = [rename(name) for name in node.input]
    copy.output[:] = [rename(name) for name in node.output]
    return copy


def _external_tensor(table: StackedTable, offset: int) -> TensorProto:
    """Return the initializer of a table whose bytes are in `tables.bin` from `offset`."""
    tensor = TensorProto(
        name=table.name,
        dims=table.shape,
        data_type=helper.np_dtype_to_tensor_dtype(table.dtype),
        data_location=TensorProto.EXTERNAL,
    )
    where = {"location": TABLES_NAME, "offset": str(offset), "length": str(table.num_bytes)}
    for key, value in where.items():
        tensor.external_data.add(key=key, value=value)
    return tensor
