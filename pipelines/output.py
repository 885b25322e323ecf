"""Writing of results: whole or not at all, and durably.

A file or a folder is written under a temporary name, synced and renamed, so that a reader sees the old one
or the new one and never a part. What a killed process leaves under such a name, the next one removes: it
tells that from work in progress by a lock that the kernel releases with the process, never by age.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import BinaryIO

from headwater.feature_store.errors import OutputError

TEMPORARY = ".tmp-"
_TOKEN_CHARS = 8


@contextlib.contextmanager
def writing(path: Path) -> Generator[None]:
    """Turn what the file system refuses (as on a full disk) into an OutputError on `path`."""
    try:
        yield
    except Exception as error:
        number = _error_number(error)
        # A library's own error for what it reads is not about `path`.
        if not isinstance(error, OSError) and number not in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = os.strerror(number) if number else str(error)
        name = getattr(error, "filename", None)
        where = f" ({name})" if name not in (None, str(path)) else ""
        raise OutputError(
            f"{path}: cannot be written: {reason}{where}. "
            "Free space or make the folder writable; what was there before is untouched."
        ) from error


def _error_number(error: Exception) -> int | None:
    """Return the system's number of an error; Arrow and Polars have it in the text only."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    found = re.search(r"(?:errno|os error) (\d+)", str(error), re.IGNORECASE)
    return int(found.group(1)) if found else None


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file as a whole and durably; OutputError where it cannot be written."""
    with whole_file(path) as file:
        file.write(content)


@contextlib.contextmanager
def whole_file(path: Path) -> Generator[BinaryIO]:
    """Yield an empty file, which takes the name `path`, durably, when the block ends without an error.

    What is there before stays until then, and stays on an error. OutputError where it cannot be written.
    """
    with writing(path):
        for left in path.parent.glob(f".{glob.escape(path.name)}.{'?' * _TOKEN_CHARS}.part"):
            with contextlib.suppress(OSError), locked(left, wait=False):
                left.unlink()
        part, file = _new_part(path)
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        sync(path.parent)


def _new_part(path: Path) -> tuple[Path, BinaryIO]:
    """Return a new file beside `path`, locked until it is closed."""
    while True:
        part = path.with_name(f".{path.name}.{secrets.token_hex(_TOKEN_CHARS // 2)}.part")
        file = part.open("xb")
        fcntl.flock(file, fcntl.LOCK_EX)
        # Between these two, another process may have taken it for a leaving.
        if os.fstat(file.fileno()).st_nlink:
            return part, file
        file.close()


@contextlib.contextmanager
def publish(target: Path) -> Generator[Path]:
    """Yield an empty folder, which takes the name `target` when the block ends without an error.

    Where another process has published the same name meanwhile, its folder stays and this one is dropped:
    name folders by their content. On an error nothing remains; OutputError where `target` cannot be written.
    """
    with writing(target), workspace(target.parent) as part:
        yield part
        sync_tree(part)
        rename_new(part, target)


@contextlib.contextmanager
def workspace(folder: Path) -> Generator[Path]:
    """Yield a temporary folder inside `folder`; it is removed at the end, unless it was renamed.

    Folders that were made for it go too, unless something else is in them by then. What a killed process
    left behind is removed.
    """
    with writing(folder):
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            for left in folder.glob(f"{TEMPORARY}*"):
                with contextlib.suppress(OSError), locked(left, wait=False):
                    shutil.rmtree(left)
            part = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=folder))
            # mkdtemp keeps others out; a service under another user must read the result.
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


def rename_new(part: Path, target: Path) -> bool:
    """Give a folder the name `target`, durably; False where something else has that name."""
    try:
        part.rename(target)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        return False
    sync(target.parent)
    return True


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below `folder`, and itself, to the disk."""
    for inside in sorted(folder.rglob("*"), reverse=True):
        sync(inside)
    sync(folder)


def sync(path: Path) -> None:
    """Flush a file, or the names inside a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Generator[None]:
    """Keep other processes out of the same block; without `wait`, OSError where one is in it."""
    lock = _lock(path, wait=wait)
    try:
        yield
    finally:
        os.close(lock)


def _lock(path: Path, *, wait: bool) -> int:
    """Return a handle that locks a file or folder until it is closed; OSError if it is taken."""
    handle = os.open(path, os.O_RDONLY)
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
