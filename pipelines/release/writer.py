"""Writing a release folder so that nobody ever sees a part of one.

Everything is written into `.tmp-*` beside the versions, synced, and renamed to the next number. Two
exports at once get two numbers: a rename cannot replace a folder that is not empty.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path

import msgspec

from headwater.pipelines.publish import sync
from headwater.pipelines.runs import sync_folder, writing
from headwater.pipelines.score import versions
from headwater.serving.manifest import MANIFEST_NAME, Manifest
from headwater.serving.release import load_release

TEMPORARY = ".tmp-"


@contextlib.contextmanager
def workspace(folder: Path) -> Generator[Path]:
    """Yield a temporary folder inside the model's `folder`; whatever is left in it is removed.

    Folders that were made for it go too, unless a release is in them. What a killed export left
    behind is removed: its lock is free, that of a living one is not.
    """
    with writing(folder):
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            for left in folder.glob(f"{TEMPORARY}*"):
                with contextlib.suppress(OSError), _locked(left, wait=False):
                    shutil.rmtree(left)
            part = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=folder))
            # mkdtemp keeps others out; a service under another user must read the release.
            part.chmod(0o777 & ~_umask())
            lock = _lock(part, wait=False)
    try:
        yield part
    finally:
        os.close(lock)
        shutil.rmtree(part, ignore_errors=True)
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()


def publish(part: Path, folder: Path, manifest: Manifest) -> Path:
    """Rename the finished `part`, its manifest in it, to the next version; return the new folder.

    The release is first opened as a service opens it, golden rows and all.
    """
    with writing(folder):
        proven = False
        while True:
            version = max(versions(folder), default=0) + 1
            numbered = msgspec.structs.replace(manifest, version=version)
            content = msgspec.json.format(msgspec.json.encode(numbered), indent=1)
            (part / MANIFEST_NAME).write_bytes(content)
            sync(part)
            if not proven:
                load_release(part)
                proven = True
            target = folder / str(version)
            try:
                part.rename(target)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
                continue
            sync_folder(folder)
            return target


def digest(path: Path) -> str:
    """Return the hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _locked(folder: Path, *, wait: bool = True) -> Generator[None]:
    lock = _lock(folder, wait=wait)
    try:
        yield
    finally:
        os.close(lock)


def _lock(folder: Path, *, wait: bool) -> int:
    """Return a handle that locks a folder until it is closed; OSError if it is taken."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle


def _umask() -> int:
    """Return the process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
