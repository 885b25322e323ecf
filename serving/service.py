"""What the handlers share: the releases, the queue of the runners with its bounds, and the metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, TypeVar

import numpy as np

from headwater.serving.admission import Admission
from headwater.serving.batching import Batcher
from headwater.serving.metrics import Metrics
from headwater.serving.registry import Registry
from headwater.serving.scorer import Scorer, Scores, require_finite
from headwater.serving.tensors import Array

P = ParamSpec("P")
T = TypeVar("T")

LARGE_BYTES = 256 * 1024
"""A larger body is decoded off the event loop, so that it does not hold up small ones."""


@dataclass(slots=True)
class Service:
    """One serving process."""

    registry: Registry
    admission: Admission
    batcher: Batcher
    metrics: Metrics
    draining: bool = False

    @property
    def is_ready(self) -> bool:
        """True from the first release that is ready until the service is told to stop."""
        return not self.draining and self.registry.is_ready()

    async def score(
        self, scorer: Scorer, arrays: Mapping[str, Array], num_rows: int | None = None
    ) -> Scores:
        """Return one score a candidate from checked tensors; `num_rows` is N where it is known.

        Raises what `Signature.complete`, `Batcher.score` and `require_finite` do.
        """
        signature = scorer.signature
        if num_rows is None:
            num_rows = signature.num_rows(arrays)
        # Before anything of that size is made.
        self.admission.check_size(num_rows)
        feeds = signature.complete(arrays, num_rows)
        if num_rows == 0:
            return np.zeros(0, np.float32)
        scores = await self.batcher.score(scorer, feeds, num_rows)
        require_finite(scores, feeds)
        return scores

    async def decode(
        self, size: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Return `function(*args)`, computed in a thread where `size` bytes would hold up others."""
        if size <= LARGE_BYTES:
            return function(*args, **kwargs)
        call = partial(function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(None, call)
