"""Re-ranking by maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998): good and unlike each other.

C candidates, D dimension.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def mmr(
    relevance_C: npt.NDArray[np.floating],
    unit_CD: npt.NDArray[np.floating],
    k: int,
    diversity: float,
) -> npt.NDArray[np.int64]:
    """Return the places of `k` candidates, one after another.

    Each has the largest (1 - diversity) * relevance - diversity * likeness: relevance is scaled over the
    candidates to [0, 1], and likeness is the largest cosine with one that was taken before. Of equal ones
    the first comes first.

    Parameters
    ----------
    relevance_C
        Scores, the more the better.
    unit_CD
        Vectors of length 1.
    diversity
        From 0, the order of relevance, to 1.
    """
    k = min(k, len(relevance_C))
    spread = np.ptp(relevance_C) if k else 0.0
    scaled_C = (
        (relevance_C - relevance_C.min()) / spread if spread > 0 else np.ones(len(relevance_C))
    )
    likeness_C = np.zeros(len(relevance_C))
    left_C = np.ones(len(relevance_C), np.bool_)
    taken: list[int] = []
    for _ in range(k):
        value_C = (1 - diversity) * scaled_C - diversity * likeness_C
        best = int(np.argmax(np.where(left_C, value_C, -np.inf)))
        cosine_C = unit_CD @ unit_CD[best]
        likeness_C = np.maximum(likeness_C, cosine_C) if taken else cosine_C
        left_C[best] = False
        taken.append(best)
    return np.array(taken, np.int64)
