"""Batches as tensors, gathered by a thread ahead of the training loop.

A thread is enough: gathering is a few calls into numpy a batch, which release the interpreter while they
copy, at millions of rows a second. Worker processes would only add copies between processes.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import torch

from headwater.feature_store.reader import NumpyBatch, Reader
from headwater.models.batch import Batch


class Loader:
    """Gives the batches of a reader on a device; to CUDA through pinned memory, copied without blocking.

    `prefetch` batches wait at most. An exception of the thread is raised where the batches are taken; the
    thread ends with the iteration, also when its consumer stops early.
    """

    def __init__(self, reader: Reader, device: torch.device, prefetch: int = 4) -> None:
        self.reader = reader
        self.device = device
        self._prefetch = prefetch

    def __len__(self) -> int:
        return len(self.reader)

    @property
    def rows(self) -> int:
        """Rows of the split, of all ranks."""
        return len(self.reader.shards)

    def epoch(self, number: int, start_batch: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from `start_batch` on."""
        ready: queue.Queue[Batch | BaseException | None] = queue.Queue(self._prefetch)
        stop = threading.Event()
        thread = threading.Thread(
            target=self._fill,
            args=(self.reader.epoch(number, start_batch), ready, stop),
            name="headwater-loader",
            daemon=True,
        )
        thread.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item.to(self.device)
        finally:
            stop.set()
            # The thread may wait for room: taking one item lets it see `stop`.
            while thread.is_alive():
                try:
                    ready.get_nowait()
                except queue.Empty:
                    thread.join(0.01)

    def _fill(
        self,
        batches: Iterator[NumpyBatch],
        ready: queue.Queue[Batch | BaseException | None],
        stop: threading.Event,
    ) -> None:
        try:
            for batch in batches:
                if stop.is_set():
                    return
                ready.put(self._tensors(batch))
            ready.put(None)
        except BaseException as error:  # raised again by the consumer
            ready.put(error)

    def _tensors(self, batch: NumpyBatch) -> Batch:
        pinned = self.device.type == "cuda"
        tensors = (
            None if array is None else torch.from_numpy(array)
            for array in (
                batch.codes,
                batch.dense,
                batch.label,
                batch.weight,
                batch.group,
                batch.row,
            )
        )
        return Batch(*(t.pin_memory() if t is not None and pinned else t for t in tensors))  # pyright: ignore[reportArgumentType]
