"""A release that is not whole is refused with its reason and never becomes ready."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from headwater.feature_store.errors import ReleaseError
from headwater.serving.errors import RequestError
from headwater.serving.kinds.scorer import Scorer
from headwater.serving.release import load_release, read_manifest, versions
from headwater.serving.signature import columns_to_arrays

OLD = Path(__file__).resolve().parents[1] / "old_releases" / "v1" / "shop-v1"


@pytest.fixture
def release(shop: Path, tmp_path: Path) -> Path:
    """Return a whole release that a test may break."""
    path = tmp_path / "shop" / "1"
    shutil.copytree(shop / "shop" / "1", path)
    return path


def _read(release: Path) -> dict[str, Any]:
    return json.loads((release / "manifest.json").read_text())


def _change(release: Path, **changes: Any) -> None:
    """Replace fields of the manifest, or of its graph where they are there."""
    manifest = _read(release)
    graph = manifest["graphs"]["score"]
    for name, value in changes.items():
        (graph if name in graph else manifest)[name] = value
    (release / "manifest.json").write_text(json.dumps(manifest))


def _flip(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)


def test_whole_release_scores_rows(release: Path, make_rows: Callable[..., Any]) -> None:
    scorer = load_release(release, Scorer)
    scores = scorer.score(columns_to_arrays(scorer.graph.inputs, make_rows(5)))
    assert scores.shape == (5,)
    assert scores.dtype == np.float32


@pytest.mark.parametrize("position", [0, 100, -1])
def test_one_flipped_byte_of_the_model_is_found(release: Path, position: int) -> None:
    _flip(release / "model.onnx", position)
    with pytest.raises(ReleaseError, match=r"model\.onnx: corrupt: expected SHA-256"):
        load_release(release)


def test_every_byte_of_the_manifest_that_matters_is_checked(release: Path) -> None:
    golden = _read(release)["graphs"]["score"]["golden"]
    golden["outputs"]["prob"][3] += 0.01
    _change(release, golden=golden)
    with pytest.raises(ReleaseError, match=r"golden row 3: expected prob .*, found .*, tolerance"):
        load_release(release)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 3}, "format_version: expected 1 or 2, found 3"),
        ({"format_version": "1"}, "Expected `int`, got `str`"),
        ({"kind": "oracle"}, "kind: expected 'scorer' or 'retriever', found 'oracle'"),
        ({"graphs": {}}, r"graphs: expected 'score', found \[\]"),
        ({"artefacts": {"items": "items.arrow"}}, r"files: items\.arrow is not listed"),
        ({"golden": {"rows": {}, "outputs": {}, "tolerance": 1e-6}}, "golden: expected rows"),
        ({"files": {}}, r"files: model\.onnx is not listed"),
        ({"files": {"model.onnx": "", "../x": ""}}, r"'\.\./x' is outside the release|corrupt"),
        ({"files": {"../x": "", "model.onnx": ""}}, r"'\.\./x' is outside the release"),
        ({"inputs": []}, "its inputs are not those of the manifest"),
        ({"inputs": [{"name": "user", "dtype": "float"}]}, r"Invalid enum value 'float'"),
        ({"outputs": []}, "outputs: expected one output of the graph, found \\[\\]"),
        ({"outputs": [{"name": "x"}, {"name": "y"}]}, "outputs: expected one output of the graph"),
        ({"outputs": [{"name": "x"}]}, r"outputs: expected among \['prob'\], .* found \['x'\]"),
        ({"outputs": [{"name": "prob", "bounds": [0, 0.1]}]}, "expected 'prob' from 0 to 0.1"),
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
    golden = _read(release)["graphs"]["score"]["golden"]
    golden["rows"]["item"][2] = "x"
    _change(release, golden=golden)
    with pytest.raises(
        ReleaseError, match=r"golden: column 'item', row \[2\]: expected an integer"
    ):
        load_release(release)


def test_offline_takes_arrays_and_lists_alike(release: Path) -> None:
    scorer = load_release(release, Scorer)

    def score(**columns: Any) -> list[float]:
        return scorer.score(columns_to_arrays(scorer.graph.inputs, columns)).tolist()

    lists = score(item=[1, 2], price=[0.5, None], brand=["acme", None], tags=[["new"], None])
    arrays = score(
        item=np.array([1, 2], np.int32),
        price=np.array([0.5, math.nan], np.float32),
        brand=np.array(["acme", ""]),
        tags=np.array([["new"], None], object),
    )
    assert lists == arrays


def test_offline_names_column_and_row_of_a_wrong_value(release: Path) -> None:
    inputs = load_release(release, Scorer).graph.inputs
    with pytest.raises(RequestError, match=r"column 'price', row \[1\]: expected a number"):
        columns_to_arrays(inputs, {"price": [1.0, "x"]})
    with pytest.raises(
        RequestError, match=r"column 'item'.*expected int64 values, found dtype float"
    ):
        columns_to_arrays(inputs, {"item": np.array([1.5])})


def test_offline_scores_more_rows_than_one_run(
    release: Path, make_rows: Callable[..., Any]
) -> None:
    scorer = load_release(release, Scorer)
    rows = make_rows(9000)
    whole = scorer.score(columns_to_arrays(scorer.graph.inputs, rows))
    assert whole.shape == (9000,)
    tail = {name: values[8500:] for name, values in rows.items()}
    part = scorer.score(columns_to_arrays(scorer.graph.inputs, tail))
    np.testing.assert_allclose(whole[8500:], part, atol=1e-6)


def test_scorer_refuses_arrays_of_another_type_or_shape(release: Path) -> None:
    scorer = load_release(release, Scorer)
    with pytest.raises(RequestError, match=r"input 'item'\.dtype: expected int64, found float64"):
        scorer.score({"item": np.zeros((2, 1))})
    with pytest.raises(RequestError, match=r"input 'item'\.shape: expected shape \[N, 1\]"):
        scorer.score({"item": np.zeros(2, np.int64)})


def test_manifest_of_version_1_is_read_as_version_2() -> None:
    path = OLD / "1"
    written = json.loads((path / "manifest.json").read_text())
    manifest = read_manifest(path)
    assert (manifest.format_version, manifest.kind, manifest.artefacts) == (2, "scorer", {})
    assert list(manifest.graphs) == ["score"]
    graph = manifest.graphs["score"]
    assert graph.file == "model.onnx"
    assert [column.name for column in graph.inputs] == [each["name"] for each in written["inputs"]]
    assert graph.golden.rows == written["golden"]["rows"]
    assert graph.golden.outputs == {"prob": written["golden"]["scores"]}
    assert graph.golden.tolerance == written["golden"]["tolerance"]
    for name in ("name", "version", "schema_hash", "files", "metrics", "parity", "created_ts_ms"):
        assert msgspec.to_builtins(getattr(manifest, name)) == written[name]


def test_manifest_of_version_1_that_is_wrong_is_refused(tmp_path: Path) -> None:
    shutil.copytree(OLD / "1", tmp_path / "1")
    file = tmp_path / "1" / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"golden": {"rows": {}}}))
    with pytest.raises(ReleaseError, match=r"missing required field `scores` - at `\$\.golden`"):
        read_manifest(tmp_path / "1")


def test_versions_are_the_numbered_folders(tmp_path: Path) -> None:
    for name in ("1", "10", "02", ".3", "4.tmp", "\u0665", "x"):
        (tmp_path / name).mkdir()
    assert sorted(versions(tmp_path)) == [1, 10]
    assert versions(tmp_path / "none") == []
