"""Files as outputs: staged under a hidden name before the store's transaction, and renamed after it.

A staged file names the position from which its batch started. Once the store is past that position no
transaction can name the file any more, so what the outbox does not name is then deleted, however late its
writer wakes up.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from pathlib import Path

import pyarrow.parquet as pq

from headwater.feature_store.errors import HeadwaterError, OutputError
from headwater.feature_store.online.store import Partition
from headwater.pipelines.output import sync
from headwater.pipelines.streams.effects import File, Rename

STAGED = ".staged"
"""Folder of the files that no transaction has named yet."""


def stage(folder: Path, file: File, start: int) -> Rename:
    """Write a file durably under a hidden name; OutputError where the disk is full."""
    topic, partition, *_ = file.place
    staged = Path(STAGED) / f"{topic}-{partition}-{start}-{uuid.uuid4().hex}"
    path = folder / staged
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(file.rows, path, compression="zstd")
        sync(path)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise OutputError(
            f"{path}: cannot be written: {error.strerror or error}. What was written before is whole. "
            "Remedy: free space, then start again."
        ) from error
    return Rename(file.place, staged.as_posix(), file.path)


def finish(folder: Path, renames: Iterable[Rename]) -> None:
    """Give staged files their names; those that have them already are left as they are."""
    for rename in renames:
        staged, final = folder / rename.staged, folder / rename.path
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            staged.rename(final)
        except FileNotFoundError:
            if not final.exists():
                raise HeadwaterError(
                    f"{final}: its content, {staged}, is gone. Events of topic {rename.place.topic!r}, "
                    f"partition {rename.place.partition}, from offset {rename.place.offset} are lost here; "
                    "`headwater stream reset STREAM.toml` writes all again from the topic."
                ) from None
        sync(final.parent)


def clear_staged(folder: Path, partition: Partition, stored: int, named: set[str]) -> None:
    """Delete what was staged for a partition below the store's position, and the outbox does not name."""
    prefix = f"{partition.topic}-{partition.partition}-"
    for path in (folder / STAGED).glob(f"{prefix}*"):
        start, _, _ = path.name.removeprefix(prefix).partition("-")
        if start.isdigit() and int(start) < stored and f"{STAGED}/{path.name}" not in named:
            path.unlink(missing_ok=True)
