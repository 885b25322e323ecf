"""SIGKILL at random moments of training, then `--resume`: the same bits as without, in each table mode.

Moments are drawn from a seed that is printed; `KILL_SEED=7 pytest tests/integration/test_kill_training.py`
repeats a failure. They are of three kinds: anywhere, just before a file-system call of a checkpoint (its
rename among them), and while a file of the checkpoint is written.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from headwater.models.tables.embeddings import Mode
from headwater.pipelines.cli import main
from headwater.pipelines.runs.run import open_run

MODES: tuple[str, ...] = get_args(Mode)
KINDS = ("anywhere", "rename", "call", "writing")
EPOCHS_A_KILL = 2
"""So many that no kill comes too late: an epoch has 19 steps, a process some 25 until its kill at most."""

# The command, with a hook that ends the process or its delay at the n-th call of a kind.
TRAINING = """
import os, signal, sys, threading, time
from pathlib import Path
kind, left, delay_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])

def end():
    time.sleep(delay_s)
    os.kill(os.getpid(), signal.SIGKILL)

def hook(event, arguments):
    global left
    path = arguments[0] if arguments else None
    if not isinstance(path, (str, os.PathLike)) or "/checkpoint/" not in str(Path(path).absolute()):
        return
    is_write = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if kind == "rename":
        counts = event == "os.rename"
    elif kind == "call":
        counts = is_write or event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir")
    else:
        counts = is_write and str(path).endswith(".pt")
    left -= counts
    if counts and left == 0:
        if kind == "writing":
            threading.Thread(target=end, daemon=True).start()
        else:
            os.kill(os.getpid(), signal.SIGKILL)

if kind != "anywhere":
    sys.addaudithook(hook)
from headwater.pipelines.cli import main
sys.exit(main(["train", *sys.argv[4:]]))
"""


@pytest.mark.parametrize(
    ("mode", "kills"),
    [
        pytest.param(MODES[0], len(KINDS), marks=pytest.mark.timeout(600)),
        *(
            pytest.param(mode, 20, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])
            for mode in MODES
        ),
    ],
)
def test_killed_at_random_moments_and_resumed_gives_the_same_bits(
    mode: str,
    kills: int,
    shop: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    chance: random.Random,
    same_training: Callable[[Path, Path], None],
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = (
        f"train.sparse.mode={mode}",
        f"train.epochs={EPOCHS_A_KILL * kills}",
        f"train.patience={EPOCHS_A_KILL * kills}",
        "train.lr_factor=0.9",  # the weights still move in the last epoch
        "train.checkpoint_steps=2",
        "train.shuffle_rows=500",
    )
    sets = [part for value in settings for part in ("--set", value)]
    assert main(["train", str(shop.job), *sets]) == 0
    (undisturbed,) = Path("runs/shop").iterdir()
    arguments = [str(shop.job), *sets]
    landed: Counter[str] = Counter()
    run: Path | None = None
    for kill in range(kills):
        kind = KINDS[kill % len(KINDS)]
        run = kill_training(kind, arguments, chance, undisturbed)
        arguments = ["--resume", str(run)]
        assert not open_run(run).is_complete, f"too late: {kill} kills before"
        landed[where(run)] += 1
    print(f"{mode}: where the kills came: {dict(landed)}")
    assert landed["checkpoint half written"]
    assert main(["train", "--resume", str(run)]) == 0
    assert run is not None
    same_training(run, undisturbed)
    assert {path.name for path in run.iterdir()} == {path.name for path in undisturbed.iterdir()}
    for folder in ("checkpoint", "scores"):
        left = [{path.name for path in (each / folder).rglob("*")} for each in (run, undisturbed)]
        assert left[0] == left[1]


def kill_training(
    kind: str, arguments: list[str], chance: random.Random, undisturbed: Path
) -> Path:
    """Train in a process, kill it at a drawn moment of a kind, and return its run."""
    count = chance.randint(1, {"rename": 12, "call": 50, "writing": 12}.get(kind, 20))
    delay_s = chance.random() * {"anywhere": 0.05, "writing": 0.001}.get(kind, 0.0)
    print(f"{kind}: {count}, {1000 * delay_s:.2f} ms")
    log = log_of(undisturbed)
    before = len(log.read_text().splitlines()) if log is not None else 0
    command = [sys.executable, "-c", TRAINING, kind, str(count), str(delay_s), *arguments]
    with Path("stderr").open("wb") as errors:
        process = subprocess.Popen(command, stderr=errors)
    if kind == "anywhere":
        while (log := log_of(undisturbed)) is None or len(log.read_text().splitlines()) < (
            before + count
        ):
            assert process.poll() is None, Path("stderr").read_text()
            time.sleep(0.002)
        time.sleep(delay_s)
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, Path("stderr").read_text()
    log = log_of(undisturbed)
    assert log is not None
    return log.parent


def log_of(undisturbed: Path) -> Path | None:
    """Return the log of the run that is not `undisturbed`."""
    found = [log for log in Path("runs/shop").glob("*/log.jsonl") if log.parent != undisturbed]
    return found[0] if found else None


def where(run: Path) -> str:
    """Tell what a killed training was doing, from what it left."""
    checkpoint = run / "checkpoint"
    if (checkpoint / ".part").exists():
        return "checkpoint half written"
    if list(checkpoint.glob(".index.json.*")):
        return "index half written"
    numbers = sorted(path.name for path in checkpoint.glob("0*"))
    index = checkpoint / "index.json"
    if numbers and (not index.exists() or numbers[-1] not in index.read_text()):
        return "renamed, not in the index"
    return "elsewhere"
