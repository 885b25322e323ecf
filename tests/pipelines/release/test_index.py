"""An index of cells: tuned to its recall on real queries, and filled under any filter."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import faiss
import numpy as np
import pytest

from headwater.pipelines.release.index import LEAST_RECALL, write_index
from headwater.serving.kinds.retriever import Retriever
from headwater.serving.manifest import Retrieval

ITEMS, DIM, CLUSTERS = 6000, 16, 40


@pytest.fixture(scope="module")
def vectors() -> np.ndarray[Any, np.dtype[np.float32]]:
    random = np.random.default_rng(2)
    centre_CD = random.normal(size=(CLUSTERS, DIM))
    noise_ID = 0.3 * random.normal(size=(ITEMS, DIM))
    return (centre_CD[random.integers(0, CLUSTERS, ITEMS)] + noise_ID).astype(np.float32)


@pytest.fixture(scope="module")
def retriever(vectors: Any, tmp_path_factory: pytest.TempPathFactory) -> Retriever:
    """Return a retriever of vectors alone, with an index of cells."""
    path = tmp_path_factory.mktemp("index") / "index.faiss"
    tuned = write_index(path, vectors, vectors[:200], exact_items=100)
    assert tuned is not None
    assert tuned.recall >= LEAST_RECALL
    found = Retriever.__new__(Retriever)
    found.retrieval = Retrieval(query="history", mask_seen=True, index="ivf", nprobe=tuned.nprobe)
    found.vectors, found._index = vectors, faiss.read_index(str(path))
    found.items = cast("Any", range(ITEMS))
    return found


def test_a_small_catalogue_has_no_index(tmp_path: Path, vectors: Any) -> None:
    assert write_index(tmp_path / "index.faiss", vectors, vectors[:10]) is None
    assert not (tmp_path / "index.faiss").exists()


@pytest.mark.parametrize("share", [None, 1.0, 0.5, 0.01, 0.0005, 0.0])
def test_answers_are_filled_whatever_passes(
    retriever: Retriever, vectors: Any, share: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headwater.serving.kinds.retriever.SCANNED", 100)
    random = np.random.default_rng(3)
    allowed = None if share is None else random.random(ITEMS) < share
    dropped = [np.arange(30), np.zeros(0, np.int64)]
    passing = np.ones(ITEMS, np.bool_) if allowed is None else allowed
    for row, (places, scores) in enumerate(retriever.search(vectors[:2], 50, allowed, dropped)):
        left = passing.copy()
        left[dropped[row]] = False
        assert len(places) == min(50, left.sum())
        assert left[places].all()
        assert (np.diff(scores) <= 0).all()
        assert np.allclose(scores, vectors[places] @ vectors[row], rtol=1e-4)
