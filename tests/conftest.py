"""Settings of the whole test run: one thread, no display, no time limit on a single example."""

from __future__ import annotations

import os

from hypothesis import settings

# Before torch is imported: with a busy neighbour, two OpenMP threads are slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

# The first example of a property may load polars or onnxruntime; the time limit is on the test.
settings.register_profile("headwater", deadline=None, print_blob=True)
settings.load_profile("headwater")
