"""Does the graph of a release compute what was trained? Compared on real raw rows.

The reference goes the way of training: raw rows through the Polars programs to codes, and through
the torch network. The graph gets the raw rows themselves.

N rows, W code slots, D dense columns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from headwater.feature_store.errors import ParityError
from headwater.feature_store.onnx_compiler import encoders_graph
from headwater.feature_store.polars_compiler import encode_frame
from headwater.feature_store.schema import Schema
from headwater.models.batch import Batch
from headwater.pipelines.evaluation.metrics import auc
from headwater.pipelines.job import Export
from headwater.pipelines.scoring.score import frame_to_arrays
from headwater.serving.kinds.scorer import Scorer
from headwater.serving.manifest import Input

LATENCY_ROWS = (1, 32, 512)
LATENCY_RUNS = 21
SHARED_ROWS = 64
"""Candidates of the comparison of a context given once with the same context repeated."""

Network = Callable[[Batch], torch.Tensor]


class Tolerance(NamedTuple):
    """A bound for differences of probabilities, and the key of `[export]` that sets it."""

    setting: Literal["tolerance", "float16_tolerance", "int8_tolerance"]
    bound: float


def network_tolerance(settings: Export) -> Tolerance:
    """Return how far a release may be from the network."""
    if "int8" in (settings.precision, settings.tables):
        return Tolerance("int8_tolerance", settings.int8_tolerance)
    if settings.tables == "float16":
        return Tolerance("float16_tolerance", settings.float16_tolerance)
    return Tolerance("tolerance", settings.tolerance)


def own_tolerance(settings: Export) -> Tolerance:
    """Return how far scores of one release may differ between machines, or ways to give the same rows.

    Tables of less than float32 are float32 once looked up, so only the layers matter.
    """
    if settings.precision == "int8":
        return Tolerance("int8_tolerance", settings.int8_tolerance)
    return Tolerance("tolerance", settings.tolerance)


@dataclass(frozen=True, slots=True)
class Parity:
    """Distance of the graph from the network, and its speed on one thread."""

    max_abs_diff: float
    p99_abs_diff: float
    auc_torch: float
    auc_onnx: float
    auc_rows: int
    """Rows behind both AUCs: those of the sample, not all of validation."""
    latency_ms: dict[int, float] = field(default_factory=dict)

    def values(self) -> dict[str, float]:
        """Return what the manifest holds; an AUC of one class is left out, as JSON has no NaN."""
        values = {
            "max_abs_diff": self.max_abs_diff,
            "p99_abs_diff": self.p99_abs_diff,
            "auc_torch": self.auc_torch,
            "auc_onnx": self.auc_onnx,
            **{f"latency_ms_{rows}": ms for rows, ms in self.latency_ms.items()},
        }
        return {name: value for name, value in values.items() if np.isfinite(value)}

    def text(self) -> str:
        """Return the report in lines."""
        speed = ", ".join(f"{ms:.3f} ms for {rows}" for rows, ms in self.latency_ms.items())
        return (
            f"parity   max {self.max_abs_diff:.2e}, p99 {self.p99_abs_diff:.2e} "
            f"between torch and onnxruntime; AUC {self.auc_torch:.6f} and {self.auc_onnx:.6f} "
            f"of {self.auc_rows:,} sampled rows\n"
            f"latency  {speed} rows, one thread"
        )


def torch_scores(
    network: Network, schema: Schema, rows: pl.DataFrame, negative_rate: float
) -> NDArray[np.float64]:
    """Return the network's probabilities of normalised raw rows, corrected for sampled negatives."""
    batch = encoded_batch(schema, rows, np.zeros(len(rows), np.uint8))
    # Not inference mode: fbgemm's lookup has no kernel for it on a CPU.
    with torch.no_grad():
        logit = network(batch)[0].double().cpu()
    # Sampling made the odds 1 / rate times too large.
    odds = torch.exp(logit) * negative_rate
    prob = torch.where(torch.isinf(odds), 1.0, odds / (1 + odds))
    return prob.numpy()


def encoded_batch(schema: Schema, rows: pl.DataFrame, labels: NDArray[np.uint8]) -> Batch:
    """Return normalised raw rows as the network takes them."""
    codes, dense = encoded(schema, rows)
    return Batch(
        codes_BW=torch.from_numpy(codes),
        dense_BD=torch.from_numpy(dense),
        label_B=torch.from_numpy(labels.astype(np.float32)),
    )


def encoded(schema: Schema, rows: pl.DataFrame) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return codes [N, W] and dense columns [N, D] of normalised raw rows, as Polars gives them."""
    frame = encode_frame(rows.lazy(), schema).collect()
    codes = [frame[c.name].to_numpy().reshape(len(rows), c.length) for c in schema.codes]
    dense = [frame[c.name].to_numpy().reshape(len(rows), 1) for c in schema.dense]
    return (
        np.ascontiguousarray(np.hstack(codes or [np.empty((len(rows), 0))]), np.int32),
        np.ascontiguousarray(np.hstack(dense or [np.empty((len(rows), 0))]), np.float32),
    )


def check(
    scorer: Scorer,
    expected: NDArray[np.float64],
    schema: Schema,
    rows: pl.DataFrame,
    labels: NDArray[np.uint8],
    settings: Export,
) -> Parity:
    """Return the parity report; ParityError where a row differs by more than `network_tolerance`.

    A wide one could hide a fault of the encoders: then their codes are compared by themselves.
    `expected` are the network's probabilities of `rows`; `labels` belong to the first rows, which
    are real: later ones were made up and do not count for AUC.
    """
    tolerance = network_tolerance(settings)
    if tolerance.setting != "tolerance" and (columns := differing_columns(schema, rows)):
        raise ParityError(_fault_of_encoders(columns))
    arrays = frame_to_arrays(rows, scorer.graph.inputs)
    found = scorer.score(arrays)
    difference = np.abs(found - expected)
    worst = int(np.argmax(np.where(np.isnan(difference), np.inf, difference)))
    if not difference[worst] <= tolerance.bound:
        raise ParityError(
            f"the graph differs from the network by {difference[worst]:.3g} in row {worst} of the "
            f"sample (torch {expected[worst]:.9g}, onnxruntime {found[worst]:.9g}), more than "
            f"export.{tolerance.setting} = {tolerance.bound:g}. "
            f"{_cause(schema, rows[worst], tolerance.setting)} "
            f"The row: {rows[worst].to_dicts()[0]}"
        )
    _check_shared(scorer, rows, own_tolerance(settings))
    real = slice(len(labels))
    return Parity(
        max_abs_diff=float(difference.max()),
        p99_abs_diff=float(np.quantile(difference, 0.99)),
        auc_torch=auc(labels, expected[real]),
        auc_onnx=auc(labels, found[real]),
        auc_rows=len(labels),
        latency_ms={count: _latency_ms(scorer, rows, count) for count in LATENCY_ROWS},
    )


def differing_columns(schema: Schema, rows: pl.DataFrame) -> list[str]:
    """Return the encoded columns whose code or number in any row depends on the compiler."""
    # Late: only a refused export needs a session of its own.
    import onnxruntime

    frame = encode_frame(rows.lazy(), schema).collect()
    session = onnxruntime.InferenceSession(encoders_graph(schema).model().SerializeToString())
    names = [node.name for node in session.get_outputs()]
    inputs = [Input(name=raw.name, dtype=raw.dtype, is_list=raw.is_list) for raw in schema.raw]
    codes = cast("list[NDArray[Any]]", session.run(names, frame_to_arrays(rows, inputs)))
    outputs = dict(zip(names, codes, strict=True))
    return [
        column.name
        for column in schema.columns
        if not np.array_equal(
            outputs[f"{'dense' if column.is_dense else 'code'}.{column.name}"],
            frame[column.name].to_numpy().reshape(len(rows), column.length),
        )
    ]


def _fault_of_encoders(columns: Sequence[str]) -> str:
    return f"Codes differ in {', '.join(map(repr, columns))}: a fault of Headwater's encoders."


def _cause(schema: Schema, row: pl.DataFrame, setting: str) -> str:
    columns = differing_columns(schema, row)
    if columns:
        return _fault_of_encoders(columns)
    return (
        "Its codes are equal, so the difference is rounding in tables or dense layers: raise "
        f"export.{setting} if it is small, otherwise the model does something else when exported."
    )


def _check_shared(scorer: Scorer, rows: pl.DataFrame, tolerance: Tolerance) -> None:
    """Compare one context for many candidates with the same context repeated for each."""
    roles = {column.role for column in scorer.graph.inputs}
    if roles != {"context", "candidate"}:
        return
    context = [column for column in scorer.graph.inputs if column.role == "context"]
    candidate = [column for column in scorer.graph.inputs if column.role == "candidate"]
    candidates = frame_to_arrays(rows.head(SHARED_ROWS), candidate)
    num = min(SHARED_ROWS, len(rows))
    once = scorer.score(candidates | frame_to_arrays(rows[:1], context))
    repeated = scorer.score(candidates | frame_to_arrays(rows[[0] * num], context))
    difference = float(np.abs(once - repeated).max())
    if not difference <= tolerance.bound:
        raise ParityError(
            f"one context for {num} candidates scores differently from the same context repeated, "
            f"by {difference:.3g}, more than export.{tolerance.setting} = {tolerance.bound:g}: a fault of "
            f"the graph. Leave export.context empty to release without it."
        )


def _latency_ms(scorer: Scorer, rows: pl.DataFrame, count: int) -> float:
    """Return the median time of scoring `count` rows whose tensors are ready."""
    some: Sequence[int] = [position % len(rows) for position in range(count)]
    feeds = scorer.signature.complete(frame_to_arrays(rows[some], scorer.graph.inputs), count)
    times: list[float] = []
    for _ in range(LATENCY_RUNS):
        start_s = time.perf_counter()
        scorer.run(feeds, count)
        times.append(1e3 * (time.perf_counter() - start_s))
    return statistics.median(times)
