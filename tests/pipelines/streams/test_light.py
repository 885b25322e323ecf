"""Streams run with what the stream extra brings, and nothing of training."""

from __future__ import annotations

import subprocess
import sys

TRAINING = ("torch", "torchrec", "polars", "onnx", "scipy", "sklearn", "tqdm", "jinja2", "fsspec")


def test_nothing_of_training_is_needed() -> None:
    modules = ("commands.stream", *(f"streams.{name}" for name in STREAMS))
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({TRAINING})); "
        f"import {', '.join(f'headwater.pipelines.{name}' for name in modules)}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


STREAMS = (
    *("broker", "runtime", "recovery", "features", "declared", "settings", "kafka_bus", "metrics"),
    *("upkeep", "dead_letters", "vectors", "past_events", "log", "files", "first_stream"),
)
