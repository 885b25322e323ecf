"""Is a row encoded and scored alike on all ways? Real rows of a job, each compared on every way there is.

    .venv/bin/python tests/benchmarks/skew.py JOB.toml --set data.root=FOLDER --rows 100000

The job is prepared, trained for one epoch and exported; `headwater score` and `headwater serve` then run as
processes of their own. For all rows (spread evenly over all splits):

- codes and numbers of the Polars encoders against those of the ONNX graph, bit by bit;
- `headwater score` of a Parquet file against torch on the codes of Polars;
- the service against `headwater score`: `/v1/rank` with the context once, and with all features in the
  candidates, by rows and by columns; the Open Inference Protocol in JSON and in binary.

What the service is sent is made from the rows as they came, without the code of the package. The status is 1
where anything differs by more than the limit beside it.
"""

from __future__ import annotations

import argparse
import http.client
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import measure
import numpy as np
import onnxruntime
import polars as pl
import torch
from numpy.typing import NDArray

from headwater.feature_store import schema as fs
from headwater.feature_store.normalise import normalise
from headwater.feature_store.onnx_compiler import encoders_graph
from headwater.pipelines import export, load_job, prepare, train
from headwater.pipelines.job import Job
from headwater.pipelines.preparing.staging import Source
from headwater.pipelines.release.parity import encoded, torch_scores
from headwater.pipelines.runs.trained import load_trained
from headwater.pipelines.scoring.score import frame_to_arrays
from headwater.serving.manifest import SCORE, Input
from headwater.serving.release import read_manifest

HEADWATER = Path(sys.executable).with_name("headwater")
SAME = 1e-6
"""Limit for one graph in batches of other sizes: the order of its sums differs."""
PIECE = 256
"""Rows of a request."""
BATCH = 8192
"""Rows that the encoders take at a time."""
HEAD_LENGTH = "inference-header-content-length"
DATATYPES = {"int64": "INT64", "double": "FP64", "string": "BYTES"}
MISSING = {"int64": fs.INT64_MIN, "double": float("nan"), "string": ""}

Scores = NDArray[np.float64]
Body = tuple[dict[str, str], bytes]


def main() -> int:
    """Compare, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("job", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    job = load_job(options.job, ["train.epochs=1", *options.set])
    with tempfile.TemporaryDirectory(prefix="headwater-skew-") as folder:
        found = compare(job, Path(folder), options.rows)
    lines = [
        [what, f"{rows:,}", f"{difference:.2g}", f"{limit:g}" if limit else "0, bitwise"]
        for what, rows, difference, limit in found
    ]
    print(f"{job.name} ({options.job.name}), {measure.machine()}\n")
    print(measure.table(["compared", "rows", "largest difference", "limit"], lines))
    measure.write_figures(options.out, {"job": job.name, "compared": found})
    return int(any(not difference <= limit for _, _, difference, limit in found))


def compare(job: Job, folder: Path, num_rows: int) -> list[tuple[str, int, float, float]]:
    """Return what was compared, its rows, the largest difference, and the limit."""
    rows = real_rows(job, num_rows)
    prepared = prepare(job, folder / "prepared")
    run = train(job, prepared, runs=folder / "runs")
    release = export(run, folder / "releases")
    schema = prepared.schema
    normal = normalise(rows, schema.raw)
    differing = differing_codes(schema, normal)

    rows.write_parquet(folder / "rows.parquet")
    command = [HEADWATER, "score", release, folder / "rows.parquet", folder / "scored.parquet"]
    subprocess.run(command, check=True)
    offline = pl.read_parquet(folder / "scored.parquet")["prob"].to_numpy().astype(np.float64)

    network = load_trained(run, prepared, torch.device("cpu")).network.eval()
    by_torch = np.concatenate(
        [
            torch_scores(network, schema, p, job.data.negative_rate)
            for p in normal.iter_slices(BATCH)
        ]
    )
    found = [
        ("codes and numbers, Polars and the graph", rows.height, float(differing), 0.0),
        ("`headwater score` and torch", *worst(offline, by_torch), job.export.tolerance),
    ]
    manifest = read_manifest(release)
    inputs = manifest.graphs[SCORE].inputs
    sent = wire_rows(rows, inputs)
    with serving(folder / "releases") as ask:
        for what, path, requests, make in ways(manifest.name, sent, inputs):
            scores = np.full(rows.height, np.nan)
            for places in requests:
                scores[places] = read_scores(*ask(path, make(places)))
            found.append((f"{what} and `headwater score`", *worst(scores, offline), SAME))
    return found


def real_rows(job: Job, num_rows: int) -> pl.DataFrame:
    """Return raw rows of all splits, joined and derived, with the types that they came with."""
    source = Source(job)
    rows = pl.concat([frame.select(*source.raw) for _, frame in source.rows.chunks()])
    at = np.unique(np.linspace(0, rows.height - 1, min(num_rows, rows.height)).astype(np.int64))
    return rows[at]


def differing_codes(schema: fs.Schema, rows: pl.DataFrame) -> int:
    """Return how many codes and numbers differ in any bit between the two compilers."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        encoders_graph(schema).model().SerializeToString(), options
    )
    names = [f"code.{c.name}" for c in schema.codes] + [f"dense.{c.name}" for c in schema.dense]
    inputs = [Input(name=raw.name, dtype=raw.dtype, is_list=raw.is_list) for raw in schema.raw]
    count = 0
    for piece in rows.iter_slices(BATCH):
        outputs = cast("list[Any]", session.run(names, frame_to_arrays(piece, inputs)))
        codes, dense = encoded(schema, piece)
        num = len(schema.codes)
        if num:
            count += int(np.count_nonzero(np.hstack(outputs[:num]) != codes))
        if schema.dense:
            numbers = np.hstack(outputs[num:])
            count += int(np.count_nonzero(numbers.view(np.uint32) != dense.view(np.uint32)))
    return count


def worst(found: Scores, expected: Scores) -> tuple[int, float]:
    """Return the rows and the largest difference; infinite where a score is absent or no number."""
    assert found.shape == expected.shape
    difference = np.abs(found - expected)
    return len(found), float(np.where(np.isnan(difference), np.inf, difference).max())


@contextmanager
def serving(releases: Path) -> Generator[Callable[[str, Body], tuple[dict[str, str], bytes]]]:
    """Serve a folder, and give a function that posts a body and returns headers and body of the answer."""
    command = [HEADWATER, "serve", releases, "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as service:
        assert service.stdout is not None
        address = json.loads(service.stdout.readline())
        connection = http.client.HTTPConnection(address["host"], address["port"], timeout=60)

        def ask(path: str, body: Body) -> tuple[dict[str, str], bytes]:
            while True:
                connection.request("POST", path, body[1], body[0])
                answer = connection.getresponse()
                data = answer.read()
                if answer.status == 200:
                    return {name.lower(): value for name, value in answer.getheaders()}, data
                # The release is being loaded, or the machine is busy with other things.
                if answer.status not in (503, 429):
                    raise RuntimeError(f"{path}: {answer.status} {data.decode()}")
                time.sleep(0.1)

        try:
            yield ask
        finally:
            connection.close()
            service.send_signal(signal.SIGTERM)


def wire_rows(rows: pl.DataFrame, inputs: tuple[Input, ...]) -> dict[str, list[Any]]:
    """Return the values of each input as a client has them: times in ms, NaN and null both None."""
    columns: dict[str, list[Any]] = {}
    types: dict[str, pl.DataType] = {
        "int64": pl.Int64(),
        "double": pl.Float64(),
        "string": pl.String(),
    }
    for column in inputs:
        values = rows[column.name]
        if isinstance(values.dtype, pl.Date | pl.Datetime):
            values = values.cast(pl.Datetime("ms")).dt.timestamp("ms")
        target = types[column.dtype]
        values = values.cast(pl.List(target) if column.is_list else target)
        if column.dtype == "double":
            nan = pl.element().fill_nan(None)
            values = values.list.eval(nan) if column.is_list else values.fill_nan(None)
        columns[column.name] = values.to_list()
    return columns


Way = tuple[str, str, list[list[int]], Callable[[list[int]], Body]]


def ways(model: str, sent: dict[str, list[Any]], inputs: tuple[Input, ...]) -> list[Way]:
    """Return of each way to ask its name, its path, the rows of each request, and what makes a request."""
    rank, infer = "/v1/rank", f"/v2/models/{model}/infer"
    num_rows = len(next(iter(sent.values())))
    pieces = cut(list(range(num_rows)))
    found: list[Way] = [
        ("`/v1/rank`, by columns", rank, pieces, partial(rank_columns, model, sent)),
        ("`/v1/rank`, by rows", rank, pieces, partial(rank_rows, model, sent, [])),
        ("tensors in JSON", infer, pieces, partial(tensors, sent, inputs, False)),
        ("tensors in binary", infer, pieces, partial(tensors, sent, inputs, True)),
    ]
    context = [column.name for column in inputs if column.role == "context"]
    if context:
        groups: dict[str, list[int]] = {}
        for row in range(num_rows):
            groups.setdefault(json.dumps([sent[name][row] for name in context]), []).append(row)
        each = [piece for rows in groups.values() for piece in cut(rows)]
        what = f"`/v1/rank`, each of {len(groups):,} contexts once"
        found.append((what, rank, each, partial(rank_rows, model, sent, context)))
    return found


def cut(rows: list[int]) -> list[list[int]]:
    """Return the rows in pieces of a request."""
    return [rows[start : start + PIECE] for start in range(0, len(rows), PIECE)]


def rank_columns(model: str, sent: dict[str, list[Any]], rows: list[int]) -> Body:
    """Return a request with a column for each input."""
    columns = {name: [values[row] for row in rows] for name, values in sent.items()}
    return {}, json.dumps({"model": model, "candidates": columns}).encode()


def rank_rows(model: str, sent: dict[str, list[Any]], context: list[str], rows: list[int]) -> Body:
    """Return a request with an object for each candidate, which holds what is not in `context`."""
    once = {name: sent[name][rows[0]] for name in context}
    names = [name for name in sent if name not in once]
    candidates = [{name: sent[name][row] for name in names} for row in rows]
    return {}, json.dumps({"model": model, "context": once, "candidates": candidates}).encode()


def tensors(
    sent: dict[str, list[Any]], inputs: tuple[Input, ...], binary: bool, rows: list[int]
) -> Body:
    """Return an infer request; lists are padded beside their lengths."""
    heads: list[dict[str, Any]] = []
    tails: list[bytes] = []

    def add(name: str, dtype: str, shape: list[int], values: list[Any]) -> None:
        head: dict[str, Any] = {"name": name, "datatype": DATATYPES[dtype], "shape": shape}
        if binary:
            tails.append(as_bytes(values, dtype))
            heads.append(head | {"parameters": {"binary_data_size": len(tails[-1])}})
        else:
            heads.append(head | {"data": values})

    for column in inputs:
        values = [sent[column.name][row] for row in rows]
        if not column.is_list:
            add(column.name, column.dtype, [len(values), 1], values)
            continue
        lists = [each or [] for each in values]
        width = max(map(len, lists))
        padded = [value for each in lists for value in [*each, *[None] * (width - len(each))]]
        add(column.name, column.dtype, [len(lists), width], padded)
        add(f"{column.name}.length", "int64", [len(lists), 1], [len(each) for each in lists])
    text = json.dumps(
        {"inputs": heads, "parameters": {"binary_data_output": True}}
        if binary
        else {"inputs": heads}
    ).encode()
    headers = {HEAD_LENGTH: str(len(text))} if binary else {}
    return headers, b"".join([text, *tails])


def as_bytes(values: list[Any], dtype: str) -> bytes:
    """Return a tensor in binary form; None becomes the missing value of its type."""
    filled: list[Any] = [MISSING[dtype] if value is None else value for value in values]
    if dtype == "string":
        texts = [text.encode() for text in filled]
        return b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    return np.array(filled, "<i8" if dtype == "int64" else "<f8").tobytes()


def read_scores(headers: dict[str, str], data: bytes) -> Any:
    """Return the scores in an answer of either protocol, in either form."""
    if HEAD_LENGTH in headers:
        return np.frombuffer(data, "<f4", offset=int(headers[HEAD_LENGTH]))
    answer = json.loads(data)
    return answer["scores"] if "scores" in answer else answer["outputs"][0]["data"]


if __name__ == "__main__":
    sys.exit(main())
