"""Sections of a report on what a search found: its `architecture.toml`, as the model wrote it."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from headwater.pipelines.family import Panel
from headwater.pipelines.reporting import plots
from headwater.pipelines.runs.run import ARCHITECTURE, PHASES


def search_panels(run: Path) -> Iterable[Panel]:
    """Yield a section for the architecture of a run, none where nothing was searched for."""
    path = run / ARCHITECTURE
    if not path.is_file():
        return
    found = tomllib.loads(path.read_text(encoding="utf-8"))
    if "pairs" in found:
        shown = _interactions(found["pairs"])
        yield Panel("interactions", "Interactions of pairs", "interactions.html.j2", shown)
    if "features" in found:
        shown = _embeddings(found, next(run.glob(f"{PHASES}/*/candidates.json"), None))
        yield Panel("embeddings", "Rows and dimensions kept", "embeddings.html.j2", shown)


def _embeddings(found: Mapping[str, Any], candidates: Path | None) -> dict[str, Any]:
    """Return what each feature keeps, and the candidates of the search where the run has it."""
    features = list(found["features"].items())
    kept = sum(feature.get("kept", 0) for _, feature in features)
    rows = sum(feature.get("rows", 0) for _, feature in features)
    points: list[tuple[float, float]] = []
    if candidates is not None:
        text = json.loads(candidates.read_text(encoding="utf-8"))
        points = [(each["bytes"], each["auc"]) for each in text["candidates"]]
    frontier = plots.frontier(points, (found["bytes"], found["auc"])) if points else None
    return {
        "found": found,
        "features": features,
        "kept": kept,
        "rows": rows,
        "frontier": frontier,
        "evaluated": len(points),
    }


def _interactions(pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a matrix of fields: above the diagonal what was chosen, below it the mutual information."""
    fields = list(dict.fromkeys(name for pair in pairs for name in pair["columns"]))
    top = max(pair["information"] for pair in pairs) or 1.0
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    for pair in pairs:
        first, second = sorted(pair["columns"], key=fields.index)
        cells[first, second] = {
            "method": pair["method"],
            "strength": max(pair["strength"]),
            "title": ", ".join(
                f"{name} {value:.2f}"
                for name, value in zip(
                    ("memorise", "factorise", "naive"), pair["strength"], strict=True
                )
            ),
        }
        cells[second, first] = {
            "information": pair["information"],
            "share": pair["information"] / top,
        }
    counts = {
        method: sum(pair["method"] == method for pair in pairs)
        for method in ("memorise", "factorise", "naive")
    }
    return {"fields": fields, "cells": cells, "counts": counts}
