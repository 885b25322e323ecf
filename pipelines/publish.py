"""A folder that is there whole or not at all: written under a temporary name, fsynced, renamed.

A process that is killed leaves a temporary folder, which the next one removes. It tells leavings from work in
progress by a lock that the kernel releases with the process, never by age.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from headwater.feature_store.errors import OutputError

PREFIX = ".tmp-"
_LOCK = ".lock"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def publish(target: Path) -> Generator[Path]:
    """Give an empty folder beside `target`, which takes that name when the block ends without an error.

    Where another process has published the same name meanwhile, its folder stays and this one is dropped:
    name folders by their content. On an error nothing remains. Raises OutputError where the disk is full or
    may not be written.
    """
    with output_errors(target):
        made = [each for each in target.parents if not each.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        clean(target.parent)
        folder = target.parent / f"{PREFIX}{target.name}-{secrets.token_hex(4)}"
        lock = _lock(folder)
        try:
            folder.mkdir()
            yield folder
            sync(folder)
            with suppress(FileExistsError):
                _rename(folder, target)
            _sync_file(target.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            _lock_path(folder).unlink(missing_ok=True)
            os.close(lock)
            if not target.exists():
                for parent in made:
                    with suppress(OSError):
                        parent.rmdir()


@contextmanager
def output_errors(path: Path) -> Generator[None]:
    """Raise OutputError, naming `path`, where writing fails for want of space or permission."""
    try:
        yield
    except OSError as error:
        # Arrow keeps the number in the text of its own errors only.
        number = error.errno or next(
            (n for n in _FULL if f"errno {n}]" in str(error).lower()), None
        )
        if number in _FULL:
            raise OutputError(
                f"{path}: no space left on the device; nothing was kept. Free some, or choose another folder."
            ) from error
        if number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise OutputError(f"{path}: cannot be written: {error}.") from error
        raise


def clean(parent: Path) -> None:
    """Remove the temporary folders in `parent` whose process has ended."""
    for lock_path in parent.glob(f"{PREFIX}*{_LOCK}"):
        try:
            lock = os.open(lock_path, os.O_RDWR)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(
                lock_path.with_name(lock_path.name.removesuffix(_LOCK)), ignore_errors=True
            )
            lock_path.unlink(missing_ok=True)
        except BlockingIOError:
            pass
        finally:
            os.close(lock)


def sync(folder: Path) -> None:
    """Flush every file and folder below `folder`, and itself, to the disk."""
    for inside in sorted(folder.rglob("*"), reverse=True):
        _sync_file(inside)
    _sync_file(folder)


def _rename(folder: Path, target: Path) -> None:
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise FileExistsError(target) from error
        raise


def _lock_path(folder: Path) -> Path:
    return folder.with_name(folder.name + _LOCK)


def _lock(folder: Path) -> int:
    """Return a locked descriptor; taken before the folder exists, so that `clean` never sees it bare."""
    path = _lock_path(folder)
    while True:
        lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            same = os.path.samestat(os.fstat(lock), path.stat())
        except FileNotFoundError:
            same = False
        if same:
            return lock
        # `clean` of another process took the file between the two calls.
        os.close(lock)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
