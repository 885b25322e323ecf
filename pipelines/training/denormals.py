"""Flush denormals while training: numbers so small that a CPU computes them slowly."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch


@contextmanager
def flush_denormals() -> Generator[None]:
    """Take numbers below 1.2e-38 (denormals) for zero on this thread, and on those it starts meanwhile.

    A model that fits its training rows has gradients, and squares of them, as small as that; a processor is
    slow with them, and a step took two to four times as long. torch's threads take the setting over where
    they do not run yet. At the end this thread's is as before, since raw features are compared
    as they are.
    """
    was_flushed = bool(torch.tensor(1e-39).mul(1.0) == 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(was_flushed)
