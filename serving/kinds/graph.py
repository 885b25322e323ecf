"""A graph of a release in onnxruntime, proven by its manifest: inputs, outputs and golden rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from headwater.feature_store.errors import ReleaseError
from headwater.serving.errors import RequestError
from headwater.serving.manifest import AGAIN, MANIFEST_NAME, Graph, Output
from headwater.serving.signature import Signature, columns_to_arrays
from headwater.serving.tensors import Arrays


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """Return a session that runs in the calling thread alone: as many cores as there are callers.

    With more threads inside a call, two busy cores did 2.2 times the work a request. Without spinning and
    memory patterns (one is kept per distinct shape, and batches have many) idle costs nothing and
    memory stays flat.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def open_graph(
    folder: Path,
    graph: Graph,
    signature: Signature,
    beside: Mapping[str, str] = MappingProxyType({}),
) -> onnxruntime.InferenceSession:
    """Return a session of the graph; `ReleaseError` where its tensors are not those of the manifest.

    `beside` are the types of inputs that are no raw columns.
    """
    path = folder / graph.file
    try:
        session = open_session(path)
    except Exception as error:
        # onnxruntime raises its own types, of which not all are public.
        raise ReleaseError(f"{path}: onnxruntime cannot open it: {error}; {AGAIN}") from error
    names = [output.name for output in graph.outputs]
    given = [node.name for node in session.get_outputs()]
    if not set(names) <= set(given):
        raise ReleaseError(
            f"{folder / MANIFEST_NAME}: outputs: expected among {given}, those of the graph, found {names}; "
            f"{AGAIN}"
        )
    expected = {name: f"tensor({tensor.dtype})" for name, tensor in signature.tensors.items()}
    expected |= beside
    found = {node.name: node.type for node in session.get_inputs()}
    if found != expected:
        differ = sorted(found.items() ^ expected.items())
        raise ReleaseError(f"{path}: its inputs are not those of the manifest: {differ}; {AGAIN}")
    return session


def check_golden(
    folder: Path,
    graph: Graph,
    compute: Callable[[Arrays], Mapping[str, npt.NDArray[Any]]],
) -> None:
    """Raise `ReleaseError` unless `compute` gives for the golden rows what the graph gave at export.

    It returns an array of one entry a row for each output.
    """
    golden = graph.golden
    where = folder / MANIFEST_NAME
    # Items of equal scores may change places on another machine; their scores prove the graph.
    outputs = [output for output in graph.outputs if output.meaning != "item"]
    for output in outputs:
        if not golden.outputs.get(output.name):
            raise ReleaseError(f"{where}: golden: expected rows, found none; {AGAIN}")
    try:
        found = compute(columns_to_arrays(graph.inputs, golden.rows))
    except RequestError as error:
        raise ReleaseError(f"{where}: golden: {error}; {AGAIN}") from error
    except Exception as error:
        raise ReleaseError(
            f"{folder / graph.file}: onnxruntime cannot score the golden rows: {error}; {AGAIN}"
        ) from error
    for output in outputs:
        expected = np.array(golden.outputs[output.name], np.float64)
        _check_output(folder, graph, output, expected, found[output.name])


def _check_output(
    folder: Path,
    graph: Graph,
    output: Output,
    expected: npt.NDArray[np.float64],
    found: npt.NDArray[Any],
) -> None:
    if found.shape != expected.shape:
        raise ReleaseError(
            f"{folder / graph.file}: golden rows: expected {expected.size} scores, found "
            f"{found.size}; {AGAIN}"
        )
    difference = np.abs(found - expected)
    difference = np.where(np.isnan(difference), np.inf, difference)
    worst = np.unravel_index(int(np.argmax(difference)), difference.shape)
    if not difference[worst] <= graph.golden.tolerance:
        raise ReleaseError(
            f"{folder}: golden row {worst[0]}: expected {output.meaning} {expected[worst]:.9g}, found "
            f"{found[worst]:.9g}, tolerance {graph.golden.tolerance:g}; the graph does not compute here "
            "what it did at export: compare the onnxruntime versions, or export again"
        )
    if output.bounds is None:
        return
    least, largest = output.bounds
    if not least <= found.min() <= found.max() <= largest:
        raise ReleaseError(
            f"{folder}: golden rows: expected {output.name!r} from {least:g} to {largest:g}, as "
            f"{MANIFEST_NAME} says, found {found.min():.9g} to {found.max():.9g}; {AGAIN}"
        )
