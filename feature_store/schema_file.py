"""The file of a schema, `schema.json`, and vocabularies of many keys, which lie beside it as Arrow.

`schema.json` is the canonical JSON of the schema. Where a lookup has more than `INLINE_KEYS` keys,
its `keys` are empty there, and `vocabularies` names the file that has them by column: an Arrow IPC
file of one column `key`, with its SHA-256 and number of keys. `Schema.hash` does not depend on it.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc

from headwater.feature_store import schema as fs
from headwater.feature_store.errors import ShardError
from headwater.feature_store.files import file_sha256

INLINE_KEYS = 100_000
"""Keys of one vocabulary at most that lie in `schema.json` itself."""


class KeyFile(msgspec.Struct, frozen=True):
    """The keys of one column: a file beside `schema.json`, and its content."""

    file: str
    count: int
    sha256: str


class _Contents(msgspec.Struct, frozen=True, kw_only=True):
    raw: tuple[fs.RawColumn, ...]
    columns: tuple[fs.EncodedColumn, ...]
    vocabularies: dict[str, KeyFile] = {}


def read_schema(path: Path) -> fs.Schema:
    """Return the schema in a file; msgspec's error names the path inside it.

    Raises ShardError for a file of keys beside it that is absent or changed.
    """
    contents = msgspec.json.decode(path.read_bytes(), type=_Contents)
    columns = [
        column
        if (own := contents.vocabularies.get(column.name)) is None
        else _with_keys(column, _read_keys(path.parent / own.file, own, column.name))
        for column in contents.columns
    ]
    return fs.Schema(raw=contents.raw, columns=tuple(columns))


def write_schema(schema: fs.Schema, path: Path) -> None:
    """Write a schema to a file, and vocabularies of many keys to files beside it."""
    vocabularies: dict[str, KeyFile] = {}
    columns: list[fs.EncodedColumn] = []
    for column in schema.columns:
        keys = next((step.keys for step in column.steps if isinstance(step, fs.Lookup)), ())
        if len(keys) > INLINE_KEYS:
            file = f"keys-{len(vocabularies):05d}.arrow"
            _write_keys(keys, path.parent / file)
            digest = file_sha256(path.parent / file)
            vocabularies[column.name] = KeyFile(file, len(keys), digest)
            columns.append(_with_keys(column, ()))
        else:
            columns.append(column)
    with path.open("wb") as target:
        target.writelines(fs.Schema(raw=schema.raw, columns=tuple(columns)).json())
        if vocabularies:
            # In place of the brace at the end.
            target.seek(-1, os.SEEK_CUR)
            target.write(b',"vocabularies":' + msgspec.json.encode(vocabularies) + b"}")


def _with_keys(column: fs.EncodedColumn, keys: Sequence[int | str]) -> fs.EncodedColumn:
    steps = tuple(
        fs.Lookup(keys=keys, codes=step.codes) if isinstance(step, fs.Lookup) else step
        for step in column.steps
    )
    return msgspec.structs.replace(column, steps=steps)


def _write_keys(keys: Sequence[int | str], path: Path) -> None:
    values = (
        pa.array(np.asarray(keys, np.int64))
        if isinstance(keys, array)
        else pa.array(keys, pa.large_string())
    )
    batch = pa.record_batch({"key": values})
    with ipc.new_file(path, batch.schema) as stream:
        stream.write_batch(batch)


def _read_keys(path: Path, expected: KeyFile, feature: str) -> Sequence[int | str]:
    remedy = "Delete the folder and prepare the data again."
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ShardError(
            f"{path}: the vocabulary of feature {feature!r} is absent. {remedy}"
        ) from None
    found = hashlib.sha256(content).hexdigest()
    if found != expected.sha256:
        raise ShardError(
            f"{path}: the vocabulary of feature {feature!r} is corrupt: its SHA-256 is {found[:12]}.., "
            f"the schema says {expected.sha256[:12]}... {remedy}"
        )
    keys = ipc.open_file(pa.py_buffer(content)).read_all().column("key").combine_chunks()
    if pa.types.is_integer(keys.type):
        return array("q", keys.to_numpy().tobytes())
    return tuple(keys.to_pylist())
