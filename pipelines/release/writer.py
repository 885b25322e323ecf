"""The last step of an export: the manifest, the proof that a service can open it, and the version."""

from __future__ import annotations

from pathlib import Path

import msgspec

from headwater.feature_store.errors import OutputError
from headwater.pipelines.output import locked, rename_new, sync_tree, write_whole, writing
from headwater.serving.manifest import MANIFEST_NAME, Manifest
from headwater.serving.release import load_release, versions

LAST_NAME = ".last-version"
"""File of a model's folder with the last version that was given; services pass over dotted names."""


def publish(part: Path, folder: Path, manifest: Manifest) -> Path:
    """Rename the finished `part`, its manifest in it, to the next version; return the new folder.

    The release is first opened as a service opens it, golden rows and all. Two exports at once get two
    numbers, and no number is given twice, even where its release was deleted.
    """
    with writing(folder):
        _write_manifest(part, manifest)
        load_release(part)
        with locked(folder):
            while True:
                version = max([*versions(folder), _last_version(folder)]) + 1
                _write_manifest(part, msgspec.structs.replace(manifest, version=version))
                # Before the rename: whoever is killed between them leaves a gap, not a number to reuse.
                write_whole(folder / LAST_NAME, f"{version}\n".encode())
                target = folder / str(version)
                if rename_new(part, target):
                    return target


def _write_manifest(part: Path, manifest: Manifest) -> None:
    """Write the manifest, and have the whole folder on the disk."""
    content = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    (part / MANIFEST_NAME).write_bytes(content)
    sync_tree(part)


def _last_version(folder: Path) -> int:
    """Return the last number that was given in a model's folder, 0 where none was."""
    path = folder / LAST_NAME
    try:
        return int(path.read_bytes())
    except FileNotFoundError:
        return 0
    except ValueError:
        raise OutputError(
            f"{path}: expected the number of the last version that was given. "
            "Write it there, or delete the file; numbers then go on from the highest that is there."
        ) from None
