"""Scoring: one score a row of checked tensors, through the queue of the runners."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from headwater.serving.admission import Turn
from headwater.serving.kinds.scorer import Scorer, Scores, require_finite
from headwater.serving.service import Service
from headwater.serving.tensors import Array


async def score(
    service: Service,
    turn: Turn,
    scorer: Scorer,
    arrays: Mapping[str, Array],
    num_rows: int | None = None,
) -> Scores:
    """Return one score a candidate from checked tensors; `num_rows` is N where it is known.

    The rows are in hand until the `turn` of the request ends.
    Raises what `Signature.complete`, `Turn.take` and `require_finite` do.
    """
    signature = scorer.signature
    if num_rows is None:
        num_rows = signature.num_rows(arrays)
    # Before anything of that size is made.
    turn.check_size(num_rows)
    feeds = signature.complete(arrays, num_rows)
    if num_rows == 0:
        return np.zeros(0, np.float32)
    turn.take(scorer.manifest.name, num_rows)
    scores = await service.batcher.score(scorer, feeds, num_rows)
    require_finite(scores, feeds)
    return scores
