"""The kinds of releases, each with what it can do: a line in `KINDS` and a file here.

A file holds a class that is a `Release`, and the function that opens a folder as one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Protocol

from headwater.feature_store.errors import ReleaseError
from headwater.serving.manifest import MANIFEST_NAME, Manifest


class Release(Protocol):
    """An open release, whatever it can do; a class of each kind has that and more."""

    kind: ClassVar[str]
    manifest: Manifest


def open_kind(path: Path, manifest: Manifest) -> Release:
    """Return the release at `path`, its graphs open and proven; `ReleaseError` for an unknown kind."""
    load = KINDS.get(manifest.kind)
    if load is None:
        raise ReleaseError(
            f"{path / MANIFEST_NAME}: kind: expected {' or '.join(map(repr, KINDS))}, found "
            f"{manifest.kind!r}; serve it with the Headwater that wrote it"
        )
    return load(path, manifest)


def _scorer(path: Path, manifest: Manifest) -> Release:
    from headwater.serving.kinds.scorer import load_scorer

    return load_scorer(path, manifest)


def _retriever(path: Path, manifest: Manifest) -> Release:
    from headwater.serving.kinds.retriever import load_retriever

    try:
        return load_retriever(path, manifest)
    except ModuleNotFoundError as error:
        raise ReleaseError(
            f"{path}: a retriever needs {error.name!r}; install headwater[retrieve]"
        ) from error


KINDS: Mapping[str, Callable[[Path, Manifest], Release]] = {
    "scorer": _scorer,
    "retriever": _retriever,
}
