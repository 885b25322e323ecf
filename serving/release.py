"""Opens a release folder: nothing becomes ready before its files, graph and golden rows are proven."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import msgspec
import numpy as np

from headwater.feature_store.errors import ReleaseError
from headwater.feature_store.files import file_sha256
from headwater.feature_store.schema import Dtype
from headwater.serving.errors import RequestError
from headwater.serving.kinds.scorer import Scorer, open_session
from headwater.serving.manifest import FORMAT_VERSION, MANIFEST_NAME, MODEL_NAME, Manifest
from headwater.serving.signature import columns_to_arrays

GRAPH_TYPES: dict[Dtype, str] = {
    "int64": "tensor(int64)",
    "double": "tensor(double)",
    "string": "tensor(string)",
}
_AGAIN = "export the release again"


def load_release(path: Path) -> Scorer:
    """Return the scorer of the release at `path`.

    Checks the manifest, the SHA-256 of each file, the inputs and output of the graph, and the golden
    rows. Raises `ReleaseError` that says which of them failed.
    """
    try:
        manifest = read_manifest(path)
        _check_files(path, manifest)
        scorer = _open(path, manifest)
    except OSError as error:
        raise ReleaseError(f"{path}: cannot be read: {error}; {_AGAIN}") from error
    _check_golden(path, scorer)
    return scorer


def read_manifest(path: Path) -> Manifest:
    """Return the manifest of the release at `path`, of a format that this version can read."""
    file = path / MANIFEST_NAME
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise ReleaseError(f"{path}: expected a release, found no {MANIFEST_NAME}") from None
    try:
        # The format first: a later one may have other fields.
        version = msgspec.json.decode(data, type=_Format).format_version
        if version != FORMAT_VERSION:
            raise ReleaseError(
                f"{file}: format_version: expected {FORMAT_VERSION}, found {version}; "
                "serve it with the Headwater that wrote it, or export it again"
            )
        return msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ReleaseError(f"{file}: {error}; {_AGAIN}") from error


class _Format(msgspec.Struct):
    format_version: int


def _check_files(path: Path, manifest: Manifest) -> None:
    if MODEL_NAME not in manifest.files:
        raise ReleaseError(f"{path / MANIFEST_NAME}: files: {MODEL_NAME} is not listed; {_AGAIN}")
    for name, expected in manifest.files.items():
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ReleaseError(
                f"{path / MANIFEST_NAME}: files: {name!r} is outside the release; {_AGAIN}"
            )
        try:
            found = file_sha256(path / name)
        except FileNotFoundError:
            raise ReleaseError(
                f"{path / name}: listed in the manifest, not found; {_AGAIN}"
            ) from None
        if found != expected:
            raise ReleaseError(
                f"{path / name}: corrupt: expected SHA-256 {expected}, found {found}; "
                f"copy the file again, or {_AGAIN}"
            )


def _open(path: Path, manifest: Manifest) -> Scorer:
    try:
        session = open_session(path / MODEL_NAME)
    except Exception as error:
        # onnxruntime raises its own types, of which not all are public.
        raise ReleaseError(
            f"{path / MODEL_NAME}: onnxruntime cannot open it: {error}; {_AGAIN}"
        ) from error
    names = [output.name for output in manifest.outputs]
    if len(names) != 1 or names[0] not in {node.name for node in session.get_outputs()}:
        raise ReleaseError(
            f"{path / MANIFEST_NAME}: outputs: expected one output of the graph, found {names}; "
            f"{_AGAIN}"
        )
    scorer = Scorer(session, manifest)
    expected = {name: GRAPH_TYPES[t.dtype] for name, t in scorer.signature.tensors.items()}
    found = {node.name: node.type for node in session.get_inputs()}
    if found != expected:
        differ = sorted(found.items() ^ expected.items())
        raise ReleaseError(
            f"{path / MODEL_NAME}: its inputs are not those of the manifest: {differ}; {_AGAIN}"
        )
    return scorer


def _check_golden(path: Path, scorer: Scorer) -> None:
    golden = scorer.manifest.golden
    expected = np.array(golden.scores, np.float64)
    if not expected.size:
        raise ReleaseError(f"{path / MANIFEST_NAME}: golden: expected rows, found none; {_AGAIN}")
    try:
        found = scorer.score(columns_to_arrays(scorer.manifest.inputs, golden.rows))
    except RequestError as error:
        raise ReleaseError(f"{path / MANIFEST_NAME}: golden: {error}; {_AGAIN}") from error
    except Exception as error:
        raise ReleaseError(
            f"{path / MODEL_NAME}: onnxruntime cannot score the golden rows: {error}; {_AGAIN}"
        ) from error
    if found.shape != expected.shape:
        raise ReleaseError(
            f"{path / MODEL_NAME}: golden rows: expected {expected.size} scores, found "
            f"{found.size}; {_AGAIN}"
        )
    difference = np.abs(found - expected)
    worst = int(np.argmax(np.where(np.isnan(difference), np.inf, difference)))
    if not difference[worst] <= golden.tolerance:
        raise ReleaseError(
            f"{path}: golden row {worst}: expected score {expected[worst]:.9g}, found "
            f"{found[worst]:.9g}, tolerance {golden.tolerance:g}; the graph does not compute here "
            "what it did at export: compare the onnxruntime versions, or export again"
        )
