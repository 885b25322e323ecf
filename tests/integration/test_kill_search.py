"""SIGKILL at random moments of a search, then `--resume`: the same architecture, and the same weights.

Moments are drawn from a seed that is printed; `KILL_SEED=7 pytest tests/integration/test_kill_search.py`
repeats a failure.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headwater.pipelines.cli import main
from headwater.pipelines.runs.run import open_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

MODELS = {
    "optinter": (
        '{type="optinter", embedding_dim=4, interaction_dim=4, hidden=[16], min_count=2, '
        "search={epochs=6}}"
    ),
    "optembed": (
        '{type="optembed", base={type="dnn", embedding_dim=4, hidden=[16], batch_norm=true}, '
        "search={epochs=6, generations=3, mutations=3, crossovers=3}}"
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_search_killed_at_random_moments_finds_the_same(
    name: str,
    shop: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    chance: random.Random,
    same_training: Callable[..., None],
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = (f"model={MODELS[name]}", "train.epochs=2", "train.checkpoint_steps=3", "export={}")
    sets = [part for value in settings for part in ("--set", value)]
    assert main(["search", str(shop.job), *sets]) == 0
    (undisturbed,) = Path("runs/shop").iterdir()
    last_event = len(events(undisturbed))
    moments = sorted(chance.sample(range(2, last_event), 6))
    print(f"{name}: kills after {moments} of {last_event} events")
    command = ["search", str(shop.job), *sets]
    run: Path | None = None
    for moment in moments:
        run = kill_after(command, moment, undisturbed)
        command = ["train", "--resume", str(run)]
    assert run is not None
    assert main(["train", "--resume", str(run)]) == 0
    assert main(["train", "--resume", str(undisturbed)]) == 0
    found, expected = open_run(run), open_run(undisturbed)
    assert found.architecture.read_bytes() == expected.architecture.read_bytes()
    same_training(run, undisturbed, only_best=True)


def kill_after(command: list[str], moment: int, undisturbed: Path) -> Path:
    """Run a command until its run's log has some events, or more than it had, and kill it; return the run."""
    with Path("stderr").open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", "from headwater.pipelines.cli import main; main()", *command],
            stderr=errors,
        )
    before = {path: len(events(path)) for path in Path("runs/shop").iterdir()}
    while True:
        others = [path for path in Path("runs/shop").iterdir() if path != undisturbed]
        if others and len(events(others[0])) >= max(moment, before.get(others[0], 0) + 1):
            break
        assert process.poll() is None, Path("stderr").read_text()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, Path("stderr").read_text()
    return others[0]


def events(run: Path) -> list[dict[str, Any]]:
    """Return the events in the log of a run, none before it has one."""
    log = run / "log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]
