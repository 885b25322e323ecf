"""A release is proven before it exists, whole or absent, and says what it is."""

from __future__ import annotations

import json
import math
import re
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
import torch

from headwater.feature_store import schema as fs
from headwater.feature_store.errors import JobError, OutputError, ParityError, ReleaseError
from headwater.pipelines import output
from headwater.pipelines.job import Job
from headwater.pipelines.prepared import Prepared
from headwater.pipelines.release import builder, writer
from headwater.pipelines.release.export import export
from headwater.pipelines.release.golden import golden_rows
from headwater.pipelines.release.parity import differing_columns, encoded, torch_scores
from headwater.pipelines.scoring.score import frame_to_arrays
from headwater.pipelines.training.train import train
from headwater.serving.kinds.scorer import Scorer
from headwater.serving.manifest import MANIFEST_NAME, MODEL_NAME, SCORE, Manifest
from headwater.serving.release import load_release, read_manifest

Released = Callable[..., Path]

FM = {"embedding_dim": 4}
PAGE = Path(__file__).parents[3] / "docs" / "release.md"


def test_export_beyond_tolerance_is_refused_and_leaves_nothing(
    tmp_path: Path, released: Released
) -> None:
    with pytest.raises(ParityError, match=r"in row \d+ of the sample .*tolerance = 1e-12.*equal"):
        released("dnn", settings={"embedding_dim": 4, "hidden": (16, 8)}, tolerance=1e-12)
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_scores_nan_is_refused(
    make_network: Callable[..., Any], released: Released
) -> None:
    network = make_network("logistic_regression")
    with torch.no_grad():
        network.model.bias.fill_(math.nan)
    with pytest.raises(ParityError, match="differs from the network by nan"):
        released("logistic_regression", network)


def test_the_auc_of_an_export_is_said_to_be_of_the_sample(
    released: Released, capsys: pytest.CaptureFixture[str]
) -> None:
    released("logistic_regression")
    (line,) = (each for each in capsys.readouterr().err.splitlines() if "parity " in each)
    assert re.search(r"AUC 0\.\d+ and 0\.\d+ of 300 sampled rows$", line)


def test_both_compilers_agree_on_the_rows(
    click_schema: fs.Schema, click_rows: pl.DataFrame
) -> None:
    assert differing_columns(click_schema, click_rows) == []


def test_golden_rows_take_the_branches_of_missing_and_unknown(
    click_schema: fs.Schema, click_rows: pl.DataFrame
) -> None:
    real, made = golden_rows(click_schema, click_rows.drop_nulls(), 32)
    assert len(real) + len(made) == 32
    assert len(real) >= 24
    codes, _ = encoded(click_schema, made)
    for column, place in click_schema.code_places():
        assert 0 in codes[:, place], column.name
        if column.name in ("user", "tags", "seen"):
            assert 1 in codes[:, place], column.name


def test_golden_rows_hold_no_infinity(click_schema: fs.Schema, click_rows: pl.DataFrame) -> None:
    rows = click_rows.with_columns(
        price=pl.when(pl.int_range(pl.len()) % 2 == 0).then(math.inf).otherwise("price")
    )
    real, made = golden_rows(click_schema, rows, 16)
    assert len(real) + len(made) == 16
    assert not pl.concat([real, made])["price"].is_infinite().any()


def test_golden_rows_hold_an_unseen_id_where_the_largest_is_taken(
    click_schema: fs.Schema, click_rows: pl.DataFrame
) -> None:
    rows = click_rows.with_columns(
        user=pl.when(pl.int_range(pl.len()) < 2)
        .then(2**63 - 1 - pl.int_range(pl.len()))
        .otherwise("user")
    )
    _, made = golden_rows(click_schema, rows, 16)
    assert 2**63 - 3 in made["user"].to_list()


@pytest.fixture
def release(released: Released) -> Path:
    return released(
        "fm",
        settings=FM,
        described={
            "metrics": {"valid": {"auc": 0.75, "gauc": None, "logloss": math.nan}},
            "time_range_ms": (1_700_000_000_000, 1_700_000_900_000),
        },
        context=["user"],
        golden_rows=8,
    )


def test_manifest_is_complete(release: Path, click_schema: fs.Schema) -> None:
    manifest = read_manifest(release)
    assert release.name == "1"
    assert (manifest.name, manifest.version, manifest.model_type) == ("clicks", 1, "fm")
    assert (manifest.format_version, manifest.kind, manifest.artefacts) == (2, "scorer", {})
    (graph,) = manifest.graphs.values()
    assert [i.name for i in graph.inputs if i.role == "context"] == ["user"]
    assert [f.name for f in manifest.features] == [c.name for c in click_schema.columns]
    assert manifest.schema_hash == click_schema.hash
    assert manifest.metrics == {"valid": {"auc": 0.75}}
    assert manifest.time_range_ms == (1_700_000_000_000, 1_700_000_900_000)
    assert set(manifest.files) == {path.name for path in release.iterdir()} - {MANIFEST_NAME}
    assert len(graph.golden.outputs["prob"]) == 8
    assert all(len(values) == 8 for values in graph.golden.rows.values())


def test_a_manifest_from_before_tables_had_a_type_is_of_float32(release: Path) -> None:
    path = release / MANIFEST_NAME
    written = json.loads(path.read_bytes())
    del written["tables"]
    path.write_text(json.dumps(written))
    assert load_release(release, Scorer).manifest.tables == "float32"


def test_manifest_says_what_each_tensor_is(release: Path) -> None:
    written = json.loads((release / MANIFEST_NAME).read_bytes())["graphs"][SCORE]
    assert written["file"] == MODEL_NAME
    tensors = {i["name"]: (i["dtype"], i["shape"], i["missing"]) for i in written["inputs"]}
    assert tensors["user"] == ("int64", [-1, 1], -(2**63))
    assert tensors["price"] == ("double", [-1, 1], None)
    assert tensors["city"] == ("string", [-1, 1], "")
    assert tensors["tags"] == ("string", [-1, -1], "")
    (output,) = written["outputs"]
    assert (output["name"], output["dtype"], output["shape"]) == ("prob", "float32", [-1])
    assert (output["meaning"], output["bounds"]) == ("prob", [0.0, 1.0])


@pytest.mark.parametrize("mode", ["fused", "lazy", "dense"])
def test_a_trained_run_is_exported_with_its_best_weights(
    mode: str, tiny_job: Callable[..., Job], tiny_prepared: Prepared, tmp_path: Path
) -> None:
    job = tiny_job(epochs=2, sparse={"mode": mode})
    run = train(job, tiny_prepared, runs=tmp_path / "runs")
    release = export(run, tmp_path / "releases")
    assert release == tmp_path / "releases" / "tiny" / "1"
    manifest = load_release(release, Scorer).manifest
    valid = run.metrics.of("valid")
    assert valid is not None
    assert manifest.metrics["valid"]["auc"] == valid["auc"]
    # The sample is all of the validation rows here.
    assert manifest.parity["auc_onnx"] == pytest.approx(valid["auc"], abs=1e-3)
    assert manifest.schema_hash == tiny_prepared.schema.hash
    assert export(run, tmp_path / "releases").name == "2"


def test_docs_name_every_field_of_the_manifest() -> None:
    text = PAGE.read_text()
    structs: list[Any] = [Manifest]
    seen: set[str] = set()
    while structs:
        for item in msgspec.structs.fields(structs.pop()):
            seen.add(item.name)
            structs += [
                part
                for part in (item.type, *getattr(item.type, "__args__", ()))
                if isinstance(part, type) and issubclass(part, msgspec.Struct)
            ]
    assert {"golden", "tolerance", "cardinality", "role"} <= seen
    assert [name for name in sorted(seen) if f"`{name}`" not in text] == []


def test_example_of_the_docs_scores(
    tmp_path: Path,
    click_schema: fs.Schema,
    released: Released,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ("user", "price", "tags")
    schema = fs.Schema(
        raw=tuple(column for column in click_schema.raw if column.name in names),
        columns=tuple(column for column in click_schema.columns if column.name in names),
    )
    released("fm", schema=schema)
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(example.strip().splitlines()) <= 8
    values: dict[str, Any] = {}
    exec(example, values)
    assert values["prob"].shape == (2,)


@pytest.mark.parametrize("external", [False, True])
def test_one_flipped_byte_is_refused(
    external: bool,
    click_schema: fs.Schema,
    click_rows: pl.DataFrame,
    make_network: Callable[..., Any],
    released: Released,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if external:
        monkeypatch.setattr(builder, "EXTERNAL_BYTES", 1)
    network = make_network("deepfm", embedding_dim=4, hidden=(16,))
    release = released("deepfm", network)
    files = {MODEL_NAME, builder.TABLES_NAME} if external else {MODEL_NAME}
    assert set(read_manifest(release).files) == files
    scorer = load_release(release, Scorer)
    arrays = frame_to_arrays(click_rows, scorer.graph.inputs)
    expected = torch_scores(network, click_schema, click_rows, 1.0)
    np.testing.assert_allclose(scorer.score(arrays), expected, atol=2e-6, rtol=0)
    for name in files:
        path = release / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        with pytest.raises(ReleaseError, match=f"{name}: corrupt"):
            load_release(release, Scorer)
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


@contextmanager
def largest_file(num_bytes: int) -> Generator[None]:
    """Make the kernel refuse longer files, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_nothing(tmp_path: Path, released: Released) -> None:
    with largest_file(10_000), pytest.raises(OutputError, match="clicks: cannot be written"):
        released("fm", settings=FM)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_earlier_versions(release: Path, released: Released) -> None:
    with largest_file(10_000), pytest.raises(OutputError):
        released("fm", settings=FM)
    assert sorted(path.name for path in release.parent.iterdir()) == [".last-version", "1"]


KILLED = """
import os, signal, sys
from pathlib import Path
from headwater.pipelines.output import workspace
with workspace(Path(sys.argv[1])) as part:
    (part / "model.onnx").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_export_left_is_never_a_version_and_goes_with_the_next(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "clicks"
    subprocess.run([sys.executable, "-c", KILLED, str(folder)], check=False)
    assert [path.name[:5] for path in folder.iterdir()] == [".tmp-"]
    assert writer.versions(folder) == []
    with output.workspace(folder) as living, output.workspace(folder) as other:
        assert set(folder.iterdir()) == {living, other}
    assert list(folder.iterdir()) == []


def test_two_exports_at_once_take_two_versions(release: Path) -> None:
    folder = release.parent
    manifest = read_manifest(release)
    start = threading.Barrier(4)
    made: list[Path] = []

    def publish() -> None:
        with output.workspace(folder) as part:
            (part / MODEL_NAME).write_bytes((release / MODEL_NAME).read_bytes())
            start.wait()
            made.append(writer.publish(part, folder, manifest))

    threads = [threading.Thread(target=publish) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(path.name for path in made) == ["2", "3", "4", "5"]
    assert all(read_manifest(path).version == int(path.name) for path in made)


def test_the_number_of_a_deleted_version_is_not_given_again(
    release: Path, released: Released
) -> None:
    shutil.rmtree(release)
    second = released("fm", settings=FM)
    assert (second.name, read_manifest(second).version) == ("2", 2)
    (release.parent / ".last-version").write_text("two")
    with pytest.raises(OutputError, match=r"\.last-version: expected the number of the last"):
        released("fm", settings=FM)
    (release.parent / ".last-version").unlink()
    assert released("fm", settings=FM).name == "3"


def test_unknown_context_column_names_the_nearest(released: Released) -> None:
    with pytest.raises(JobError, match=r"export\.context: 'usr'.*Did you mean 'user'\?"):
        released("fm", context=["usr"])
