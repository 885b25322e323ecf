"""Tables of float16 and int8: bounds of a row, the same scores as rounded tables in torch, fewer bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from headwater.feature_store import schema as fs
from headwater.feature_store.errors import JobError, ParityError
from headwater.models.network import Network
from headwater.pipelines.release import builder
from headwater.pipelines.release.parity import torch_scores
from headwater.pipelines.release.tables import int8_rows
from headwater.pipelines.rules.release import LEAST_INT8_DIM
from headwater.pipelines.scoring.score import frame_to_arrays
from headwater.serving.kinds.scorer import Scorer
from headwater.serving.manifest import MODEL_NAME
from headwater.serving.release import load_release

Released = Callable[..., Path]

SMALL: dict[str, dict[str, Any]] = {
    "fm": {"embedding_dim": 4},
    "deepfm": {"embedding_dim": 4, "hidden": (16,)},
    "finalmlp": {
        "embedding_dim": 4,
        "hidden_1": (20,),
        "hidden_2": (10,),
        "gate_hidden": (8,),
        "gate_1_context": ("user", "price_z"),
        "gate_2_context": ("tags", "seen"),
    },
}
"""Slots of one dimension and of several, of all features and of some, with lists and numbers."""
CONTEXT = ["user", "tags", "city", "ts"]
ANY_COST = {"max_auc_cost": 1.0}
"""Labels of the rows here are random, and so is what rounding does to the AUC."""

LARGEST = float(np.finfo(np.float32).max)


def filled(value: float) -> np.ndarray:
    return np.full((2, 3), value, np.float32)


@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.integers(1, 6)),
        elements=st.floats(-LARGEST, LARGEST, width=32),
    )
)
@example(filled(0.0))
@example(filled(1e-45))
@example(filled(-3e-39))
@example(filled(LARGEST))
@example(filled(-LARGEST))
@example(filled(127 * 2.0**15))
@example(np.array([[LARGEST, 1.0], [1e-40, 0.0], [0.0, 0.0]], np.float32))
@example(np.array([[6e-6, 7.5e-6]], np.float32))
def test_a_row_is_rounded_by_half_its_scale_at_most(rows_RD: np.ndarray) -> None:
    (values,), scale_R1 = int8_rows([rows_RD])
    assert values.dtype == np.int8
    assert scale_R1.shape == (len(rows_RD), 1)
    assert scale_R1.dtype == (np.float16 if np.abs(rows_RD).max() <= 127 * 2**15 else np.float32)
    found = values * scale_R1.astype(np.float32)
    assert np.isfinite(found).all()
    distance = np.abs(values * scale_R1.astype(float) - rows_RD)
    assert (distance <= 0.5 * scale_R1.astype(float) * (1 + 1e-6)).all()
    assert not found[~rows_RD.any(1)].any()


def test_rows_of_several_tables_have_their_scales_in_order() -> None:
    parts = [np.random.default_rng(i).normal(size=(i + 2, 5)).astype(np.float32) for i in range(3)]
    values, scales = int8_rows(parts)
    alone = [int8_rows([part]) for part in parts]
    for stacked, ((single,), _) in zip(values, alone, strict=True):
        np.testing.assert_array_equal(stacked, single)
    np.testing.assert_array_equal(scales, np.concatenate([scale for _, scale in alone]))


def rounded(network: Network, stored: str) -> Network:
    """Round the tables of a network as a release of `stored` has them."""
    tables = network.embeddings.tables()
    for slot in tables.values():
        for name, table in slot.items():
            if stored == "float16" or table.shape[1] < LEAST_INT8_DIM:
                slot[name] = table.astype(np.float16).astype(np.float32)
            else:
                (values,), scale = int8_rows([table])
                slot[name] = values * scale.astype(np.float32)
            assert not slot[name][0].any()
    network.embeddings.load(tables, network.embeddings.numeric_weights())
    return network


@pytest.mark.parametrize("context", [[], CONTEXT], ids=["plain", "context"])
@pytest.mark.parametrize("stored", ["float16", "int8"])
@pytest.mark.parametrize("model", SMALL)
def test_scores_are_those_of_the_network_with_rounded_tables(
    model: str,
    stored: str,
    context: list[str],
    click_schema: fs.Schema,
    click_rows: pl.DataFrame,
    make_network: Callable[..., Any],
    released: Released,
) -> None:
    release = released(model, settings=SMALL[model], tables=stored, context=context, **ANY_COST)
    scorer = load_release(release, Scorer)
    found = scorer.score(frame_to_arrays(click_rows, scorer.graph.inputs))
    network = make_network(model, **SMALL[model])
    plain = torch_scores(network, click_schema, click_rows, 1.0)
    expected = torch_scores(rounded(network, stored), click_schema, click_rows, 1.0)
    np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)
    assert 1e-6 < np.abs(found - plain).max() < 0.05
    manifest = scorer.manifest
    assert (manifest.precision, manifest.tables) == ("float32", stored)
    # The service computes in float32 behind the lookup: its own scores may not differ by more than before.
    assert scorer.graph.golden.tolerance == 1e-5


@pytest.mark.parametrize("stored", ["float16", "int8"])
def test_tables_are_looked_up_before_they_are_float32(
    stored: str, tmp_path: Path, released: Released
) -> None:
    """In the graph that onnxruntime runs, whole tables are read by lookups alone."""
    release = released("deepfm", settings=SMALL["deepfm"], tables=stored, **ANY_COST)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "run.onnx")
    onnxruntime.InferenceSession(release / MODEL_NAME, options)
    graph = onnx.load(tmp_path / "run.onnx").graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    rows = {tensor.name: tensor.dims[0] for tensor in graph.initializer if len(tensor.dims) == 2}
    tables = {name for name, num in rows.items() if num == 42 + 6 + 22 + 7 + 32 + 26 + 52}
    halves = {name for name in tables if types[name] == onnx.TensorProto.FLOAT16}
    assert len(halves) == (2 if stored == "float16" else 1 + 1)  # first-order; table or scales
    assert len(tables - halves) == (0 if stored == "float16" else 1)
    readers = {node.op_type for node in graph.node if tables & set(node.input)}
    assert readers == {"Gather"}


@pytest.mark.parametrize("stored", ["float16", "int8"])
@pytest.mark.parametrize("external_bytes", [1, 500], ids=["all", "rows"])
def test_tables_beside_the_graph_score_the_same(
    stored: str,
    external_bytes: int,
    click_rows: pl.DataFrame,
    released: Released,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"settings": SMALL["deepfm"], "tables": stored, **ANY_COST}
    inside = load_release(released("deepfm", **settings), Scorer)
    monkeypatch.setattr(builder, "EXTERNAL_BYTES", external_bytes)
    release = released("deepfm", **settings)
    beside = load_release(release, Scorer)
    feeds = frame_to_arrays(click_rows, beside.graph.inputs)
    np.testing.assert_array_equal(inside.score(feeds), beside.score(feeds))
    model = onnx.load(release / MODEL_NAME, load_external_data=False)
    outside = {t.name for t in model.graph.initializer if t.data_location == t.EXTERNAL}
    tables = {"emb_BFD/table", "first_BF1/table"} | (
        {"emb_BFD/scales"} if stored == "int8" else set()
    )
    assert outside == (
        tables if external_bytes == 1 else tables - {"first_BF1/table", "emb_BFD/scales"}
    )
    assert (release / builder.TABLES_NAME).stat().st_size % 2**16 > 0
    assert beside.manifest.parity["table_bytes"] == inside.manifest.parity["table_bytes"]


def test_a_stacked_table_has_the_bytes_of_its_type() -> None:
    parts = [np.zeros((3, 4)), np.zeros((2, 4))]
    sizes = {
        dtype: builder.StackedTable("t", [part.astype(dtype) for part in parts]).num_bytes
        for dtype in ("float32", "float16", "int8")
    }
    assert sizes == {"float32": 80, "float16": 40, "int8": 20}


def hashed(num_buckets: int) -> fs.Schema:
    """Return a schema of one big table, whose keys take no bytes."""
    return fs.Schema(
        raw=(fs.RawColumn(name="city", dtype="string"),),
        columns=(
            fs.EncodedColumn(
                name="city",
                encoder="hashed",
                inputs=("city",),
                steps=(fs.Hash(num_buckets=num_buckets), fs.Missing()),
                cardinality=num_buckets + 2,
            ),
        ),
    )


@pytest.mark.parametrize(
    ("model", "dim", "share"),
    [("dnn", 8, (8 + 2) / 32), ("dnn", 16, (16 + 2) / 64), ("deepfm", 8, (8 + 2 + 2) / 36)],
)
def test_float16_takes_half_of_a_release_and_int8_a_byte_a_number_and_two_a_row(
    model: str, dim: int, share: float, released: Released
) -> None:
    sizes: dict[str, int] = {}
    for stored in ("float32", "float16", "int8"):
        release = released(
            model,
            schema=hashed(30_000),
            settings={"embedding_dim": dim, "hidden": (8,)},
            tables=stored,
            **ANY_COST,
        )
        sizes[stored] = sum(path.stat().st_size for path in release.glob("*.onnx"))
        record = load_release(release, Scorer).manifest.parity
        assert record["release_bytes"] == sizes[stored]
        whole = 30_002 * 4 * (dim + (model == "deepfm"))
        assert record["table_bytes_float32"] == whole
        expected = {"float32": 1, "float16": 0.5, "int8": share}[stored]
        assert record["table_bytes"] == pytest.approx(expected * whole)
        assert sizes[stored] == pytest.approx(record["table_bytes"], rel=0.05)
    assert sizes["float16"] / sizes["float32"] == pytest.approx(0.5, abs=0.01)
    assert sizes["int8"] / sizes["float32"] == pytest.approx(share, abs=0.01)


def test_a_number_that_float16_does_not_hold_is_refused_by_feature(
    make_network: Callable[..., Any], released: Released
) -> None:
    network = make_network("fm", embedding_dim=4)
    tables = network.embeddings.tables()
    tables["emb_BFD"]["city"][3, 1] = -70_000
    network.embeddings.load(tables, network.embeddings.numeric_weights())
    message = r"feature 'city' holds 70000, and float16 ends at 65504\. Export with tables"
    with pytest.raises(ParityError, match=message):
        released("fm", network, tables="float16", **ANY_COST)


def test_int8_of_tables_that_it_does_not_make_smaller_is_refused(released: Released) -> None:
    with pytest.raises(JobError, match=r"'int8' saves nothing.*Set export\.tables = 'float16'"):
        released("logistic_regression", tables="int8", **ANY_COST)
    assert released("logistic_regression", tables="float16", **ANY_COST).name == "1"
