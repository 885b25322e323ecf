"""Manifest version 1, as releases of 0.1.0 may have it: always a scorer, with its one graph inline."""

from __future__ import annotations

from typing import Any

import msgspec

from headwater.serving.manifest import (
    FORMAT_VERSION,
    SCORE,
    About,
    Golden,
    Graph,
    Input,
    Manifest,
    Output,
)

VERSION_1 = 1


class GoldenV1(msgspec.Struct, frozen=True, kw_only=True):
    """Raw rows with the scores of the only output."""

    rows: dict[str, list[Any]]
    scores: list[float]
    tolerance: float


class ManifestV1(About, frozen=True, kw_only=True):
    """`manifest.json` of version 1."""

    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    golden: GoldenV1


def to_version_2(old: ManifestV1) -> Manifest:
    """Return the same release as a manifest of version 2 says it."""
    about: dict[str, Any] = {name: getattr(old, name) for name in About.__struct_fields__}
    golden = Golden(
        rows=old.golden.rows,
        outputs={output.name: old.golden.scores for output in old.outputs},
        tolerance=old.golden.tolerance,
    )
    graph = Graph(inputs=old.inputs, outputs=old.outputs, golden=golden)
    about["format_version"] = FORMAT_VERSION
    return Manifest(**about, kind="scorer", graphs={SCORE: graph})
