"""Peak memory of this process."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

MB = 1 << 20


def peak_rss_mb() -> float:
    """Return the largest resident set so far, in MB.

    From /proc where there is one: getrusage also counts what the process was before exec.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / MB
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MB


def peak_cuda_mb() -> float | None:
    """Return the largest CUDA memory that torch held so far, in MB; None without CUDA."""
    if not torch.cuda.is_available():
        return None
    return torch.cuda.max_memory_allocated() / MB
