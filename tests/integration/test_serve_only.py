"""Serving where only the serve extra is installed: the built wheel in an environment of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
TRAINING = (
    "torch",
    "torchrec",
    "fbgemm_gpu",
    "polars",
    "pyarrow",
    "onnx",
    "onnxscript",
    "pydantic",
)

PACKAGED = (
    "feature_store",
    "models",
    "pipelines",
    "serving",
    "pyproject.toml",
    "README.md",
    "LICENSE",
)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the bin folder of an environment with infra/locks/serve.txt and the wheel, nothing else."""
    folder = tmp_path_factory.mktemp("serve-only")
    listed = subprocess.run(
        [*("git", "ls-files", "--cached", "--others", "--exclude-standard"), *PACKAGED],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    source = folder / "source"
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    call(*build, "--wheel-dir", folder, source)
    (wheel,) = folder.glob("*.whl")
    uv = Path(sys.executable).with_name("uv")
    python = folder / "venv" / "bin" / "python"
    call(uv, "venv", "--quiet", "--python", sys.executable, folder / "venv")
    install = [uv, "pip", "install", "--quiet", "--python", python]
    call(*install, "--require-hashes", "-r", ROOT / "infra" / "locks" / "serve.txt")
    call(*install, "--no-deps", wheel)
    return python.parent


def test_nothing_of_training_is_installed(environment: Path) -> None:
    code = f"""
import importlib.util as u
print([name for name in {TRAINING} if u.find_spec(name)])
"""
    assert call(environment / "python", "-c", code).strip() == "[]"


def test_serves_a_release_and_imports_nothing_of_training(
    environment: Path,
    made: Callable[[str], Any],
    serving: Callable[..., Any],
    ask: Callable[..., tuple[int, Any]],
    wait_ready: Callable[[str], None],
    tmp_path: Path,
) -> None:
    release = made("finalmlp-fused").release
    golden = json.loads((release / "manifest.json").read_text())["graphs"]["score"]["golden"]
    names, columns = golden["rows"].keys(), golden["rows"].values()
    rows = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    # The interpreter itself tells what it imports, whoever asks for it and whenever.
    command = (environment / "python", "-X", "importtime", environment / "headwater")
    log = tmp_path / "imports.log"
    with log.open("w") as file, serving(release.parent.parent, command, file) as url:
        wait_ready(f"{url}/v2/models/finalmlp-fused/ready")
        status, answer = ask(f"{url}/v1/rank", {"model": "finalmlp-fused", "candidates": rows})
        assert status == 200, answer
        assert ask(f"{url}/openapi.json")[0] == 200
    np.testing.assert_allclose(answer["scores"], golden["outputs"]["prob"], rtol=0, atol=1e-6)
    modules = set(re.findall(r"^import time:.*\|\s*([\w.]+)$", log.read_text(), re.MULTILINE))
    assert {"headwater.serving.protocols.rank", "onnxruntime", "granian", "msgspec"} <= modules
    assert modules.isdisjoint(TRAINING)
    ours = {name for name in modules if name.startswith("headwater.")}
    assert {name for name in ours if name.startswith("headwater.feature_store.")} <= {
        "headwater.feature_store.dtypes",
        "headwater.feature_store.errors",
        "headwater.feature_store.files",
        "headwater.feature_store.schema",
    }
    assert not {name for name in ours if name.startswith("headwater.models")}


def test_other_commands_show_help_and_name_their_extra(environment: Path, tmp_path: Path) -> None:
    headwater = environment / "headwater"
    assert "Serve a folder of releases over HTTP." in call(headwater, "--help")
    (tmp_path / "job.toml").write_text('name = "x"\n')
    done = subprocess.run(
        [headwater, "run", "job.toml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "is not installed" in done.stderr
    assert "headwater[train]" in done.stderr
    assert "Traceback" not in done.stderr


def call(*arguments: str | Path) -> str:
    done = subprocess.run([*arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{arguments[:3]}: {done.stderr}"
    return done.stdout
