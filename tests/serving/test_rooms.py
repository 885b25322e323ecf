"""The order of the rooms of serving, and of the modules at its top level among them."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

SERVING = Path(__file__).resolve().parents[2] / "serving"

ROOMS = ("kinds", "operations", "protocols")
"""From below: a room imports those before it, and none after it."""

STARTS = {"command"}
"""The module that puts the service together, and so imports every room."""


def module_of(path: Path) -> str:
    parts = path.relative_to(SERVING).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_of(path): path for path in SERVING.rglob("*.py")}


def room_of(module: str) -> str:
    """Return the room of a module; the modules of the top level are in none."""
    first = module.split(".", maxsplit=1)[0]
    return first if first in ROOMS else ""


def imports(module: str) -> set[str]:
    """Return the modules of serving that one imports, at any depth."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("headwater.serving."):
                inside = name.removeprefix("headwater.serving.")
                found.add(inside if inside in MODULES else inside.rpartition(".")[0])
    return found - {module}


def test_a_room_imports_only_those_below_it() -> None:
    wrong = [
        f"{module} imports {other}"
        for module in MODULES
        for other in imports(module)
        if room_of(module) in ROOMS and room_of(other) in ROOMS[ROOMS.index(room_of(module)) + 1 :]
    ]
    assert wrong == []


def test_the_top_level_knows_no_operation_and_no_protocol() -> None:
    wrong = [
        f"{module} imports {other}"
        for module in MODULES.keys() - STARTS
        for other in imports(module)
        if not room_of(module) and room_of(other) in ("operations", "protocols")
    ]
    assert wrong == []


def test_kinds_import_only_what_does_not_know_them() -> None:
    knowing = {
        module
        for module in MODULES
        if not room_of(module) and any(room_of(other) == "kinds" for other in imports(module))
    }
    wrong = [
        f"{module} imports {other}"
        for module in MODULES
        if room_of(module) == "kinds"
        for other in imports(module) & knowing
    ]
    assert wrong == []


def test_a_service_of_scorers_loads_neither_faiss_nor_pyarrow(shop: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import headwater.serving.protocols.table; "
        "from headwater.serving.release import load_release; "
        f"load_release(Path({str(shop / 'shop' / '1')!r})); "
        "print(sorted({'faiss', 'pyarrow', 'polars', 'torch'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_faiss_and_pyarrow_are_imported_by_the_retriever_alone() -> None:
    importing = {
        module
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import)
        and any(alias.name.split(".")[0] in ("faiss", "pyarrow") for alias in node.names)
    }
    assert importing == {"kinds.retriever"}
