"""int8 layers: close to float32, measured, the same in any batch, refused where they cost too much."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest

from headwater.feature_store import schema as fs
from headwater.feature_store.errors import ParityError
from headwater.pipelines.family import Trained
from headwater.pipelines.release import parity
from headwater.pipelines.release.export import write_release
from headwater.pipelines.release.parity import torch_scores
from headwater.pipelines.scoring.score import frame_to_arrays
from headwater.serving.kinds.scorer import Scorer
from headwater.serving.manifest import MODEL_NAME, SCORE
from headwater.serving.release import load_release, read_manifest

MODEL = {"embedding_dim": 8, "hidden_1": (64, 32), "hidden_2": (32,), "num_heads": 1}


@pytest.fixture(scope="module")
def release(
    tmp_path_factory: pytest.TempPathFactory,
    click_schema: fs.Schema,
    click_rows: pl.DataFrame,
    make_network: Callable[..., Any],
    make_job: Callable[..., Any],
) -> Path:
    job = make_job("finalmlp", precision="int8", max_auc_cost=0.02, context=["user", "city"])
    folder = tmp_path_factory.mktemp("int8")
    return write_release(
        Trained(make_network("finalmlp", **MODEL), click_schema, job, click_rows), folder
    )


def test_scores_are_near_those_of_the_network(
    release: Path,
    click_schema: fs.Schema,
    click_rows: pl.DataFrame,
    make_network: Callable[..., Any],
) -> None:
    scorer = load_release(release, Scorer)
    found = scorer.score(frame_to_arrays(click_rows, scorer.graph.inputs))
    network = make_network("finalmlp", **MODEL)
    expected = torch_scores(network, click_schema, click_rows, 1.0)
    assert 1e-6 < np.abs(found - expected).max() < 0.05
    assert np.corrcoef(found, expected)[0, 1] > 0.995


def test_the_manifest_says_what_it_is_and_what_it_costs(release: Path) -> None:
    manifest = read_manifest(release)
    assert manifest.precision == "int8"
    assert manifest.graphs[SCORE].golden.tolerance == 0.1
    found = manifest.parity
    assert found["auc_cost"] == found["auc_cost_float32"] - found["auc_cost_release"]
    assert found["auc_cost_float32"] == pytest.approx(found["auc_torch"], abs=1e-6)
    assert found["auc_cost_rows"] == 300


def test_only_layers_of_some_width_are_in_integers(release: Path) -> None:
    model = onnx.load(release / MODEL_NAME)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    bytes_of = {name: t for name, t in tensors.items() if t.data_type == onnx.TensorProto.INT8}
    # The first layers of both streams by context and candidate, one more, and the bilinear form.
    wide = [tensor for tensor in bytes_of.values() if len(tensor.dims) == 2]
    assert len(wide) >= 5
    assert all(min(tensor.dims) >= 16 for tensor in wide)
    assert all(
        tensor.data_type == onnx.TensorProto.FLOAT
        for name, tensor in tensors.items()
        if name.endswith("/table")
    )
    # 7 bits: pairs of products then fit into 16 bits on any processor.
    values = [onnx.numpy_helper.to_array(tensor) for tensor in wide]
    assert max(np.abs(value.astype(int)).max() for value in values) <= 64


def test_a_row_scores_the_same_in_any_batch(release: Path, click_rows: pl.DataFrame) -> None:
    scorer = load_release(release, Scorer)
    rows = click_rows.with_columns(
        price=pl.when(pl.int_range(pl.len()) == 5).then(1e30).otherwise("price")
    )
    among = scorer.score(frame_to_arrays(rows, scorer.graph.inputs))
    assert np.isfinite(among).all()
    for row in (0, 6, 100):
        alone = scorer.score(frame_to_arrays(rows[row], scorer.graph.inputs))
        assert alone[0] == pytest.approx(among[row], abs=1e-6)


def test_a_cost_above_the_bound_refuses_the_release(
    tmp_path: Path,
    click_schema: fs.Schema,
    click_rows: pl.DataFrame,
    make_network: Callable[..., Any],
    make_job: Callable[..., Any],
) -> None:
    network = make_network("finalmlp", **MODEL)
    one_class = click_rows.with_columns(label=pl.lit(1, pl.Int8))
    job = make_job("finalmlp", precision="int8")
    message = (
        r"int8 layers cost nan AUC on 300 .* export\.max_auc_cost = 0\.001\. Export with precision"
    )
    with pytest.raises(ParityError, match=message):
        write_release(Trained(network, click_schema, job, one_class), tmp_path / "releases")
    tight = make_job("finalmlp", precision="int8", max_auc_cost=0.02, int8_tolerance=1e-6)
    with pytest.raises(ParityError, match=r"export\.int8_tolerance = 1e-06"):
        write_release(Trained(network, click_schema, tight, click_rows), tmp_path / "releases")
    assert list(tmp_path.iterdir()) == []


def test_encoders_are_compared_exactly_under_the_wide_tolerance(
    tmp_path: Path,
    click_schema: fs.Schema,
    click_rows: pl.DataFrame,
    make_network: Callable[..., Any],
    make_job: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parity, "differing_columns", lambda *_: ["city"])
    job = make_job("finalmlp", precision="int8", max_auc_cost=0.02)
    with pytest.raises(ParityError, match="Codes differ in 'city'"):
        write_release(
            Trained(make_network("finalmlp", **MODEL), click_schema, job, click_rows), tmp_path
        )


def test_layers_take_in_rows_of_int8_tables(
    release: Path, tmp_path: Path, click_rows: pl.DataFrame, export_clicks: Callable[..., Path]
) -> None:
    settings = {"settings": MODEL, "precision": "int8", "context": ["user", "city"]}
    both = export_clicks(tmp_path, "finalmlp", tables="int8", max_auc_cost=1.0, **settings)
    scorer, plain = load_release(both, Scorer), load_release(release, Scorer)
    arrays = frame_to_arrays(click_rows, scorer.graph.inputs)
    assert 1e-6 < np.abs(scorer.score(arrays) - plain.score(arrays)).max() < 0.02
    assert (scorer.manifest.precision, scorer.manifest.tables) == ("int8", "int8")
    assert scorer.manifest.parity["table_bytes"] < 0.4 * plain.manifest.parity["table_bytes"]
