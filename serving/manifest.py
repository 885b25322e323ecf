"""The manifest of a release: the only contract between training and serving.

A release is `releases/<name>/<version>/` with its graphs, perhaps external data and artefacts beside them,
and `manifest.json`, written and renamed as one. `docs/release.md` describes the format. These structs are
version 2; `manifest_v1` has what differs in version 1, and `read_manifest` turns it into these.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from headwater.feature_store.dtypes import DTYPES
from headwater.feature_store.schema import Dtype

FORMAT_VERSION = 2
MANIFEST_NAME = "manifest.json"
MODEL_NAME = "model.onnx"
AGAIN = "export the release again"
"""The remedy for a release that is damaged."""
SCORE = "score"
"""Role of a scorer's graph: raw features in, one number a row out."""

QUERY = "query"
"""Role of a retriever's graph: a user, a history or a basket in, a vector or the best items out."""
VECTOR, KNOWN, ITEM, ITEM_SCORE = "vector", "known", "item", "score"
"""Outputs of a retriever's graph: a vector, or items and their scores, and what is known of the query."""
TOP_K, ALLOWED = ".k", ".allowed"
"""What a graph of best items takes beside the query: int64 [1], and bool [N or 1, I]."""

TableType = Literal["float32", "float16", "int8"]
"""Type of the numbers in embedding tables; int8 has a scale for each row."""


class Input(msgspec.Struct, frozen=True, kw_only=True):
    """A raw input tensor of the graph: `[N, 1]`, or padded `[N, L]` beside `<name>.length` for a list."""

    name: str
    dtype: Dtype
    is_list: bool = False
    role: Literal["context", "candidate"] = "candidate"
    """A context input may be given once, as `[1, ..]`, for all N candidates."""
    shape: tuple[int, ...] = ()
    """Of the tensor, -1 where it may differ from call to call; by `is_list` when absent."""
    separators: tuple[str, ...] = ()
    """Characters at which the graph divides the text of a string input into lists."""
    missing: int | str | None = None
    """Value that stands for a missing one, or entry of a list; None for NaN, which JSON lacks. By `dtype`
    when absent."""

    def __post_init__(self) -> None:
        """Fill in what follows from the other fields."""
        if not self.shape:
            msgspec.structs.force_setattr(self, "shape", (-1, -1 if self.is_list else 1))
        if self.missing is None and self.dtype != "double":
            msgspec.structs.force_setattr(self, "missing", DTYPES[self.dtype].missing)


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """An output tensor of the graph."""

    name: str
    dtype: Literal["float32", "int64"] = "float32"
    shape: tuple[int, ...] = (-1,)
    """-1 where it may differ from call to call."""
    meaning: Literal["prob", "vector", "known", "item", "score"] = "prob"
    """`prob`: a calibrated probability; `vector`: of a query; `known`: 0 where training knew nothing of it;
    `item`: places of items in `items.arrow`, and `score`: theirs."""
    bounds: tuple[float, float] | None = (0.0, 1.0)
    """Least and largest value that it can have; None where there are none."""


class Feature(msgspec.Struct, frozen=True, kw_only=True):
    """Summary of an encoded column, without its keys."""

    name: str
    encoder: str
    inputs: tuple[str, ...]
    cardinality: int
    length: int


class Golden(msgspec.Struct, frozen=True, kw_only=True):
    """Raw rows with what a graph gave for them; a release that misses it never becomes ready.

    `rows` maps an input to one value a row: null where missing, a list for a list column. `outputs` maps an
    output to one number a row, or a list of them. Of a graph of best items they are for K = 10 and all items.
    """

    rows: dict[str, list[Any]]
    outputs: dict[str, list[Any]]
    tolerance: float


class Graph(msgspec.Struct, frozen=True, kw_only=True):
    """An ONNX graph of the release: its file, what it takes in and gives, and the rows that prove it."""

    file: str = MODEL_NAME
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    golden: Golden


class Retrieval(msgspec.Struct, frozen=True, kw_only=True):
    """How a retriever is asked, and its index."""

    query: Literal["user", "history", "basket"]
    mask_seen: bool
    """Whether a query's own items are no answer, where it does not say which are."""
    index: Literal["exact", "ivf", "graph"]
    """`exact`: the product with every vector; `ivf`: with those of the nearest cells; `graph`: the best items
    come out of the graph."""
    nprobe: int | None = None
    """Cells of an `ivf` index that a query looks into."""
    recall: float | None = None
    """Share of the 100 best items that it found for real queries."""


class About(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that a manifest has in every version of the format."""

    format_version: int
    name: str
    version: int
    headwater_version: str
    created_ts_ms: int
    model_type: str
    features: tuple[Feature, ...]
    schema_hash: str
    calibration: dict[str, float]
    """`negative_rate`: share of negatives kept in training; the graph corrects the logit by its logarithm."""
    metrics: dict[str, dict[str, float]]
    """Metrics by split, as in the run's metrics.json."""
    parity: dict[str, float]
    """`max_abs_diff`, `p99_abs_diff`, `auc_torch`, `auc_onnx`, and `latency_ms_1`, `_32` and `_512`;
    `table_bytes`, `table_bytes_float32` and `release_bytes`; where layers or tables are of less than float32
    `auc_cost`, `auc_cost_float32`, `auc_cost_release` and `auc_cost_rows` too."""
    time_range_ms: tuple[int, int] | None
    """First and last event time of the training data, where the job names a time column."""
    files: dict[str, str]
    """Hex SHA-256 of every other file of the release, by name."""
    precision: Literal["float32", "int8"] = "float32"
    """Of the dense layers."""
    tables: TableType = "float32"
    """Of the embedding tables; those of one or two dimensions are float16 with int8."""
    derived: dict[str, str] = {}
    """Polars SQL of the inputs that the job derived from other columns, and of those they come from, in
    order: what a caller computes before it asks."""
    csv: dict[str, Any] = {}
    """Format of the job's CSV files, where it is not the usual one; `headwater score` reads by it."""


class Manifest(About, frozen=True, kw_only=True):
    """`manifest.json`. Unknown fields are ignored, so that older services read newer releases."""

    kind: str
    """Name in the table of `kinds`: it says what the release can do once it is served."""
    retrieval: Retrieval | None = None
    """Of a retriever."""
    graphs: dict[str, Graph]
    """By role; a scorer has one, `score`."""
    artefacts: dict[str, str] = {}
    """Files that a kind needs beside its graphs, by what they are; a scorer has none."""
