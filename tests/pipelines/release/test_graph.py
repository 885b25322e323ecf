"""The graph computes what was trained: every model, every kind of column, context once or many."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import polars as pl
import pytest

from headwater.feature_store import schema as fs
from headwater.models.network import Network
from headwater.models.registry import CTR_MODELS
from headwater.pipelines.release import builder
from headwater.pipelines.release.graph import release_graph, release_layers, slot_tables
from headwater.pipelines.release.parity import torch_scores
from headwater.pipelines.scoring.score import frame_to_arrays
from headwater.serving.manifest import MODEL_NAME, Input
from headwater.serving.release import read_manifest

Released = Callable[..., Path]

SMALL: dict[str, dict[str, Any]] = {
    "logistic_regression": {},
    "fm": {"embedding_dim": 4},
    "dnn": {"embedding_dim": 4, "hidden": (16, 8)},
    "dual_mlp": {"embedding_dim": 4, "hidden_1": (16,), "hidden_2": (8,)},
    "deepfm": {"embedding_dim": 4, "hidden": (16,)},
    "dcnv2": {"embedding_dim": 4, "hidden": (16,)},
    "optinter": {
        "embedding_dim": 4,
        "hidden": (16,),
        "cross": ("user", "hour"),
        "architecture": [{"columns": ("user", "hour"), "method": "factorise"}],
    },
    "optembed": {
        "base": {
            "type": "finalmlp",
            "embedding_dim": 4,
            "hidden_1": (20,),
            "hidden_2": (10,),
            "gate_hidden": (8,),
            "gate_1_context": ("user", "price_z"),
        },
        "dimensions": {
            "user": 2,
            "tags": 4,
            "city": 2,
            "price_z": 2,
            "price": 3,
            "seen": 4,
            "hour": 1,
            "user_city": 3,
        },
        "kept_rows": {"user": 11, "tags": 3, "seen": 20, "user_city": 0},
    },
    "finalmlp": {
        "embedding_dim": 4,
        "hidden_1": (20,),
        "hidden_2": (10,),
        "gate_hidden": (8,),
        "gate_1_context": ("user", "price_z"),
        "gate_2_context": ("tags", "seen"),
    },
}
CONTEXT = ["user", "tags", "city", "ts"]


def run_graph(path: Path, arrays: dict[str, Any]) -> np.ndarray:
    """Score with plain onnxruntime, as a reader of docs/release.md would."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path / MODEL_NAME, options)
    return np.asarray(session.run(["prob"], arrays)[0])


def graph_of(schema: fs.Schema, network: Network) -> builder.ReleaseGraph:
    slots = slot_tables(network.embeddings)
    return release_graph(schema, slots, release_layers(schema, slots, network.model))


def arrays_of(rows: pl.DataFrame, names: list[str], schema: fs.Schema) -> dict[str, Any]:
    raw = {column.name: column for column in schema.raw}
    inputs = [Input(name=n, dtype=raw[n].dtype, is_list=raw[n].is_list) for n in names]
    return frame_to_arrays(rows, inputs)


@pytest.mark.parametrize("model", CTR_MODELS)
def test_graph_equals_network_for_every_model(
    model: str,
    click_schema: fs.Schema,
    click_rows: pl.DataFrame,
    make_network: Callable[..., Any],
    released: Released,
) -> None:
    network = make_network(model, **SMALL[model])
    release = released(model, network, context=CONTEXT)

    expected = torch_scores(network, click_schema, click_rows, 1.0)
    names = [column.name for column in click_schema.raw]
    prob = run_graph(release, arrays_of(click_rows, names, click_schema))
    assert prob.dtype == np.float32
    assert prob.shape == (len(click_rows),)
    np.testing.assert_allclose(prob, expected, atol=2e-6, rtol=0)
    assert prob.std() > 0.02
    manifest = read_manifest(release)
    assert manifest.parity["max_abs_diff"] <= 2e-6
    assert manifest.parity["p99_abs_diff"] <= manifest.parity["max_abs_diff"]
    assert manifest.parity["auc_torch"] == pytest.approx(manifest.parity["auc_onnx"], abs=1e-4)
    assert all(manifest.parity[f"latency_ms_{rows}"] > 0 for rows in (1, 32, 512))

    # One row alone scores as among others, and a context given once as the same one repeated.
    one = run_graph(release, arrays_of(click_rows[7:8], names, click_schema))
    np.testing.assert_allclose(one, prob[7:8], atol=1e-6, rtol=0)
    rest = [name for name in names if name not in CONTEXT]
    candidates = arrays_of(click_rows, rest, click_schema)
    once = run_graph(release, candidates | arrays_of(click_rows[3:4], CONTEXT, click_schema))
    same = arrays_of(click_rows[[3] * len(click_rows)], CONTEXT, click_schema)
    np.testing.assert_allclose(once, run_graph(release, candidates | same), atol=1e-6, rtol=0)
    assert once[3] == pytest.approx(prob[3], abs=1e-6)


@pytest.mark.parametrize("opset", [18, 20, 22])
def test_graph_is_valid_onnx_of_the_chosen_operator_set(
    opset: int, click_schema: fs.Schema, released: Released
) -> None:
    release = released("deepfm", settings=SMALL["deepfm"], opset=opset)
    model = onnx.load(release / MODEL_NAME)
    onnx.checker.check_model(model, full_check=True)
    assert {item.domain: item.version for item in model.opset_import}[""] == opset
    inputs = {value.name for value in model.graph.input}
    assert inputs == {column.name for column in click_schema.raw} | {"tags.length", "seen.length"}
    assert [value.name for value in model.graph.output] == ["prob"]


@pytest.mark.parametrize(
    "names",
    [["user"], ["seen"], ["price_z"], ["tags", "price_z", "user"], ["price_z", "city", "seen"]],
)
@pytest.mark.parametrize("context", ["none", "all"])
def test_any_set_of_columns_can_be_released(
    names: list[str],
    context: str,
    click_schema: fs.Schema,
    click_rows: pl.DataFrame,
    make_network: Callable[..., Any],
    released: Released,
) -> None:
    columns = {column.name: column for column in click_schema.columns}
    chosen = tuple(columns[name] for name in names)
    wanted = [name for column in chosen for name in column.inputs]
    raw = tuple(column for column in click_schema.raw if column.name in wanted)
    schema = fs.Schema(raw=raw, columns=chosen)
    network = make_network("logistic_regression", schema=schema)
    given = wanted if context == "all" else []
    release = released("logistic_regression", network, schema=schema, context=given)

    prob = run_graph(release, arrays_of(click_rows, wanted, schema))
    expected = torch_scores(network, schema, click_rows, 1.0)
    np.testing.assert_allclose(prob, expected, atol=2e-6, rtol=0)


def test_a_scalar_slot_costs_an_add_and_a_gather(
    click_schema: fs.Schema, make_network: Callable[..., Any]
) -> None:
    """At one row the number of nodes is the time; lists and numbers cost a few more."""
    columns = tuple(c for c in click_schema.columns if c.name in ("user", "city", "hour"))
    schema = fs.Schema(raw=click_schema.raw, columns=columns)
    network = make_network("logistic_regression", schema=schema)
    graph = graph_of(schema, network)
    nodes = [n.op_type for n in graph.model.graph.node if n.name.startswith(("emb/", "first_BF1"))]
    assert nodes == ["Concat", "Add", "Gather"]


def test_sampled_negatives_are_corrected_in_the_graph(
    click_schema: fs.Schema, click_rows: pl.DataFrame, released: Released
) -> None:
    """Keeping a tenth of the negatives makes the odds ten times too large; the order stays."""
    names = [column.name for column in click_schema.raw]
    arrays = arrays_of(click_rows, names, click_schema)
    plain = released("fm", settings=SMALL["fm"])
    corrected = released("fm", settings=SMALL["fm"], negative_rate=0.1)
    sampled, true = (
        run_graph(plain, arrays).astype(float),
        run_graph(corrected, arrays).astype(float),
    )
    np.testing.assert_allclose(true / (1 - true), 0.1 * sampled / (1 - sampled), rtol=1e-3)
    assert read_manifest(corrected).calibration == {"negative_rate": 0.1}


def test_correction_restores_the_base_rate_of_unsampled_data() -> None:
    """A model that is right on sampled data is right on all data once its odds are multiplied."""
    positives, negatives, rate = 50, 9_950, 0.2
    prob_sampled = positives / (positives + rate * negatives)
    logit = math.log(prob_sampled / (1 - prob_sampled)) + math.log(rate)
    assert 1 / (1 + math.exp(-logit)) == pytest.approx(positives / (positives + negatives))


def test_external_tables_stay_below_the_limit_of_protobuf(
    click_schema: fs.Schema,
    make_network: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tables that are small one by one go beside the model once they add up to too much."""
    monkeypatch.setattr(builder, "INLINE_BYTES", 3_500)
    network = make_network("deepfm", **SMALL["deepfm"])
    graph = graph_of(click_schema, network)
    graph.write(tmp_path / MODEL_NAME)
    model = onnx.load(tmp_path / MODEL_NAME, load_external_data=False)
    outside = {t.name for t in model.graph.initializer if t.data_location == t.EXTERNAL}
    assert outside == {"emb_BFD/table"}
