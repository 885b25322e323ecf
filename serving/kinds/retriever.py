"""Releases of the kind `retriever`: the best items for a user, a history or a basket, of a whole catalogue.

Items are places in `items.arrow`. A release has vectors and finds the largest products, or a graph that gives
the best items. Filters act inside the search, so that an answer is filled whenever enough items pass.

N queries, D dimension, I items, K answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import numpy.typing as npt
import onnxruntime

from headwater.feature_store.errors import ReleaseError
from headwater.serving.kinds.filters import Mask
from headwater.serving.kinds.graph import check_golden, open_graph
from headwater.serving.kinds.items import Items
from headwater.serving.manifest import (
    AGAIN,
    ALLOWED,
    ITEM,
    ITEM_SCORE,
    KNOWN,
    MANIFEST_NAME,
    QUERY,
    TOP_K,
    VECTOR,
    Manifest,
    Retrieval,
)
from headwater.serving.signature import Signature, columns_to_arrays
from headwater.serving.tensors import Array, Arrays

ITEMS, VECTORS, INDEX = "items", "vectors", "index"
"""Artefacts: `items.arrow`; of a release with vectors `vectors.npy`, float32 [I, D]; an index by faiss."""
FILES = {ITEMS: "items.arrow", VECTORS: "vectors.npy", INDEX: "index.faiss"}
GOLDEN_K = 10
SCANNED = 50_000
"""Where no more items pass a filter, each of them is compared: an index of cells would miss some."""

Found = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]
"""Places of items, the best first, and their scores."""


class Retriever:
    """A graph, the items, and their vectors where the model has any; any number of threads may call it."""

    kind: ClassVar[str] = "retriever"

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        manifest: Manifest,
        items: Items,
        vectors: npt.NDArray[np.float32] | None,
        index: Any,
    ) -> None:
        assert manifest.retrieval is not None
        self.manifest = manifest
        self.retrieval: Retrieval = manifest.retrieval
        self.graph = manifest.graphs[QUERY]
        self.asker = self.graph.inputs[0]
        self.items = items
        self.vectors = vectors
        self.signature = Signature(self.graph.inputs)
        self._session = session
        self._index = index
        self._outputs = [output.name for output in self.graph.outputs]

    def arrays(self, asked: Sequence[Any]) -> Arrays:
        """Return the tensors of queries: a user each, or the list of a history; `Misfit` for another type."""
        return columns_to_arrays(self.graph.inputs, {self.asker.name: asked})

    def run(self, arrays: Arrays, k: int = GOLDEN_K, allowed: Mask | None = None) -> Arrays:
        """Return the outputs of the graph; of one of best items `k` of the `allowed`, [N or 1, I]."""
        feeds = dict(arrays)
        if self.vectors is None:
            every = np.ones((1, len(self.items)), np.bool_)
            feeds[TOP_K] = np.array([min(k, len(self.items))])
            feeds[ALLOWED] = every if allowed is None else allowed
        outputs = cast("list[Array]", self._session.run(self._outputs, feeds))
        return dict(zip(self._outputs, outputs, strict=True))

    def retrieve(
        self,
        arrays: Arrays,
        k: int,
        *,
        allowed: Mask | None,
        dropped: Sequence[npt.NDArray[np.int64]],
    ) -> tuple[list[Found], npt.NDArray[np.int64]]:
        """Return the `k` best items of each query, and what is known of it [N].

        No answer has an item that is not `allowed` [I], or is among those `dropped` for its query.
        """
        if self.vectors is not None:
            outputs = self.run(arrays)
            return self.search(outputs[VECTOR], k, allowed, dropped), outputs[KNOWN]
        mask = np.ones((len(dropped), len(self.items)), np.bool_)
        if allowed is not None:
            mask &= allowed
        for row, places in enumerate(dropped):
            mask[row, places] = False
        outputs = self.run(arrays, k, mask)
        pairs = zip(outputs[ITEM], outputs[ITEM_SCORE], strict=True)
        found = [(items[np.isfinite(s)], s[np.isfinite(s)]) for items, s in pairs]
        return found, outputs[KNOWN]

    def answer(
        self,
        arrays: Arrays,
        k: int,
        *,
        allowed: Mask | None,
        dropped: Sequence[npt.NDArray[np.int64]],
    ) -> tuple[list[Found], npt.NDArray[np.int64]]:
        """Return the `k` best items of each query, and what is known of it, [N]: 0 for popular items."""
        found, known = self.retrieve(arrays, k, allowed=allowed, dropped=dropped)
        for row in np.flatnonzero(known == 0).tolist():
            found[row] = self.popular(k, allowed, dropped[row])
        return found, known

    def own_items(self, asked: Any) -> npt.NDArray[np.int64]:
        """Return the items of a query itself; none of a user."""
        return self.items.places(() if self.retrieval.query == "user" else asked or ())

    def masked(self, asked: Any) -> npt.NDArray[np.int64]:
        """Return the items that a query has and no answer to it names, as the job wants it."""
        own = self.own_items(asked) if self.retrieval.mask_seen else np.zeros(0, np.int64)
        return np.unique(own)

    def search(
        self,
        vector_ND: npt.NDArray[np.float32],
        k: int,
        allowed: Mask | None,
        dropped: Sequence[npt.NDArray[np.int64]],
    ) -> list[Found]:
        """Return the largest products with vectors of items, as `retrieve`."""
        if allowed is not None and (self._index is None or allowed.sum() <= SCANNED):
            return self._scan(vector_ND, k, np.flatnonzero(allowed), dropped)
        most = min(len(self.items), k + max(map(len, dropped), default=0))
        parameters = None if self.retrieval.nprobe is None else self._parameters(allowed)
        score_NK, place_NK = self._index.search(vector_ND, most, params=parameters)
        found: list[Found] = []
        for row, places in enumerate(dropped):
            kept = (place_NK[row] >= 0) & ~np.isin(place_NK[row], places)
            found.append(_ordered(place_NK[row][kept], score_NK[row][kept], k))
        enough = len(self.items) if allowed is None else int(allowed.sum())
        short = [
            row
            for row, (places, _) in enumerate(found)
            if len(places) < min(k, enough - len(dropped[row]))
        ]
        if short:
            passing = np.arange(len(self.items)) if allowed is None else np.flatnonzero(allowed)
            again = self._scan(vector_ND[short], k, passing, [dropped[row] for row in short])
            for row, answer in zip(short, again, strict=True):
                found[row] = answer
        return found

    def similar(self, places: Sequence[int], k: int, allowed: Mask | None) -> Found:
        """Return the items most like some, by the cosine with the mean of theirs, without these."""
        own = np.asarray(places, np.int64)
        if self.vectors is None:
            arrays = self.arrays([[self.items.ids[place] for place in places]])
            return self.retrieve(arrays, k, allowed=allowed, dropped=[own])[0][0]
        mean_D = self.unit(own).mean(0)
        score_I = self.vectors @ (mean_D / _length(mean_D)) / self._item_lengths
        passing = np.ones(len(score_I), np.bool_) if allowed is None else allowed.copy()
        passing[own] = False
        kept = np.flatnonzero(passing)
        return _best(kept, score_I[kept], k)

    def unit(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return vectors of items, scaled to length 1, [n, D]."""
        assert self.vectors is not None, "asked before"
        vector_nD = self.vectors[places]
        return vector_nD / _length(vector_nD)[:, None]

    @cached_property
    def _item_lengths(self) -> npt.NDArray[np.float32]:
        assert self.vectors is not None, "asked before"
        return _length(self.vectors)

    def popular(self, k: int, allowed: Mask | None, dropped: npt.NDArray[np.int64]) -> Found:
        """Return the items with the most training events, for a query of which nothing is known."""
        kept = ~np.isin(self.items.by_events, dropped)
        if allowed is not None:
            kept &= allowed[self.items.by_events]
        places = self.items.by_events[kept][:k]
        return places, self.items.events[places].astype(np.float32)

    def _scan(
        self,
        vector_ND: npt.NDArray[np.float32],
        k: int,
        passing: npt.NDArray[np.int64],
        dropped: Sequence[npt.NDArray[np.int64]],
    ) -> list[Found]:
        """Return the largest products with the vectors of the `passing` items, each of them compared."""
        assert self.vectors is not None
        score_NP = vector_ND @ self.vectors[passing].T
        found: list[Found] = []
        for row, places in enumerate(dropped):
            kept = ~np.isin(passing, places)
            found.append(_best(passing[kept], score_NP[row][kept], k))
        return found

    def _parameters(self, allowed: Mask | None) -> Any:
        import faiss

        # faiss gives its classes keywords when it is imported, of which type checkers do not know.
        make: Any = faiss.SearchParametersIVF
        select: Any = faiss.IDSelectorBitmap
        nprobe = self.retrieval.nprobe
        if allowed is None:
            return make(nprobe=nprobe)
        return make(nprobe=nprobe, sel=select(np.packbits(allowed, bitorder="little")))


def load_retriever(path: Path, manifest: Manifest) -> Retriever:
    """Return the retriever of the release at `path`; `ReleaseError` where a file is not as it says."""
    # Here and below, when the first retriever is loaded: others need neither faiss nor pyarrow.
    import faiss

    # One thread a call: runners are as many as cores.
    faiss.omp_set_num_threads(1)
    graph, where = manifest.graphs.get(QUERY), path / MANIFEST_NAME
    if graph is None or manifest.retrieval is None or ITEMS not in manifest.artefacts:
        raise ReleaseError(
            f"{where}: expected a graph {QUERY!r}, `retrieval` and the artefact {ITEMS!r}; {AGAIN}"
        )
    files = {name: path / file for name, file in manifest.artefacts.items()}
    items = _open_items(files[ITEMS])
    vectors = index = None
    beside = {}
    if manifest.retrieval.index == "graph":
        beside = {TOP_K: "tensor(int64)", ALLOWED: "tensor(bool)"}
    else:
        vectors, index = _open_vectors(files, where, len(items))
    session = open_graph(path, graph, Signature(graph.inputs), beside)
    retriever = Retriever(session, manifest, items, vectors, index)
    check_golden(path, graph, retriever.run)
    return retriever


def _open_items(path: Path) -> Items:
    import pyarrow as pa

    try:
        return Items(pa.ipc.open_file(pa.memory_map(str(path))).read_all())
    except (pa.ArrowInvalid, KeyError) as error:
        raise ReleaseError(f"{path}: no table of items: {error}; {AGAIN}") from error


def _open_vectors(files: dict[str, Path], where: Path, num_items: int) -> tuple[Any, Any]:
    import faiss

    if VECTORS not in files:
        raise ReleaseError(f"{where}: artefacts: expected {VECTORS!r}; {AGAIN}")
    try:
        vectors = np.load(files[VECTORS], mmap_mode="r")
        if INDEX in files:
            index = faiss.read_index(str(files[INDEX]), faiss.IO_FLAG_MMAP)
        else:
            index = faiss.IndexFlatIP(vectors.shape[1])
            index.add(vectors)
    except (ValueError, RuntimeError) as error:
        raise ReleaseError(
            f"{files[VECTORS].parent}: vectors or index: {error}; {AGAIN}"
        ) from error
    if not len(vectors) == index.ntotal == num_items:
        raise ReleaseError(
            f"{where}: expected as many vectors as items, found {len(vectors)} vectors, {index.ntotal} in "
            f"the index and {num_items} items; {AGAIN}"
        )
    return vectors, index


def _length(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the lengths of vectors, never 0."""
    return np.maximum(np.linalg.norm(vectors, axis=-1), np.float32(1e-12))


def _best(places: npt.NDArray[np.int64], scores: npt.NDArray[np.float32], k: int) -> Found:
    """Return the `k` best of some items; of equal ones the lower places."""
    if len(places) > k:
        least = np.partition(scores, len(scores) - k)[len(scores) - k] if k else np.inf
        kept = np.flatnonzero(scores >= least)
        places, scores = places[kept], scores[kept]
    return _ordered(places, scores, k)


def _ordered(places: npt.NDArray[np.int64], scores: npt.NDArray[np.float32], k: int) -> Found:
    order = np.lexsort((places, -scores))[:k]
    return places[order], scores[order]
