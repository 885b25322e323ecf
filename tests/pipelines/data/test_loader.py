"""The loader hands on batches and errors, and leaves no thread."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from headwater.feature_store.errors import ShardError
from headwater.feature_store.reader import Reader
from headwater.feature_store.schema import EncodedColumn, RawColumn, Schema
from headwater.feature_store.shards import Arrays, ShardSet, ShardWriter
from headwater.pipelines.loader import Loader

CPU = torch.device("cpu")
SCHEMA = Schema(
    raw=(RawColumn(name="a", dtype="int64"),),
    columns=(EncodedColumn(name="a", encoder="t", inputs=("a",), steps=(), cardinality=9),),
)


def loader_threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "headwater-loader"]


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    rows = Arrays(
        np.arange(1000, dtype=np.int32)[:, None],
        np.empty((1000, 0), np.float32),
        np.ones(1000, np.float32),
        None,
        np.arange(1000),
    )
    with ShardWriter(tmp_path, SCHEMA, group=True, shard_rows=400) as writer:
        writer.write(rows)
    return ShardSet.open(tmp_path, SCHEMA)


@pytest.fixture
def reader(shards: ShardSet) -> Reader:
    return Reader(shards, 64, seed=1, shuffle=True, buffer_rows=300)


def test_batches_are_those_of_the_reader_as_tensors(reader: Reader) -> None:
    loader = Loader(reader, CPU)
    assert len(loader) == len(reader) == 16
    for batch, expected in zip(loader.epoch(3, 2), reader.epoch(3, 2), strict=True):
        assert (batch.codes_BW.dtype, batch.dense_BD.dtype) == (torch.int32, torch.float32)
        assert batch.codes_BW.tolist() == expected.codes.tolist()
        assert batch.dense_BD.shape == (len(expected), 0)
        assert batch.label_B.dtype == torch.float32
        assert batch.weight_B is None
        assert batch.group_B is not None
        assert batch.group_B.dtype == torch.int64
    assert not loader_threads()


def test_an_error_of_the_thread_is_raised_where_batches_are_taken(shards: ShardSet) -> None:
    shard = shards.path / "shard-00002.arrow"
    shard.write_bytes(b"x" * shard.stat().st_size)
    loader = Loader(Reader(shards, 100, seed=1, shuffle=False, buffer_rows=100), CPU)
    batches = loader.epoch(0)
    for _ in range(8):
        next(batches)
    with pytest.raises(ShardError, match=r"shard-00002\.arrow"):
        next(batches)
    assert not loader_threads()


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_the_thread_ends_when_its_consumer_stops_early(reader: Reader, taken: int) -> None:
    batches = Loader(reader, CPU, prefetch=1).epoch(0)
    for _ in range(taken):
        next(batches)
    assert len(loader_threads()) == (1 if taken else 0)
    batches.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert not loader_threads()


def test_a_consumer_that_fails_leaves_no_thread(reader: Reader) -> None:
    def step() -> None:
        for _ in Loader(reader, CPU).epoch(0):
            raise RuntimeError("step")

    with pytest.raises(RuntimeError, match="step"):
        step()
    assert not loader_threads()


@pytest.mark.gpu
def test_batches_reach_the_gpu_through_pinned_memory(reader: Reader) -> None:
    for batch, expected in zip(
        Loader(reader, torch.device("cuda")).epoch(0), reader.epoch(0), strict=True
    ):
        assert batch.codes_BW.is_cuda
        assert batch.codes_BW.cpu().tolist() == expected.codes.tolist()
