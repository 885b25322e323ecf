"""The last step of an export: the manifest, the proof that a service can open it, and the version."""

from __future__ import annotations

from pathlib import Path

import msgspec

from headwater.pipelines.output import rename_new, sync_tree, writing
from headwater.pipelines.score import versions
from headwater.serving.manifest import MANIFEST_NAME, Manifest
from headwater.serving.release import load_release


def publish(part: Path, folder: Path, manifest: Manifest) -> Path:
    """Rename the finished `part`, its manifest in it, to the next version; return the new folder.

    The release is first opened as a service opens it, golden rows and all. Two exports at once get two
    numbers: a rename cannot replace a folder that is not empty.
    """
    with writing(folder):
        proven = False
        while True:
            version = max(versions(folder), default=0) + 1
            numbered = msgspec.structs.replace(manifest, version=version)
            content = msgspec.json.format(msgspec.json.encode(numbered), indent=1)
            (part / MANIFEST_NAME).write_bytes(content)
            sync_tree(part)
            if not proven:
                load_release(part)
                proven = True
            target = folder / str(version)
            if rename_new(part, target):
                return target
