"""Settings of the whole test run: one thread, no display, no time limit on a single example."""

from __future__ import annotations

import os

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
