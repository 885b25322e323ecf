"""A reader loses no row, repeats none, and takes no step per row."""

from __future__ import annotations

import cProfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.feature_store.reader import NumpyBatch, Reader
from headwater.feature_store.schema import EncodedColumn, RawColumn, Schema
from headwater.feature_store.shards import Arrays, ShardSet, ShardWriter

SCHEMA = Schema(
    raw=(RawColumn(name="a", dtype="int64"), RawColumn(name="x", dtype="double")),
    columns=(
        EncodedColumn(name="a", encoder="t", inputs=("a",), steps=(), cardinality=9, length=2),
        EncodedColumn(name="x", encoder="t", inputs=("x",), steps=(), cardinality=0),
    ),
)


def shards_of(folder: Path, num_rows: int, shard_rows: int) -> ShardSet:
    """Row i holds i in every column, so that a batch tells which rows it is made of."""
    number = np.arange(num_rows)
    rows = Arrays(
        np.stack([number, -number], axis=1).astype(np.int32),
        number[:, None].astype(np.float32),
        (number % 2).astype(np.float32),
        number.astype(np.float32),
        number.astype(np.int64),
    )
    with ShardWriter(folder, SCHEMA, weight=True, group=True, shard_rows=shard_rows) as writer:
        writer.write(rows)
    return ShardSet.open(folder, SCHEMA, verify=False)


def rows_of(batches: Sequence[NumpyBatch]) -> list[int]:
    for batch in batches:
        assert batch.group is not None
        assert batch.weight is not None
        np.testing.assert_array_equal(batch.codes[:, 0], batch.group)
        np.testing.assert_array_equal(batch.codes[:, 1], -batch.group)
        np.testing.assert_array_equal(batch.dense[:, 0], batch.group)
        np.testing.assert_array_equal(batch.label, batch.group % 2)
        np.testing.assert_array_equal(batch.weight, batch.group)
    return [int(row) for batch in batches for row in batch.codes[:, 0]]


sizes = st.fixed_dictionaries(
    {
        "num_rows": st.integers(0, 300),
        "shard_rows": st.integers(1, 120),
        "batch_size": st.integers(1, 90),
        "buffer_rows": st.integers(1, 400),
        "world_size": st.integers(1, 5),
        "shuffle": st.booleans(),
        "seed": st.integers(0, 3),
    }
)


@given(sizes)
@settings(max_examples=80)
def test_ranks_together_take_every_row_once_in_equally_many_steps(size: dict[str, int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shards = shards_of(Path(folder), size["num_rows"], size["shard_rows"])

        def batches(rank: int, world_size: int) -> list[NumpyBatch]:
            reader = Reader(
                shards,
                size["batch_size"],
                seed=size["seed"],
                shuffle=bool(size["shuffle"]),
                buffer_rows=size["buffer_rows"],
                rank=rank,
                world_size=world_size,
            )
            found = list(reader.epoch(1))
            assert len(found) == len(reader)
            return found

        ranks = [batches(rank, size["world_size"]) for rank in range(size["world_size"])]
        alone = batches(0, 1)
        for step, whole in enumerate(alone):
            parts = [each[step] for each in ranks]
            assert rows_of(parts) == rows_of([whole])
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert sorted(rows_of(alone)) == list(range(size["num_rows"]))
        if not size["shuffle"]:
            assert rows_of(alone) == list(range(size["num_rows"]))


@given(sizes, st.integers(0, 400))
@settings(max_examples=60)
def test_an_epoch_resumed_is_the_tail_of_an_uninterrupted_one(
    size: dict[str, int], start: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        reader = Reader(
            shards_of(Path(folder), size["num_rows"], size["shard_rows"]),
            size["batch_size"],
            seed=size["seed"],
            shuffle=bool(size["shuffle"]),
            buffer_rows=size["buffer_rows"],
            rank=size["world_size"] - 1,
            world_size=size["world_size"],
        )
        whole = list(reader.epoch(2))
        tail = list(reader.epoch(2, start_batch=start))
        assert [rows_of([batch]) for batch in tail] == [rows_of([batch]) for batch in whole[start:]]


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    return shards_of(tmp_path, 5000, 1300)


def test_the_same_seed_repeats_and_epochs_and_seeds_differ(shards: ShardSet) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        reader = Reader(shards, 128, seed=seed, shuffle=True, buffer_rows=1000)
        return rows_of(list(reader.epoch(epoch)))

    assert order(7, 0) == order(7, 0)
    assert order(7, 0) != order(7, 1)
    assert order(7, 0) != order(8, 0)


def test_a_buffer_mixes_rows_of_the_whole_data(shards: ShardSet) -> None:
    reader = Reader(shards, 500, seed=1, shuffle=True, buffer_rows=1000)
    for batch in reader.epoch(0):
        places = np.histogram(batch.codes[:, 0], bins=10, range=(0, 5000))[0]
        assert (places > 0).sum() >= 8
        assert abs(np.corrcoef(batch.codes[:, 0], np.arange(len(batch)))[0, 1]) < 0.2


def test_blocks_and_every_buffer_are_permuted_by_streams_of_their_own(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = np.random.default_rng
    streams: list[int] = []

    def recorded(seed: list[int]) -> np.random.Generator:
        streams.append(make(seed).bit_generator.state["state"]["state"])
        return make(seed)

    monkeypatch.setattr(np.random, "default_rng", recorded)
    reader = Reader(shards, 500, seed=1, shuffle=True, buffer_rows=1000)
    for epoch in range(3):
        assert sorted(rows_of(list(reader.epoch(epoch)))) == list(range(5000))
    assert len(streams) > 3 * 4
    assert len(set(streams)) == len(streams)


def test_batches_are_the_callers_own(shards: ShardSet) -> None:
    for shuffle in (True, False):
        reader = Reader(shards, 100, seed=1, shuffle=shuffle)
        first, second, *_ = reader.epoch(0)
        before = second.codes.copy()
        first.codes[:] = 0
        np.testing.assert_array_equal(second.codes, before)
        assert first.codes.flags.writeable


def test_a_resumed_epoch_does_not_touch_the_shards_before_it(tmp_path: Path) -> None:
    shards = shards_of(tmp_path, 1000, 100)
    (tmp_path / "shard-00000.arrow").unlink()
    reader = Reader(shards, 100, seed=1, shuffle=False, buffer_rows=100)
    assert rows_of(list(reader.epoch(0, start_batch=1))) == list(range(100, 1000))


@pytest.mark.parametrize("shuffle", [True, False])
def test_calls_of_an_epoch_do_not_grow_with_rows(tmp_path: Path, shuffle: bool) -> None:
    def calls(num_rows: int) -> int:
        shards = shards_of(tmp_path / str(num_rows), num_rows, 200_000)
        reader = Reader(shards, num_rows // 20, seed=1, shuffle=shuffle)
        for _ in reader.epoch(0):
            pass
        with cProfile.Profile() as profile:
            num_batches = sum(1 for _ in reader.epoch(1))
        assert num_batches == 20
        profile.create_stats()
        return sum(total for _, total, *_ in profile.stats.values())  # pyright: ignore[reportAttributeAccessIssue]

    assert calls(160_000) == calls(2_000)
