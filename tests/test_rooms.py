"""Rooms of the house: imports within a floor have no circle, and no two rooms import each other."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ("feature_store", "models", "pipelines", "serving")
API = "headwater.pipelines"
"""Names of functions, bound late: it imports every step, and every command imports it."""


def modules() -> dict[str, Path]:
    """Return every module of the library by its name."""
    found: dict[str, Path] = {}
    for floor in FLOORS:
        for path in (ROOT / floor).rglob("*.py"):
            names = ("headwater", *path.relative_to(ROOT).with_suffix("").parts)
            found[".".join(names).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imported(path: Path) -> Iterator[str]:
    """Yield the modules of the library that a file imports, at any depth, for types too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def graph() -> dict[str, set[str]]:
    """Return for each module those that it imports."""
    return {
        name: {other for other in imported(path) if other in MODULES and other != name}
        for name, path in MODULES.items()
        if name != API
    }


def circle(edges: Mapping[str, set[str]]) -> list[str]:
    """Return a circle of imports, empty where there is none."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_modules_import_each_other_in_no_circle() -> None:
    assert circle(graph()) == []


@pytest.mark.parametrize("floor", FLOORS)
def test_rooms_import_each_other_in_no_circle(floor: str) -> None:
    # Files that stand at the top of a floor are no room: some lie below its rooms and some above.
    rooms: dict[str, set[str]] = defaultdict(set)
    for name, others in graph().items():
        for other in others:
            mine, its = MODULES[name].parent, MODULES[other].parent
            if mine != its and mine.parent == its.parent == ROOT / floor:
                rooms[mine.name].add(its.name)
    assert circle(rooms) == []


def test_no_step_imports_a_command() -> None:
    commands = f"{API}.commands"
    wrong = [
        f"{name} imports {other}"
        for name, others in graph().items()
        for other in others
        if other.startswith(commands) and not name.startswith(commands)
    ]
    assert wrong == []


def test_a_circle_is_seen() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) != []
