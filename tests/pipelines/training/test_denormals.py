"""Numbers next to zero: flushed where training computes, and as they were after it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from headwater.pipelines.job import Job
from headwater.pipelines.preparing.prepare import Prepared
from headwater.pipelines.training.loop import Loop
from headwater.pipelines.training.train import train

IN_THREADS = """
import torch
from headwater.pipelines.training.denormals import flush_denormals

torch.set_num_threads(2)
with flush_denormals():
    # Four million numbers: more than one thread takes.
    print(torch.full((1 << 22,), 1e-30).mul(1e-9).count_nonzero().item())
"""


def is_flushed() -> bool:
    return bool(torch.tensor(1e-30).mul(1e-9) == 0)


def test_training_flushes_them_and_restores_what_was(
    tiny_job: Callable[..., Job],
    tiny_prepared: Prepared,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: list[bool] = []
    loop_train = Loop.train

    def watched(loop: Loop) -> None:
        found.append(is_flushed())
        loop_train(loop)

    monkeypatch.setattr(Loop, "train", watched)
    assert not is_flushed()
    train(tiny_job(epochs=1), tiny_prepared, runs=tmp_path)
    assert found == [True]
    assert not is_flushed()


def test_threads_that_torch_starts_meanwhile_flush_too() -> None:
    child = subprocess.run(
        [sys.executable, "-c", IN_THREADS], capture_output=True, text=True, check=True
    )
    assert child.stdout == "0\n"
