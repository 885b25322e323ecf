"""Checkpoints that a kill at any moment cannot spoil.

A checkpoint is a numbered folder with one file per part of the state. It is written under a
temporary name, synced, and renamed; then `index.json`, which names the latest and the best one with
the SHA-256 of each file, is replaced as a whole. That replacement is the only moment at which
anything changes: what the index does not name is rubbish, and is removed by the next save.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from headwater.feature_store.errors import OutputError, RunError
from headwater.feature_store.files import file_sha256
from headwater.pipelines.output import sync, write_whole, writing

CHECKPOINT = "checkpoint"
"""Folder of the checkpoints, in that of a run or of a phase."""
INDEX = "index.json"
TEMPORARY = ".part"
KEPT_OF_BEST = "network"
"""The only part that is kept of a best checkpoint once it is no longer the latest."""

Which = Literal["latest", "best"]


class Checkpoints:
    """The checkpoints of one run: the latest, which training goes on from, and the best."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, parts: Mapping[str, Any], *, best: bool) -> None:
        """Save a state as the latest checkpoint, and as the best one if it is.

        `parts` are named trees of tensors and plain values (what `torch.load` reads with
        `weights_only`), `network` among them. OutputError on a full disk; what was there stays.
        """
        index = self._index()
        number = index.get("number", 0) + 1
        target = self.folder / f"{number:08d}"
        part = self.folder / TEMPORARY
        with writing(target):
            # A folder of this number was renamed, but its index never came: nobody knows it.
            for rubbish in (part, target):
                shutil.rmtree(rubbish, ignore_errors=True)
            part.mkdir(parents=True)
        try:
            files = {
                f"{name}.pt": _write(part / f"{name}.pt", tree) for name, tree in parts.items()
            }
        except OutputError:
            shutil.rmtree(part, ignore_errors=True)
            raise
        with writing(target):
            sync(part)
            part.rename(target)
            sync(self.folder)
        entry = {"folder": target.name, "files": files}
        index = {"number": number, "latest": entry, "best": index.get("best")}
        if best:
            kept = f"{KEPT_OF_BEST}.pt"
            index["best"] = {"folder": target.name, "files": {kept: files[kept]}}
        write_whole(self.folder / INDEX, json.dumps(index, indent=1).encode())
        self._remove_unnamed(index)

    def load(self, which: Which, device: torch.device | str = "cpu") -> dict[str, Any] | None:
        """Return the parts of a checkpoint, or None without one; RunError if a file is damaged."""
        entry = self._index().get(which)
        if entry is None:
            return None
        parts: dict[str, Any] = {}
        for name, digest in entry["files"].items():
            path = self.folder / entry["folder"] / name
            try:
                found = file_sha256(path)
            except OSError as error:
                raise RunError(f"{path}: cannot be read: {error.strerror}. {_LOST}") from error
            if found != digest:
                raise RunError(
                    f"{path}: damaged: SHA-256 is {found[:12]}, expected {digest[:12]}. {_LOST}"
                )
            parts[path.stem] = torch.load(path, map_location=device, weights_only=True)
        return parts

    def _index(self) -> dict[str, Any]:
        path = self.folder / INDEX
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise RunError(f"{path}: damaged: {error}. {_LOST}") from error

    def _remove_unnamed(self, index: Mapping[str, Any]) -> None:
        """Remove every folder and file that the index does not name."""
        named: dict[str, set[str]] = {}
        for which in ("latest", "best"):
            if entry := index.get(which):
                named.setdefault(entry["folder"], set()).update(entry["files"])
        for folder in self.folder.iterdir():
            if not folder.is_dir():
                continue
            if folder.name not in named:
                shutil.rmtree(folder, ignore_errors=True)
                continue
            for file in folder.iterdir():
                if file.name not in named[folder.name]:
                    file.unlink(missing_ok=True)


_LOST = "Train again, or restore the file from a copy."


def _write(path: Path, tree: Any) -> str:
    """Write one part durably and return its SHA-256."""
    try:
        with path.open("wb") as file:
            torch.save(tree, file)
            file.flush()
            os.fsync(file.fileno())
        return file_sha256(path)
    except (OSError, RuntimeError) as error:
        # torch's zip writer hides the OSError of a full disk behind a RuntimeError.
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        reason = getattr(cause, "strerror", None) or cause
        raise OutputError(
            f"{path}: cannot be written: {reason}. Free space; the checkpoint before is untouched."
        ) from error
