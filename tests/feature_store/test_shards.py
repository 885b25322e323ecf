"""Shards come back as written; a changed one is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from headwater.feature_store.errors import ShardError
from headwater.feature_store.schema import EncodedColumn, RawColumn, Schema
from headwater.feature_store.shards import Arrays, ShardSet, ShardWriter


def schema_of(*lengths: int, dense: int = 0, cardinality: int = 100) -> Schema:
    codes = [f"c{i}" for i in range(len(lengths))]
    columns = [
        EncodedColumn(
            name=name, encoder="t", inputs=(name,), steps=(), cardinality=cardinality, length=n
        )
        for name, n in zip(codes, lengths, strict=True)
    ]
    columns += [
        EncodedColumn(name=f"d{i}", encoder="t", inputs=(f"d{i}",), steps=(), cardinality=0)
        for i in range(dense)
    ]
    raw = tuple(RawColumn(name=column.name, dtype="int64") for column in columns)
    return Schema(raw=raw, columns=tuple(columns))


def arrays_of(
    num_rows: int, schema: Schema, *, weight: bool = False, group: bool = False
) -> Arrays:
    rng = np.random.default_rng(num_rows)
    return Arrays(
        rng.integers(0, 100, (num_rows, schema.width), np.int32),
        rng.random((num_rows, len(schema.dense)), np.float32),
        rng.integers(0, 2, num_rows).astype(np.float32),
        rng.random(num_rows, np.float32) if weight else None,
        rng.integers(-(2**63), 2**63 - 1, num_rows) if group else None,
    )


def written(shards: ShardSet) -> Arrays:
    parts = [shards.arrays(index).present() for index in range(len(shards.shard_rows))]
    columns = zip(*parts, strict=True)
    return Arrays(**{each[0][0]: np.concatenate([array for _, array in each]) for each in columns})


@pytest.mark.parametrize(
    ("lengths", "dense", "weight", "group"),
    [
        ((1, 3, 1), 2, True, True),
        ((1,), 0, False, False),
        ((), 2, False, True),
        ((2,), 1, True, False),
    ],
)
def test_rows_come_back_as_written_whatever_the_cuts(
    tmp_path: Path, lengths: tuple[int, ...], dense: int, weight: bool, group: bool
) -> None:
    schema = schema_of(*lengths, dense=dense)
    rows = arrays_of(1000, schema, weight=weight, group=group)
    with ShardWriter(tmp_path, schema, weight=weight, group=group, shard_rows=170) as writer:
        for begin, end in [(0, 1), (1, 400), (400, 400), (400, 1000)]:
            writer.write(Arrays(**{name: array[begin:end] for name, array in rows.present()}))
    shards = ShardSet.open(tmp_path, schema)
    assert list(shards.shard_rows) == [170, 170, 170, 170, 170, 150]
    assert len(shards) == 1000
    for (name, found), (_, expected) in zip(written(shards).present(), rows.present(), strict=True):
        assert found.dtype == expected.dtype, name
        np.testing.assert_array_equal(found, expected, err_msg=name)


def test_the_manifest_states_schema_counts_and_arguments(tmp_path: Path) -> None:
    schema = schema_of(1, 4, dense=3)
    with ShardWriter(tmp_path, schema, created={"source": "logs.csv"}) as writer:
        writer.write(arrays_of(10, schema))
    manifest = ShardSet.open(tmp_path, schema).manifest
    assert manifest.schema_hash == schema.hash
    assert (manifest.width, manifest.num_dense, manifest.num_rows) == (5, 3, 10)
    assert manifest.cardinalities == {"c0": 100, "c1": 100}
    assert manifest.created == {"source": "logs.csv"}


def test_views_of_a_mapped_shard_survive_a_release(tmp_path: Path) -> None:
    schema = schema_of(1)
    rows = arrays_of(50, schema)
    with ShardWriter(tmp_path, schema) as writer:
        writer.write(rows)
    shards = ShardSet.open(tmp_path, schema)
    view = shards.arrays(0).codes
    shards.release(0)
    np.testing.assert_array_equal(view, rows.codes)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="lists open files from /proc")
def test_a_released_shard_holds_no_file_open_and_is_mapped_again(tmp_path: Path) -> None:
    schema = schema_of(1)
    rows = arrays_of(50, schema)
    with ShardWriter(tmp_path, schema, shard_rows=1) as writer:
        writer.write(rows)
    shards = ShardSet.open(tmp_path, schema)

    def open_files() -> int:
        targets = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        return sum(tmp_path in target.parents for target in targets)

    for _ in range(2):
        for index in range(50):
            np.testing.assert_array_equal(shards.arrays(index).codes, rows.codes[[index]])
            assert open_files() == 1
            shards.release(index)
            assert open_files() == 0


def test_no_rows_are_a_set_without_shards(tmp_path: Path) -> None:
    schema = schema_of(1)
    with ShardWriter(tmp_path, schema):
        pass
    assert len(ShardSet.open(tmp_path, schema)) == 0


@pytest.fixture
def two_shards(tmp_path: Path) -> tuple[Path, Schema]:
    schema = schema_of(1, dense=1)
    with ShardWriter(tmp_path, schema, shard_rows=100) as writer:
        writer.write(arrays_of(200, schema))
    return tmp_path, schema


@pytest.mark.parametrize("where", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_one_flipped_bit_is_refused_by_the_name_of_the_shard(
    two_shards: tuple[Path, Schema], where: float
) -> None:
    path, schema = two_shards
    shard = path / "shard-00001.arrow"
    content = bytearray(shard.read_bytes())
    content[int(where * (len(content) - 1))] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ShardError, match=r"shard-00001\.arrow: the shard is corrupt"):
        ShardSet.open(path, schema)


def test_a_cut_shard_is_refused_without_hashing(two_shards: tuple[Path, Schema]) -> None:
    path, schema = two_shards
    shard = path / "shard-00000.arrow"
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(ShardError, match=r"shard-00000\.arrow: the shard has \d+ bytes"):
        ShardSet.open(path, schema, verify=False)


def test_an_absent_shard_is_refused_by_name(two_shards: tuple[Path, Schema]) -> None:
    path, schema = two_shards
    (path / "shard-00001.arrow").unlink()
    with pytest.raises(ShardError, match=r"shard-00001\.arrow: the shard is absent"):
        ShardSet.open(path, schema)


def test_a_schema_changed_since_encoding_is_refused(two_shards: tuple[Path, Schema]) -> None:
    path, _ = two_shards
    with pytest.raises(ShardError, match="features have changed since"):
        ShardSet.open(path, schema_of(1, dense=1, cardinality=101))


def test_a_shard_of_another_arrangement_is_refused(two_shards: tuple[Path, Schema]) -> None:
    path, schema = two_shards
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"width": 1', '"width": 2'))
    with pytest.raises(ShardError, match=r"shard-00000\.arrow: holds 100 rows of codes"):
        ShardSet.open(path, schema, verify=False).arrays(0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; the shards are incomplete"),
        ("{", "not a manifest of shards"),
        ('{"format_version": 1}', "missing required field"),
    ],
)
def test_an_unreadable_manifest_is_refused(
    two_shards: tuple[Path, Schema], content: str | None, message: str
) -> None:
    path, schema = two_shards
    (path / "manifest.json").unlink()
    if content is not None:
        (path / "manifest.json").write_text(content)
    with pytest.raises(ShardError, match=message):
        ShardSet.open(path, schema)


def test_a_newer_format_is_refused(two_shards: tuple[Path, Schema]) -> None:
    path, schema = two_shards
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format_version": 1', '"format_version": 9'))
    with pytest.raises(ShardError, match="format version 9"):
        ShardSet.open(path, schema)


def test_a_writer_that_fails_leaves_no_manifest(tmp_path: Path) -> None:
    schema = schema_of(1)
    rows = arrays_of(20, schema)
    wrong = Arrays(np.empty((20, 7), np.int32), rows.dense, rows.label)

    def write() -> None:
        with ShardWriter(tmp_path, schema, shard_rows=5) as writer:
            writer.write(rows)
            writer.write(wrong)

    with pytest.raises(ValueError, match="broadcast"):
        write()
    with pytest.raises(ShardError, match="incomplete"):
        ShardSet.open(tmp_path, schema)


def test_a_full_disk_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "shard-00000.arrow").symlink_to("/dev/full")
    schema = schema_of(1)
    with pytest.raises(OSError, match="No space left"), ShardWriter(tmp_path, schema) as writer:
        writer.write(arrays_of(1000, schema))
