"""Cost of int8 and float16: of layers and tables together, on all of validation, recorded and bounded."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest

from headwater.feature_store.errors import ParityError
from headwater.pipelines.job import Export, Job
from headwater.pipelines.prepared import Prepared
from headwater.pipelines.release import cost
from headwater.pipelines.release.export import export
from headwater.pipelines.runs.run import Run
from headwater.pipelines.training.train import train
from headwater.serving.kinds.scorer import Scorer
from headwater.serving.release import load_release

WAYS = {
    "float32": ("float32", "float32"),
    "float16": ("float32", "float16"),
    "int8": ("float32", "int8"),
    "both": ("int8", "int8"),
    "layers": ("int8", "float32"),
}
"""Types of layers and of tables."""
REDUCED = {
    "float16": "float16 tables",
    "int8": "int8 tables",
    "both": "int8 layers and int8 tables",
    "layers": "int8 layers",
}


@pytest.fixture(scope="module")
def run(
    tiny_job: Callable[..., Job],
    tiny_prepared: Prepared,
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    model = {"type": "deepfm", "embedding_dim": 8, "hidden": [32, 16]}
    return train(tiny_job(model, epochs=3), tiny_prepared, runs=tmp_path_factory.mktemp("runs"))


def exported(run: Run, folder: Path, way: str, **settings: Any) -> Path:
    precision, tables = WAYS[way]
    chosen = run.job.export.model_copy(
        update={"precision": precision, "tables": tables, "max_auc_cost": 0.02} | settings
    )
    return export(run, folder, settings=chosen)


@pytest.fixture(scope="module")
def releases(
    run: Run, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, tuple[Scorer, str]]:
    """Export a run in each way, and open it as a service does; with what the export told."""
    found: dict[str, tuple[Scorer, str]] = {}
    for way in WAYS:
        with redirect_stderr(io.StringIO()) as told:
            release = exported(run, tmp_path_factory.mktemp(way), way)
        found[way] = load_release(release, Scorer), told.getvalue()
    return found


def test_a_run_exported_in_each_way_says_what_it_takes(
    releases: Mapping[str, tuple[Scorer, str]],
) -> None:
    sizes: dict[str, float] = {}
    for way, (scorer, told) in releases.items():
        record = scorer.manifest.parity
        assert (scorer.manifest.precision, scorer.manifest.tables) == WAYS[way]
        sizes[way] = record["table_bytes"]
        size = f"{record['release_bytes']:,.0f} bytes, of which tables {sizes[way]:,.0f} in {WAYS[way][1]}"
        assert f"size     {size}" in told
    assert sizes["float16"] == sizes["float32"] / 2
    assert sizes["both"] == sizes["int8"] == sizes["float32"] * (8 + 2 + 2) / 36
    assert sizes["layers"] == sizes["float32"]


def test_a_run_exported_in_each_way_says_what_it_costs(
    releases: Mapping[str, tuple[Scorer, str]], run: Run, tiny_prepared: Prepared
) -> None:
    valid = run.metrics.of("valid")
    assert valid is not None
    scorer, told = releases["float32"]
    assert "auc_cost" not in scorer.manifest.parity
    assert "cost  " not in told
    for way, reduced in REDUCED.items():
        scorer, told = releases[way]
        record = scorer.manifest.parity
        assert record["auc_cost_rows"] == tiny_prepared.statistics.splits["valid"].rows
        assert record["auc_cost_float32"] == pytest.approx(valid["auc"], abs=1e-6)
        # The sample is all of the validation rows here, and the whole graph scored them.
        assert record["auc_cost_release"] == pytest.approx(record["auc_onnx"], abs=1e-5)
        assert record["auc_cost"] == record["auc_cost_float32"] - record["auc_cost_release"]
        assert f"AUC for {reduced}: {record['auc_cost_float32']:.6f} in float32" in told
    # Of layers and tables together, where both are of less.
    found = {
        releases[way][0].manifest.parity["auc_cost_release"] for way in ("int8", "both", "layers")
    }
    assert len(found) == 3


def test_golden_rows_are_held_to_what_the_layers_allow(
    releases: Mapping[str, tuple[Scorer, str]],
) -> None:
    tolerances = {way: scorer.graph.golden.tolerance for way, (scorer, _) in releases.items()}
    exact = dict.fromkeys(("float32", "float16", "int8"), 1e-5)
    assert tolerances == exact | {"both": 0.1, "layers": 0.1}


def test_a_cost_above_the_bound_refuses_the_release(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = iter([0.8, 0.7])
    monkeypatch.setattr(cost, "auc", lambda *_: next(measured))
    message = r"float16 tables cost 0\.100000 AUC on .* export\.max_auc_cost = 0\.02\. Export with"
    with pytest.raises(ParityError, match=message):
        exported(run, tmp_path / "releases", "float16")
    assert not (tmp_path / "releases").exists()


@pytest.mark.parametrize(
    ("way", "remedy"),
    [
        ("layers", 'precision = "float32"'),
        ("float16", 'tables = "float32"'),
        ("int8", 'tables = "float32" or tables = "float16"'),
        ("both", 'precision = "float32" or tables = "float32" or tables = "float16"'),
    ],
)
def test_the_remedy_for_a_cost_names_what_is_milder(way: str, remedy: str) -> None:
    precision, tables = WAYS[way]
    settings = Export.model_validate({"precision": precision, "tables": tables})
    found = cost.AucCost(REDUCED[way], 0.75, 0.75 - 0.0005, 100)
    found.require(settings)
    for worse in (0.7, math.nan):
        found = cost.AucCost(REDUCED[way], 0.75, worse, 100)
        with pytest.raises(ParityError) as refused:
            found.require(settings)
        assert str(refused.value).endswith(f"Export with {remedy}, or raise the bound.")


def test_rows_beyond_the_tolerance_of_their_type_are_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ParityError, match=r"export\.float16_tolerance = 1e-08"):
        exported(run, tmp_path, "float16", float16_tolerance=1e-8)
    with pytest.raises(ParityError, match=r"export\.int8_tolerance = 1e-08"):
        exported(run, tmp_path, "int8", int8_tolerance=1e-8)
