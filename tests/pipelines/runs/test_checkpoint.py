"""Checkpoints: what is kept, and that an interrupted save leaves the one before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headwater.feature_store.errors import OutputError, RunError
from headwater.pipelines.runs import checkpoint
from headwater.pipelines.runs.checkpoint import Checkpoints


def _state(value: float) -> dict[str, object]:
    return {"network": {"w": torch.full((4,), value)}, "loop": {"step": int(value), "x": [1, "a"]}}


def _value(checkpoints: Checkpoints, which: checkpoint.Which) -> float:
    parts = checkpoints.load(which)
    assert parts is not None
    return float(parts["network"]["w"][0])


def test_latest_and_best_are_kept_and_older_ones_removed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoint")
    assert checkpoints.load("latest") is None
    for value, best in [(1, False), (2, True), (3, False), (4, False)]:
        checkpoints.save(_state(value), best=best)
    assert _value(checkpoints, "latest") == 4
    assert _value(checkpoints, "best") == 2
    kept = {str(path.relative_to(checkpoints.folder)) for path in checkpoints.folder.rglob("*.pt")}
    assert kept == {"00000002/network.pt", "00000004/loop.pt", "00000004/network.pt"}
    latest = checkpoints.load("latest")
    assert latest is not None
    assert latest["loop"] == {"step": 4, "x": [1, "a"]}


@pytest.mark.parametrize("moment", ["write", "rename", "index", "remove"])
def test_save_stopped_at_any_moment_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(_state(1), best=True)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if moment == "write":
            patch.setattr(torch, "save", stop)
        elif moment == "rename":
            patch.setattr(Path, "rename", stop)
        elif moment == "index":
            patch.setattr(checkpoint, "write_whole", stop)
        else:
            patch.setattr(Checkpoints, "_remove_unnamed", stop)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(_state(2), best=True)
    expected = 2 if moment == "remove" else 1
    again = Checkpoints(tmp_path)
    assert _value(again, "latest") == _value(again, "best") == expected
    again.save(_state(3), best=False)
    assert (_value(again, "latest"), _value(again, "best")) == (3, expected)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damaged_checkpoint_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(_state(1), best=True)
    path = tmp_path / "00000001" / "network.pt"
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[:-7])
    else:
        path.unlink()
    with pytest.raises(RunError, match=r"00000001/network\.pt"):
        checkpoints.load("best")


def test_full_disk_is_an_output_error_and_keeps_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(_state(1), best=True)
    # /dev/full takes no byte, as a full disk.
    with monkeypatch.context() as patch:
        opened = Path.open
        patch.setattr(
            Path,
            "open",
            lambda self, *args, **kw: opened(
                Path("/dev/full") if self.name == "loop.pt" and "wb" in args else self, *args, **kw
            ),
        )
        with pytest.raises(OutputError, match=r"loop\.pt: cannot be written"):
            checkpoints.save(_state(2), best=True)
    assert _value(checkpoints, "latest") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000001", "index.json"]
