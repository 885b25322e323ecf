"""What training keeps of its memory between steps."""

from __future__ import annotations

import resource

import torch

from headwater.pipelines.training.memory import keep_freed_memory

PAGES_OF_A_TENSOR = 4096
"""Of 16 MB; without the setting each of them faults in each round."""


def test_freed_memory_is_taken_again_without_page_faults() -> None:
    assert keep_freed_memory(), "these tests run on glibc"
    faults: list[int] = []
    for _ in range(20):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(1 << 22)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    # The first ones lay the heap out.
    assert sum(faults[10:]) < PAGES_OF_A_TENSOR
