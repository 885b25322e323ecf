"""What holds the repository together: who imports whom, what is packaged, what the locks pin."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = ROOT / "infra" / "locks"
CODE = ("feature_store", "models", "pipelines", "serving")

# Of feature_store, serving takes only what is light.
LIGHT_FEATURE_STORE = {
    f"headwater.feature_store.{name}" for name in ("dtypes", "errors", "files", "schema")
}
# Only pipelines writes releases, so only it reads serving: the manifest, which is the contract.
FORBIDDEN = {
    "feature_store": {"torch", "torchrec", "models", "pipelines", "serving"},
    "models": {"pipelines", "serving"},
    "pipelines": set[str](),
    "serving": {
        *("torch", "torchrec", "polars", "pyarrow", "onnx", "onnxscript", "pydantic"),
        *("models", "pipelines"),
    },
}

FOLDERS = {*CODE, "infra", "tests", "docs", "examples", ".ci", ".types", ".github"}
MAX_LINES = 500


def tracked(*patterns: str) -> list[Path]:
    """Return the files that git would commit, also those not added yet."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / line for line in done.stdout.splitlines() if (ROOT / line).is_file()]


def imports(path: Path) -> Iterator[str]:
    """Yield every module that a file imports, at any depth, and every name it takes from one."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(module: str) -> str:
    """Return `models` for `headwater.models.x`, and the top-level name of anything else."""
    names = module.split(".")
    return names[1] if names[0] == "headwater" and len(names) > 1 else names[0]


@pytest.mark.parametrize("part", CODE)
def test_imports_go_one_way(part: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in tracked(f"{part}/*.py")
        for module in imports(path)
        if part_of(module) in FORBIDDEN[part]
        # It loads Arrow when the first retriever is opened.
        and (path.name, module) != ("retriever.py", "pyarrow")
    ]
    assert wrong == []


def test_serving_takes_only_the_light_part_of_the_feature_store() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in tracked("serving/*.py")
        for module in imports(path)
        if part_of(module) == "feature_store"
        and not any(f"{module}.".startswith(f"{light}.") for light in LIGHT_FEATURE_STORE)
    ]
    assert wrong == []


def test_bare_names_of_the_folders_are_never_imported() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in tracked("*.py")
        for module in imports(path)
        if module.split(".")[0] in CODE
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        *((f"headwater.{part}", "torch polars pyarrow onnx onnxruntime pydantic") for part in CODE),
        ("headwater.models.ctr", "torch polars pyarrow onnx onnxruntime pydantic"),
        ("headwater.feature_store.errors", "torch polars pyarrow onnx numpy"),
        ("headwater.feature_store.files", "torch polars pyarrow onnx numpy"),
        ("headwater.feature_store.schema", "torch polars pyarrow onnx numpy"),
        ("headwater.pipelines.cli", "torch polars pyarrow onnx onnxruntime pydantic tqdm numpy"),
        ("headwater.serving.manifest", "torch polars pyarrow onnx onnxruntime pydantic"),
        ("headwater.serving.command", "torch polars pyarrow onnx pydantic"),
    ],
)
def test_light_modules_import_nothing_heavy(module: str, heavy: str) -> None:
    code = f"import sys, {module}; print(*sorted(set({heavy.split()}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def packages() -> dict[str, Path]:
    """Return every package of the source tree: `headwater.models.ctr` is `models/ctr`."""
    folders = [path.parent.relative_to(ROOT) for path in tracked("*__init__.py")]
    return {".".join(("headwater", *folder.parts)): ROOT / folder for folder in folders}


def test_every_folder_with_an_init_is_packaged() -> None:
    assert sorted(packages()) == sorted(PROJECT["tool"]["setuptools"]["packages"])


def test_every_folder_with_code_has_an_init() -> None:
    folders = {path.parent for part in CODE for path in tracked(f"{part}/*.py")}
    assert sorted(folders) == sorted(packages().values())


def test_no_init_among_the_tests() -> None:
    assert tracked("tests/*__init__.py") == []


def test_wheel_holds_every_module_and_imports_from_it(tmp_path: Path) -> None:
    # An editable install hides a package that is not listed, and data that is not declared.
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    source = tmp_path / "source"
    for path in tracked(*CODE, "pyproject.toml", "README.md", "LICENSE"):
        copy = source / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    subprocess.run(
        [*command, "--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        archive.extractall(tmp_path / "site")
    expected = {
        str(Path("headwater", path.relative_to(ROOT)))
        for part in CODE
        for path in tracked(part)
        if path.name != "ruff.toml"
    }
    assert held == expected
    code = (
        "import headwater.pipelines.cli as cli; cli.main(['--help']); print(cli.__file__); "
        f"import {', '.join(packages())}"
    )
    done = subprocess.run(
        # -S leaves out the .pth file of the editable install, PYTHONPATH brings the rest back.
        [sys.executable, "-S", "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), *sys.path[1:]])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1].startswith(str(tmp_path))


def pins(lock: Path) -> list[Requirement]:
    """Return the pins of a lock; each line that starts in the first column is one."""
    lines = [line for line in lock.read_text().splitlines() if line[:1] not in ("", " ", "#")]
    return [Requirement(line.rstrip("\\ ")) for line in lines]


@pytest.mark.parametrize(
    ("lock", "extras"),
    [
        ("cpu", list(PROJECT["project"]["optional-dependencies"])),
        ("cuda", list(PROJECT["project"]["optional-dependencies"])),
        ("serve", ["serve"]),
    ],
)
def test_lock_satisfies_the_project(lock: str, extras: list[str]) -> None:
    project = PROJECT["project"]
    wanted = [
        *project["dependencies"],
        *(line for extra in extras for line in project["optional-dependencies"][extra]),
    ]
    locked: dict[str, list[Requirement]] = {}
    for pin in pins(LOCKS / f"{lock}.txt"):
        locked.setdefault(canonicalize_name(pin.name), []).append(pin)
    for requirement in map(Requirement, wanted):
        # A package may be pinned twice, for older and newer versions of Python: all must fit.
        found = locked.get(canonicalize_name(requirement.name), [])
        assert found, f"{lock}.txt has no {requirement.name}: make lock"
        for pin in found:
            (version,) = (specifier.version for specifier in pin.specifier)
            assert requirement.specifier.contains(version), f"{lock}.txt: {pin}, not {requirement}"


def test_serving_lock_holds_nothing_of_training() -> None:
    names = {canonicalize_name(pin.name) for pin in pins(LOCKS / "serve.txt")}
    assert names.isdisjoint({"torch", "torchrec", "polars", "pyarrow", "onnx", "pydantic", "scipy"})


@pytest.mark.parametrize("lock", ["cpu", "cuda", "serve"])
def test_lock_has_hashes_and_no_address(lock: str) -> None:
    text = (LOCKS / f"{lock}.txt").read_text()
    assert text.count(" \\\n    --hash=sha256:") >= len(pins(LOCKS / f"{lock}.txt"))
    # No index, host or path: the installer's own settings say where packages come from.
    assert re.findall(r"^.*(?:://|--index|--find-links|file:|@ ).*$", text, re.MULTILINE) == []


def test_build_of_fbgemm_fits_the_lock() -> None:
    builds = {
        lock: {
            pin.name: str(pin.specifier)
            for pin in pins(LOCKS / f"{lock}.txt")
            if pin.name.startswith("fbgemm") and "never" not in str(pin.marker)
        }
        for lock in ("cpu", "cuda")
    }
    assert builds == {"cpu": {"fbgemm-gpu-cpu": "==1.8.0"}, "cuda": {"fbgemm-gpu": "==1.8.0"}}


def test_no_file_is_too_long() -> None:
    long = {
        str(path.relative_to(ROOT)): count
        for path in tracked("*.py")
        if (count := len(path.read_text().splitlines())) > MAX_LINES
    }
    assert long == {}


def test_top_level_folders_are_those_of_the_design() -> None:
    found = {path.relative_to(ROOT).parts[0] for path in tracked() if path.parent != ROOT}
    assert found <= FOLDERS
