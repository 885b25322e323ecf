"""Prepared data: encoded shards of each split, the schema that encoded them, and what is known of the rows.

prepared/<key>/
    prepared.json       what made it, and the SHA-256 of every file below but vocabularies and shards
    schema.json         the fitted features
    keys-*.arrow        vocabularies that are too large for schema.json, which has their SHA-256
    statistics.json     rows, label rate, missing and unknown values
    sample.parquet      up to 4096 raw rows of the validation split, in the encoders' normal form
    items.arrow         of a log: the items with their columns, in the order of their rows
    train/ valid/ test/ shards, each with its manifest.json
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from headwater.feature_store.errors import ShardError
from headwater.feature_store.files import file_sha256
from headwater.feature_store.schema import Schema
from headwater.feature_store.schema_file import read_schema
from headwater.feature_store.shards import MANIFEST, ShardSet, read_manifest

FORMAT_VERSION = 2
ABOUT, SCHEMA, STATISTICS, SAMPLE = (
    "prepared.json",
    "schema.json",
    "statistics.json",
    "sample.parquet",
)
ITEMS = "items.arrow"

SplitName = Literal["train", "valid", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "valid", "test")


class ColumnCounts(msgspec.Struct, frozen=True):
    """Rows in which a feature was missing, and in which it was (a list: held) a value unseen in training."""

    missing: int
    unknown: int


class SplitStatistics(msgspec.Struct, frozen=True):
    """Counts of the rows of one split."""

    rows: int
    positives: int
    label_rate: float
    columns: dict[str, ColumnCounts]


class Statistics(msgspec.Struct, frozen=True):
    """Counts and time range of all rows."""

    splits: dict[SplitName, SplitStatistics]
    time_range_ms: tuple[int, int] | None
    """First and last event time of the training rows, UTC; None where the job names no time."""


class About(msgspec.Struct, frozen=True, kw_only=True):
    """Origin of the folder: format, splits, files, and the settings and inputs that made them."""

    format_version: int
    splits: tuple[SplitName, ...]
    files: dict[str, str]
    """SHA-256 of each file but vocabularies, whose hashes are in the schema, and shards, in the manifests."""
    created: dict[str, Any]
    """The `data` and `features` sections, and the input files with size and hash or time of change."""


@dataclass(frozen=True)
class Prepared:
    """Prepared data in a folder; `load_prepared` has checked all but the shards."""

    path: Path
    schema: Schema
    splits: tuple[SplitName, ...]
    """Splits that have rows: train and valid always, test where the job has one."""

    def dataset(self, split: SplitName, *, verify: bool = True) -> ShardSet:
        """Return the encoded rows of a split; with `verify` the SHA-256 of each shard is computed now.

        Raises ShardError naming a shard that is absent, changed or encoded by another schema. Of several
        processes on one machine one is enough to verify.
        """
        assert split in self.splits, f"{self.path} has no split {split!r}"
        return ShardSet.open(self.path / split, self.schema, verify=verify)

    @cached_property
    def statistics(self) -> Statistics:
        """Counts of rows, labels, missing and unknown values, and the time range of the training rows."""
        return msgspec.json.decode((self.path / STATISTICS).read_bytes(), type=Statistics)

    @property
    def sample(self) -> Path:
        """Parquet file of real raw rows (up to 4096, of valid): all raw input columns and the label."""
        return self.path / SAMPLE

    @property
    def items(self) -> Path:
        """Arrow file of the items of a log: name, columns of `data.items`, training events."""
        return self.path / ITEMS


def write_about(folder: Path, splits: tuple[SplitName, ...], created: Mapping[str, Any]) -> None:
    """Write `prepared.json` over the files that are in the folder now."""
    names = [SCHEMA, STATISTICS, SAMPLE, *(f"{split}/{MANIFEST}" for split in splits)]
    names += [ITEMS] if (folder / ITEMS).exists() else []
    about = About(
        format_version=FORMAT_VERSION,
        splits=splits,
        files={name: file_sha256(folder / name) for name in names},
        created=dict(created),
    )
    text = msgspec.json.format(msgspec.json.encode(about), indent=2)
    (folder / ABOUT).write_bytes(text)


def load_prepared(path: Path) -> Prepared:
    """Return the prepared data in a folder; ShardError names a file that is absent, corrupt or not of it.

    The shards themselves are hashed when a split is opened: `Prepared.dataset`.
    """
    try:
        about = msgspec.json.decode((path / ABOUT).read_bytes(), type=About)
    except (FileNotFoundError, NotADirectoryError):
        remedy = _REMEDY if path.exists() else "Run prepare."
        raise ShardError(f"{path}: not prepared data: it has no {ABOUT}. {remedy}") from None
    except msgspec.DecodeError as error:
        raise ShardError(f"{path / ABOUT}: cannot be read: {error}. {_REMEDY}") from None
    if about.format_version != FORMAT_VERSION:
        raise ShardError(
            f"{path}: prepared data of format {about.format_version}, this Headwater reads {FORMAT_VERSION}. "
            f"Prepare and train again, or use the version of Headwater that made it."
        )
    for name, expected in about.files.items():
        if not (path / name).exists():
            raise ShardError(f"{path / name}: the file is absent. {_REMEDY}")
        found = file_sha256(path / name)
        if found != expected:
            raise ShardError(
                f"{path / name}: the file is corrupt: its SHA-256 is {found[:12]}.., {ABOUT} says "
                f"{expected[:12]}... {_REMEDY}"
            )
    schema = read_schema(path / SCHEMA)
    for split in about.splits:
        if read_manifest(path / split).schema_hash != schema.hash:
            raise ShardError(f"{path / split}: encoded by another schema than {SCHEMA}. {_REMEDY}")
    return Prepared(path, schema, about.splits)


def time_text(ms: int) -> str:
    """Return a UTC time in ms since 1970 to the second, as 2024-05-01 10:20:30, in any year."""
    return str(np.datetime64(ms // 1000, "s")).replace("T", " ")


_REMEDY = "Delete the folder and prepare the data again."
