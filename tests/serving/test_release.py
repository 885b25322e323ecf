"""A release that is not whole is refused with its reason and never becomes ready."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headwater.feature_store.errors import ReleaseError
from headwater.serving.errors import RequestError
from headwater.serving.release import load_release
from headwater.serving.signature import columns_to_arrays


@pytest.fixture
def release(shop: Path, tmp_path: Path) -> Path:
    """Return a whole release that a test may break."""
    path = tmp_path / "shop" / "1"
    shutil.copytree(shop / "shop" / "1", path)
    return path


def _change(release: Path, **changes: Any) -> None:
    file = release / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def _flip(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)


def test_whole_release_scores_rows(release: Path, make_rows: Callable[..., Any]) -> None:
    scorer = load_release(release)
    scores = scorer.score(columns_to_arrays(scorer.manifest.inputs, make_rows(5)))
    assert scores.shape == (5,)
    assert scores.dtype == np.float32


@pytest.mark.parametrize("position", [0, 100, -1])
def test_one_flipped_byte_of_the_model_is_found(release: Path, position: int) -> None:
    _flip(release / "model.onnx", position)
    with pytest.raises(ReleaseError, match=r"model\.onnx: corrupt: expected SHA-256"):
        load_release(release)


def test_every_byte_of_the_manifest_that_matters_is_checked(release: Path) -> None:
    manifest = json.loads((release / "manifest.json").read_text())
    golden = manifest["golden"]
    golden["scores"][3] += 0.01
    _change(release, golden=golden)
    with pytest.raises(ReleaseError, match=r"golden row 3: expected score .*, found .*, tolerance"):
        load_release(release)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format_version: expected 1, found 2"),
        ({"format_version": "1"}, "Expected `int`, got `str`"),
        ({"golden": {"rows": {}, "scores": [], "tolerance": 1e-6}}, "golden: expected rows"),
        ({"files": {}}, r"files: model\.onnx is not listed"),
        ({"files": {"model.onnx": "", "../x": ""}}, r"'\.\./x' is outside the release|corrupt"),
        ({"files": {"../x": "", "model.onnx": ""}}, r"'\.\./x' is outside the release"),
        ({"inputs": []}, "its inputs are not those of the manifest"),
        ({"inputs": [{"name": "user", "dtype": "float"}]}, r"Invalid enum value 'float'"),
        ({"outputs": []}, "outputs: expected one output of the graph, found \\[\\]"),
        ({"outputs": [{"name": "x"}]}, "outputs: expected one output of the graph"),
    ],
)
def test_manifest_that_does_not_fit_is_refused(
    release: Path, changes: dict[str, Any], message: str
) -> None:
    _change(release, **changes)
    with pytest.raises(ReleaseError, match=message):
        load_release(release)


def test_missing_files_are_named(release: Path) -> None:
    (release / "model.onnx").unlink()
    with pytest.raises(ReleaseError, match=r"model\.onnx: listed in the manifest, not found"):
        load_release(release)
    (release / "manifest.json").unlink()
    with pytest.raises(ReleaseError, match=r"expected a release, found no manifest\.json"):
        load_release(release)


def test_manifest_cut_short_is_refused(release: Path) -> None:
    file = release / "manifest.json"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ReleaseError, match=r"manifest\.json: Input data was truncated"):
        load_release(release)


def test_model_that_is_no_graph_is_refused(release: Path) -> None:
    (release / "model.onnx").write_bytes(b"no graph")
    _change(release, files={"model.onnx": hashlib.sha256(b"no graph").hexdigest()})
    with pytest.raises(ReleaseError, match="onnxruntime cannot open it"):
        load_release(release)


def test_golden_rows_of_a_wrong_type_are_refused(release: Path) -> None:
    golden = json.loads((release / "manifest.json").read_text())["golden"]
    golden["rows"]["item"][2] = "x"
    _change(release, golden=golden)
    with pytest.raises(
        ReleaseError, match=r"golden: column 'item', row \[2\]: expected an integer"
    ):
        load_release(release)


def test_offline_takes_arrays_and_lists_alike(release: Path) -> None:
    scorer = load_release(release)

    def score(**columns: Any) -> list[float]:
        return scorer.score(columns_to_arrays(scorer.manifest.inputs, columns)).tolist()

    lists = score(item=[1, 2], price=[0.5, None], brand=["acme", None], tags=[["new"], None])
    arrays = score(
        item=np.array([1, 2], np.int32),
        price=np.array([0.5, math.nan], np.float32),
        brand=np.array(["acme", ""]),
        tags=np.array([["new"], None], object),
    )
    assert lists == arrays


def test_offline_names_column_and_row_of_a_wrong_value(release: Path) -> None:
    inputs = load_release(release).manifest.inputs
    with pytest.raises(RequestError, match=r"column 'price', row \[1\]: expected a number"):
        columns_to_arrays(inputs, {"price": [1.0, "x"]})
    with pytest.raises(
        RequestError, match=r"column 'item'.*expected int64 values, found dtype float"
    ):
        columns_to_arrays(inputs, {"item": np.array([1.5])})


def test_offline_scores_more_rows_than_one_run(
    release: Path, make_rows: Callable[..., Any]
) -> None:
    scorer = load_release(release)
    rows = make_rows(9000)
    whole = scorer.score(columns_to_arrays(scorer.manifest.inputs, rows))
    assert whole.shape == (9000,)
    tail = {name: values[8500:] for name, values in rows.items()}
    part = scorer.score(columns_to_arrays(scorer.manifest.inputs, tail))
    np.testing.assert_allclose(whole[8500:], part, atol=1e-6)


def test_scorer_refuses_arrays_of_another_type_or_shape(release: Path) -> None:
    scorer = load_release(release)
    with pytest.raises(RequestError, match=r"input 'item'\.dtype: expected int64, found float64"):
        scorer.score({"item": np.zeros((2, 1))})
    with pytest.raises(RequestError, match=r"input 'item'\.shape: expected shape \[N, 1\]"):
        scorer.score({"item": np.zeros(2, np.int64)})
