"""The releases folder, watched: the newest versions of each model are kept ready.

A release is `<releases>/<model>/<version>/`. It appears by a rename, so a name that starts with '.' or ends
in '.tmp' is one that is still being written. A thread of its own looks every half second and loads what is
new; the event loop only reads the latest snapshot, which is replaced as a whole. A version that was
replaced stays alive through the requests that hold it.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
import weakref
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import structlog

from headwater.feature_store.errors import ReleaseError
from headwater.serving.errors import KindError, NotReadyError, UnknownError, shorten, unknown_name
from headwater.serving.kinds import Release
from headwater.serving.metrics import Metrics
from headwater.serving.release import is_version, load_release

log = structlog.get_logger(__name__)

SCAN_EVERY_S = 0.5

R = TypeVar("R", bound=Release)
Stamp = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Model:
    """The versions of a model that are loaded, newest first, and those that were refused."""

    versions: Mapping[int, Release] = field(default_factory=dict)
    refused: frozenset[int] = frozenset()

    @property
    def newest(self) -> int | None:
        """The version that answers where none is named."""
        return next(iter(self.versions), None)


class Registry:
    """The releases of one folder; `keep_versions` of each model are loaded, the newest that are ready."""

    def __init__(self, folder: Path, *, keep_versions: int, metrics: Metrics) -> None:
        self._folder = folder
        self._keep_versions = keep_versions
        self._metrics = metrics
        self._models: dict[str, Model] = {}
        self._stamps: dict[tuple[str, int], Stamp] = {}
        self._unreadable: dict[Path, str] = {}
        self._scanned = False
        self._has_loaded = False
        self._dropped: list[weakref.ref[Release]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="headwater-registry", daemon=True)

    def start(self) -> None:
        """Begin to load and watch; returns at once."""
        self._thread.start()

    def close(self) -> None:
        """Stop watching; a release that is being loaded is waited for a little, then left."""
        self._stop.set()
        self._thread.join(timeout=2.0)

    def is_ready(self) -> bool:
        """Return whether the folder was read once and a model in it can be served."""
        return self._scanned and any(model.versions for model in self._models.values())

    @property
    def models(self) -> Mapping[str, Model]:
        """The models in the folder, by name."""
        return self._models

    def get(self, name: str, version: int | None, kind: type[R]) -> tuple[Model, R]:
        """Return a model and its release as `find`; `KindError` where the release is none of `kind`."""
        model, release = self.find(name, version)
        if not isinstance(release, kind):
            raise KindError(name, found=release.kind, expected=kind.kind)
        return model, release

    def find(self, name: str, version: int | None) -> tuple[Model, Release]:
        """Return a model and its release of a version, its newest where none is named, of one look.

        Raises `UnknownError` for a model that is not in the folder or a version that is not loaded, and
        `NotReadyError` where the model has no version that is ready.
        """
        models = self._models
        model = models.get(name)
        if model is None:
            if not self._scanned:
                raise NotReadyError("the releases are being loaded; try again")
            raise UnknownError(unknown_name("model", "model", name, models))
        if version is None:
            version = model.newest
            if version is None:
                refused = ", ".join(map(str, sorted(model.refused)))
                raise NotReadyError(
                    f"model {name!r} has no version that is ready; refused, as the log explains: {refused}"
                )
        release = model.versions.get(version)
        if release is None:
            if version in model.refused:
                raise NotReadyError(
                    f"model {name!r}: version {version} was refused, as the log explains"
                )
            loaded = ", ".join(map(str, model.versions)) or "none"
            raise UnknownError(
                f"model {name!r}: version {shorten(str(version), 30)} is not loaded; loaded: {loaded} "
                f"(the newest {self._keep_versions} are kept)"
            )
        return model, release

    def _watch(self) -> None:
        while not self._stop.is_set():
            try:
                self.scan()
            except OSError as error:
                # What is loaded goes on serving while the folder cannot be read.
                log.error(
                    "releases folder cannot be read", folder=str(self._folder), error=str(error)
                )
            except Exception:
                log.exception("looking for releases failed")
            self._stop.wait(SCAN_EVERY_S)

    def scan(self) -> None:
        """Load what is new, drop what is gone or too old; blocks while a release loads."""
        found, unreadable = _releases(self._folder)
        for path in unreadable.keys() - self._unreadable.keys():
            log.error("folder cannot be read", folder=str(path), error=unreadable[path])
        self._unreadable = unreadable
        for name in found.keys() | self._models.keys():
            self._update(name, found.get(name, {}))
        self._scanned = True
        self._give_back_memory()

    def _give_back_memory(self) -> None:
        """Return to the system what a load took for a while, and what a dropped version held."""
        kept = [release for release in self._dropped if release() is not None]
        if self._has_loaded or len(kept) < len(self._dropped):
            self._has_loaded = False
            self._dropped = kept
            trim()

    def _update(self, name: str, stamps: dict[int, Stamp]) -> None:
        old = self._models.get(name, Model())
        same = {v for v, stamp in stamps.items() if self._stamps.get((name, v)) == stamp}
        versions: dict[int, Release] = {}
        refused: set[int] = set()
        for version in sorted(stamps, reverse=True):
            if len(versions) == self._keep_versions or self._stop.is_set():
                break
            if version in same and version in old.versions:
                versions[version] = old.versions[version]
            elif version in same and version in old.refused:
                refused.add(version)
            else:
                self._stamps[name, version] = stamps[version]
                release = self._load(name, version)
                if release is None:
                    refused.add(version)
                    continue
                versions[version] = release
                # Served before the older ones are looked at.
                self._exchange(name, Model({**old.versions, **versions}, frozenset(refused)))
        for version in old.versions.keys() - versions.keys():
            self._metrics.release_dropped(name, version)
            self._dropped.append(weakref.ref(old.versions[version]))
            log.info("release dropped", model=name, version=version)
        # A refused version keeps its stamp, so that it is tried again only where it changed.
        for key in [key for key in self._stamps if key[0] == name and key[1] not in stamps]:
            del self._stamps[key]
        self._exchange(name, Model(versions, frozenset(refused)) if stamps else None)

    def _exchange(self, name: str, model: Model | None) -> None:
        models = dict(self._models)
        before = models.pop(name, Model())
        if model is not None:
            ordered = dict(sorted(model.versions.items(), reverse=True))
            models[name] = model = Model(ordered, model.refused)
        newest = None if model is None else model.newest
        self._models = models
        if newest != before.newest:
            self._metrics.version_served(name, newest)
            log.info("version served", model=name, version=newest, before=before.newest)

    def _load(self, name: str, version: int) -> Release | None:
        """Return the release, or None where the release is refused."""
        path = self._folder / name / str(version)
        self._has_loaded = True
        start_s = time.perf_counter()
        try:
            release = load_release(path)
            manifest = release.manifest
            if (manifest.name, manifest.version) != (name, version):
                raise ReleaseError(
                    f"{path}: expected the release {name}/{version}, found that of {manifest.name}/"
                    f"{manifest.version}; put it into the folder that its manifest names"
                )
        except Exception as error:
            # Whatever a release is made of, the others are served.
            self._metrics.release_refused(name)
            log.error(
                "release refused",
                model=name,
                version=version,
                error=str(error),
                exc_info=not isinstance(error, ReleaseError),
            )
            return None
        seconds = time.perf_counter() - start_s
        self._metrics.release_loaded(name, version, seconds)
        log.info("release loaded", model=name, version=version, seconds=round(seconds, 3))
        return release


def _releases(folder: Path) -> tuple[dict[str, dict[int, Stamp]], dict[Path, str]]:
    """Return the versions of each model, and why a folder of a model or of a release cannot be read.

    A version comes with a stamp that changes when a file of the release does.
    """
    found: dict[str, dict[int, Stamp]] = {}
    unreadable: dict[Path, str] = {}
    for model in folder.iterdir():
        if not _is_named(model):
            continue
        versions: dict[int, Stamp] = {}
        with _noted(unreadable, model):
            for release in model.iterdir():
                if _is_named(release) and is_version(release.name):
                    with _noted(unreadable, release):
                        versions[int(release.name)] = _stamp(release)
        if versions:
            found[model.name] = versions
    return found, unreadable


def trim() -> None:
    """Have the C library return free memory to the system, where it is glibc.

    It keeps most of what was small, and a vocabulary of strings is small pieces: those of a version that
    was dropped would stay resident.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def _noted(unreadable: dict[Path, str], path: Path) -> Generator[None, None, None]:
    """Keep an unreadable folder, as `lost+found` is, from ending the look at the others."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        # A release may go while it is looked at; it is then not there.
        pass
    except OSError as error:
        unreadable[path] = str(error)


def _stamp(release: Path) -> Stamp:
    """Return number of files, bytes and latest change: a copy in progress differs from the whole."""
    files = [entry.stat() for entry in os.scandir(release)]
    newest = max((file.st_mtime_ns for file in files), default=0)
    return len(files), sum(file.st_size for file in files), newest


def _is_named(path: Path) -> bool:
    return not path.name.startswith(".") and not path.name.endswith(".tmp")
