"""Settings of the whole test run: one thread, no display, no time limit on a single example."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Before torch is imported: with a busy neighbour, two OpenMP threads are slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

# The first example of a property may load polars or onnxruntime; the time limit is on the test.
# CI tries the same examples each time, so that a red run is about the change; other runs explore.
settings.register_profile(
    "headwater", deadline=None, print_blob=True, derandomize="CI" in os.environ
)
settings.load_profile("headwater")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if not needing:
        return
    import torch  # takes seconds, which a run without such tests need not spend

    if not torch.cuda.is_available():
        for item in needing:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


MEASURED = {"seconds", "total_seconds", "rows_per_second"}
"""What no two trainings share."""


@pytest.fixture(scope="session")
def same_training() -> Callable[..., None]:
    """Give a function: two runs have the same weights, states and history, bit by bit, but for times."""

    def check(left: Path, right: Path, *, only_best: bool = False) -> None:
        from headwater.pipelines.runs.checkpoint import Checkpoints

        def content(run: Path) -> dict[str, Any]:
            checkpoints = Checkpoints(run / "checkpoint")
            best = {"best": checkpoints.load("best")}
            if only_best:
                return best
            history = json.loads((run / "metrics.json").read_text())["history"]
            return {**best, "latest": checkpoints.load("latest"), "history": history}

        require_same(content(left), content(right), "run")

    return check


def require_same(left: Any, right: Any, path: str) -> None:
    import torch

    if isinstance(left, dict):
        assert left.keys() == right.keys(), path
        for key in left.keys() - MEASURED:
            require_same(left[key], right[key], f"{path}.{key}")
    elif isinstance(left, list):
        assert len(left) == len(right), path
        for i, pair in enumerate(zip(left, right, strict=True)):
            require_same(*pair, f"{path}[{i}]")
    elif isinstance(left, torch.Tensor):
        assert torch.equal(left, right), path
    else:
        assert left == right, path
