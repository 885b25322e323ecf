"""Release folders: found by number, and open only once files, graphs and golden rows are proven."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TypeVar, overload

import msgspec

from headwater.feature_store.errors import ReleaseError
from headwater.feature_store.files import file_sha256
from headwater.serving.kinds import Release, open_kind
from headwater.serving.manifest import AGAIN, FORMAT_VERSION, MANIFEST_NAME, Manifest
from headwater.serving.manifest_v1 import VERSION_1, ManifestV1, to_version_2

R = TypeVar("R", bound=Release)


@overload
def load_release(path: Path) -> Release: ...
@overload
def load_release(path: Path, kind: type[R]) -> R: ...
def load_release(path: Path, kind: type[Release] | None = None) -> Release:
    """Return the release at `path`, open and proven; of `kind`, where one is asked for.

    Checks the manifest, the SHA-256 of each file, the inputs and outputs of the graphs, and the golden
    rows. Raises `ReleaseError` that says which of them failed.
    """
    try:
        manifest = read_manifest(path)
        if kind is not None and manifest.kind != kind.kind:
            raise ReleaseError(
                f"{path / MANIFEST_NAME}: kind: expected {kind.kind!r}, found {manifest.kind!r}"
            )
        _check_files(path, manifest)
        return open_kind(path, manifest)
    except OSError as error:
        raise ReleaseError(f"{path}: cannot be read: {error}; {AGAIN}") from error


def read_manifest(path: Path) -> Manifest:
    """Return the manifest of the release at `path`, whatever version of the format it has."""
    file = path / MANIFEST_NAME
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise ReleaseError(f"{path}: expected a release, found no {MANIFEST_NAME}") from None
    try:
        # The format first: a later one may have other fields.
        version = msgspec.json.decode(data, type=_Format).format_version
        if version == FORMAT_VERSION:
            return msgspec.json.decode(data, type=Manifest)
        if version == VERSION_1:
            return to_version_2(msgspec.json.decode(data, type=ManifestV1))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ReleaseError(f"{file}: {error}; {AGAIN}") from error
    raise ReleaseError(
        f"{file}: format_version: expected {VERSION_1} or {FORMAT_VERSION}, found {version}; "
        "serve it with the Headwater that wrote it, or export it again"
    )


def is_version(name: str) -> bool:
    """Return whether a text is a version: a decimal integer without leading zeros, below 10^18."""
    return name.isascii() and name.isdigit() and len(name) <= 18 and str(int(name)) == name


def versions(folder: Path) -> list[int]:
    """Return the versions that a model's folder holds, in any order; none where there is no such folder."""
    if not folder.is_dir():
        return []
    return [int(each.name) for each in folder.iterdir() if is_version(each.name)]


class _Format(msgspec.Struct):
    format_version: int


def _check_files(path: Path, manifest: Manifest) -> None:
    needed = [graph.file for graph in manifest.graphs.values()]
    for name in (*needed, *manifest.artefacts.values()):
        if name not in manifest.files:
            raise ReleaseError(f"{path / MANIFEST_NAME}: files: {name} is not listed; {AGAIN}")
    for name, expected in manifest.files.items():
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ReleaseError(
                f"{path / MANIFEST_NAME}: files: {name!r} is outside the release; {AGAIN}"
            )
        try:
            found = file_sha256(path / name)
        except FileNotFoundError:
            raise ReleaseError(
                f"{path / name}: listed in the manifest, not found; {AGAIN}"
            ) from None
        if found != expected:
            raise ReleaseError(
                f"{path / name}: corrupt: expected SHA-256 {expected}, found {found}; "
                f"copy the file again, or {AGAIN}"
            )
