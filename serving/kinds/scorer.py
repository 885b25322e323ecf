"""Releases of the kind `scorer`: one score a row, by the same code online and in `headwater score`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import numpy.typing as npt
import onnxruntime

from headwater.feature_store.errors import ReleaseError
from headwater.serving.errors import Misfit, RequestError
from headwater.serving.kinds.graph import check_golden, open_graph
from headwater.serving.manifest import AGAIN, MANIFEST_NAME, SCORE, Manifest
from headwater.serving.signature import MAX_RUN_ROWS, Signature
from headwater.serving.tensors import Array, Arrays

Scores = npt.NDArray[np.float32]


class Scorer:
    """A session and the signature of its release; any number of threads may call it at once."""

    kind: ClassVar[str] = "scorer"

    def __init__(self, session: onnxruntime.InferenceSession, manifest: Manifest) -> None:
        self.manifest = manifest
        self.graph = manifest.graphs[SCORE]
        self.output = self.graph.outputs[0]
        self.signature = Signature(self.graph.inputs, manifest.features)
        self._session = session
        self._outputs = [self.output.name]

    def score(self, arrays: Mapping[str, Array]) -> Scores:
        """Return one score a row, float32 `[N]`.

        `arrays` is what `columns_to_arrays` gives; an absent input is missing in all rows. Raises
        `RequestError` for an array of the wrong dtype, shape or number of rows.
        """
        for name, array in arrays.items():
            try:
                self.signature.check(name, array)
            except Misfit as fault:
                raise fault.at(f"input {name!r}") from None
        num_rows = self.signature.num_rows(arrays)
        return self.run(self.signature.complete(arrays, num_rows), num_rows)

    def run(self, feeds: Arrays, num_rows: int) -> Scores:
        """Return the scores of what `Signature.complete` gave, without another check."""
        if num_rows == 0:
            return np.zeros(0, np.float32)
        if num_rows <= MAX_RUN_ROWS:
            return self._run(feeds)
        pieces: list[Scores] = []
        for start in range(0, num_rows, MAX_RUN_ROWS):
            rows = slice(start, start + MAX_RUN_ROWS)
            pieces.append(
                self._run({name: a if a.shape[0] == 1 else a[rows] for name, a in feeds.items()})
            )
        return np.concatenate(pieces)

    def _run(self, feeds: Arrays) -> Scores:
        outputs = cast("list[Any]", self._session.run(self._outputs, feeds))
        return outputs[0].reshape(-1)


def require_finite(
    scores: Scores, arrays: Mapping[str, Array], *, where: str = "", first_row: int = 0
) -> None:
    """Raise `RequestError`, with the row and its largest number, where a score is no number.

    `where` begins the message, and `first_row` numbers the first row. A number beyond float32 becomes an
    infinity in the graph, and a difference of two is no number.
    """
    finite = np.isfinite(scores)
    if finite.all():
        return
    row = int(np.argmin(finite))
    largest: list[tuple[float, str]] = []
    for name, array in arrays.items():
        if array.dtype.kind in "if":
            # NaN and the smallest integer, which has no positive, are missing values: never the largest.
            values = np.abs(array[row if len(array) > 1 else 0])
            largest.append((float(np.fmax.reduce(values, initial=0)), name))
    number, name = max(largest, default=(0.0, ""))
    raise RequestError(
        f"{where}row {first_row + row}: no finite score: a number is too large for the model; the largest "
        f"is in {name!r}, {number:.4g}"
    )


def load_scorer(path: Path, manifest: Manifest) -> Scorer:
    """Return the scorer of the release at `path`; `ReleaseError` where its graph is not as it says."""
    graph = manifest.graphs.get(SCORE)
    if graph is None:
        raise ReleaseError(
            f"{path / MANIFEST_NAME}: graphs: expected {SCORE!r}, found {list(manifest.graphs)}; {AGAIN}"
        )
    if len(graph.outputs) != 1:
        names = [output.name for output in graph.outputs]
        raise ReleaseError(
            f"{path / MANIFEST_NAME}: outputs: expected one output of the graph, found {names}; {AGAIN}"
        )
    scorer = Scorer(open_graph(path, graph, Signature(graph.inputs)), manifest)
    check_golden(path, graph, lambda arrays: {scorer.output.name: scorer.score(arrays)})
    return scorer
