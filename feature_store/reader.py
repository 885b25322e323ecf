"""Batches of encoded rows from shards: shuffled at two levels, split over ranks, resumable; numpy only.

The order of an epoch is a pure function of (seed, epoch). Blocks, ranges of neighbouring rows, are permuted
over all shards; as many of them as fill a buffer are read together, and the rows of the buffer are permuted.
The buffers one behind the other are the epoch's rows; global batches are cut from it, and each rank takes
its share of every batch. So all ranks take equally many steps, no row is taken twice or left out, and the
batches of one process are the batches of many put together.

No step is taken per row in Python: a batch costs one gather an array, a buffer one gather a shard in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from headwater.feature_store.shards import Arrays, ShardSet

MAX_BLOCK_ROWS = 1 << 15
BLOCKS_PER_BUFFER = 64
"""At least so many places of the data meet in a buffer."""

NumpyBatch = Arrays
"""A batch; its arrays are the caller's own."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """Blocks in the order of an epoch, and where each buffer begins among blocks and among rows."""

    shard: NDArray[np.int64]
    start: NDArray[np.int64]
    length: NDArray[np.int64]
    first_block: NDArray[np.int64]
    """Of each buffer, and the number of blocks behind the last one."""
    first_row: NDArray[np.int64]
    """Of each buffer in the epoch, and the number of rows behind the last one."""


BUFFER_ROWS = 1_000_000


class Reader:
    """Gives the batches of an epoch over a set of shards.

    `batch_size` counts the rows of a step over all ranks; rank r of n takes its near-equal part of each batch
    (sizes differ by at most 1, and a last batch of fewer rows than ranks leaves some with none).
    `(rank, world_size)` serves processes and loader workers alike: worker w of W on rank r is
    `rank * W + w` of `world_size * W`. Memory: `buffer_rows` rows (and up to a block more).
    Rows that are `numbered` have their number in the data.
    """

    def __init__(
        self,
        shards: ShardSet,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool,
        buffer_rows: int = BUFFER_ROWS,
        rank: int = 0,
        world_size: int = 1,
        numbered: bool = False,
    ) -> None:
        assert batch_size > 0, f"batch_size {batch_size}"
        assert buffer_rows > 0, f"buffer_rows {buffer_rows}"
        assert 0 <= rank < world_size, f"rank {rank} of {world_size}"
        self.shards = shards
        self.batch_size = batch_size
        self._seed = seed % 2**64
        self._shuffle = shuffle
        self._buffer_rows = buffer_rows
        self._rank = rank
        self._world_size = world_size
        self._numbered = numbered
        self._first_rows = np.cumsum([0, *shards.shard_rows])

    def __len__(self) -> int:
        """Return the number of batches of an epoch, the same on every rank."""
        whole, rest = divmod(len(self.shards), self.batch_size)
        return whole + (rest > 0)

    def epoch(self, number: int, start_batch: int = 0) -> Iterator[NumpyBatch]:
        """Yield this rank's batches of an epoch from `start_batch` on; what lies before is not read."""
        plan = self._plan(number)
        loaded = -1
        rows: Arrays | None = None
        order: NDArray[np.int64] | None = None
        for batch in range(start_batch, len(self)):
            begin = batch * self.batch_size
            size = min(self.batch_size, len(self.shards) - begin)
            end = begin + size * (self._rank + 1) // self._world_size
            begin += size * self._rank // self._world_size
            parts: list[Arrays] = []
            buffer = int(np.searchsorted(plan.first_row, begin, side="right")) - 1
            while begin < end:
                if buffer != loaded:
                    # Dropped before the next is read, so that two are never held at once.
                    rows = order = None
                    rows, order = self._load(plan, buffer, number)
                    loaded = buffer
                assert rows is not None
                stop = min(end, int(plan.first_row[buffer + 1]))
                offset = int(plan.first_row[buffer])
                parts.append(_gather(rows, order, begin - offset, stop - offset))
                begin = stop
                buffer += 1
            yield _joined(parts) if parts else Arrays.empty(0, self.shards.manifest)

    def _plan(self, number: int) -> _Plan:
        block_rows = max(min(MAX_BLOCK_ROWS, self._buffer_rows // BLOCKS_PER_BUFFER), 1)
        shard_rows = np.array(self.shards.shard_rows, np.int64)
        num_blocks = -(-shard_rows // block_rows)
        shard = np.repeat(np.arange(len(shard_rows)), num_blocks)
        within = np.arange(len(shard)) - np.repeat(np.cumsum(num_blocks) - num_blocks, num_blocks)
        start = within * block_rows
        length = np.minimum(block_rows, shard_rows[shard] - start)
        if self._shuffle:
            order = np.random.default_rng([self._seed, number, 0]).permutation(len(shard))
            shard, start, length = shard[order], start[order], length[order]
        begin = np.cumsum(length) - length
        first_block = np.flatnonzero(np.diff(begin // self._buffer_rows, prepend=-1))
        return _Plan(
            shard,
            start,
            length,
            np.append(first_block, len(shard)),
            np.append(begin[first_block], len(self.shards)),
        )

    def _load(
        self, plan: _Plan, buffer: int, number: int
    ) -> tuple[Arrays, NDArray[np.int64] | None]:
        """Return the rows of a buffer, by shard, and their order; None for as they lie."""
        blocks = slice(int(plan.first_block[buffer]), int(plan.first_block[buffer + 1]))
        shard, start, length = plan.shard[blocks], plan.start[blocks], plan.length[blocks]
        by_shard = np.lexsort((start, shard))
        shard, start, length = shard[by_shard], start[by_shard], length[by_shard]
        num_rows = int(length.sum())
        rows = Arrays.empty(num_rows, self.shards.manifest)
        source = np.arange(num_rows) + np.repeat(start - (np.cumsum(length) - length), length)
        begin = 0
        for index in np.unique(shard):
            count = int(length[shard == index].sum())
            part = slice(begin, begin + count)
            for (_, target), (_, values) in zip(
                rows.present(), self.shards.arrays(int(index)).present(), strict=True
            ):
                # `clip` skips a second pass over the indices, which are in range by construction.
                np.take(values, source[part], axis=0, out=target[part], mode="clip")
            self.shards.release(int(index))
            begin += count
        if self._numbered:
            rows = replace(rows, row=source + np.repeat(self._first_rows[shard], length))
        if not self._shuffle:
            return rows, None
        # From 1: 0 is the order of the blocks, and NumPy ignores zeros at the end of a seed.
        generator = np.random.default_rng([self._seed, number, 1 + buffer])
        return rows, generator.permutation(num_rows)


def _gather(rows: Arrays, order: NDArray[np.int64] | None, begin: int, end: int) -> Arrays:
    if order is None:
        return Arrays(**{name: array[begin:end].copy() for name, array in rows.present()})
    chosen = order[begin:end]
    return Arrays(**{name: array.take(chosen, axis=0) for name, array in rows.present()})


def _joined(parts: list[Arrays]) -> Arrays:
    if len(parts) == 1:
        return parts[0]
    columns = zip(*(part.present() for part in parts), strict=True)
    return Arrays(**{each[0][0]: np.concatenate([array for _, array in each]) for each in columns})
