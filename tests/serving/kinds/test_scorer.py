"""A score that is no number is never an answer."""

from __future__ import annotations

import numpy as np
import pytest

from headwater.feature_store.schema import INT64_MIN
from headwater.serving.errors import RequestError
from headwater.serving.kinds.scorer import require_finite

NAN = np.float32("nan")


def test_finite_scores_pass() -> None:
    require_finite(np.array([0, 0.5, 1], np.float32), {"price": np.array([[np.inf]])})
    require_finite(np.zeros(0, np.float32), {})


def test_score_that_is_no_number_is_refused_with_the_largest_number_of_its_row() -> None:
    arrays = {
        "price": np.array([[1e300], [np.nan], [2.0]]),
        "user": np.array([[70_000]]),
        "seen": np.array([[1, 2], [INT64_MIN, 3], [4, 5]]),
        "word": np.array([["x"], ["y"], ["z"]], object),
        "empty": np.zeros((3, 0)),
    }
    with pytest.raises(RequestError, match=r"^row 0: no finite score: .* 'price', 1e\+300$"):
        require_finite(np.array([NAN, 0.5, NAN], np.float32), arrays)
    with pytest.raises(RequestError, match=r"^row 1: .* 'user', 7e\+04$"):
        require_finite(np.array([0.5, NAN, 0.5], np.float32), arrays)
