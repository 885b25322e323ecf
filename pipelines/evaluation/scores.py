"""Scored rows on disk: logits, labels, groups and slice codes of one split, as NumPy files.

N rows, S slice columns. A writer appends each rank's rows to files of its own; when all have ended,
rank 0 joins them. So no rank needs to know how many rows there are, and memory does not grow.
"""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from headwater.feature_store.errors import DataError, OutputError
from headwater.feature_store.schema import EncodedColumn, Schema
from headwater.pipelines.evaluation.metrics import Measured
from headwater.pipelines.output import writing

DTYPES = {"logit": np.float32, "label": np.uint8, "group": np.int64, "slices": np.uint8}
MAX_SLICE_CODES = 64
"""A scalar code column of at most so many codes is a slice column."""


@dataclass(frozen=True, slots=True)
class Scores:
    """The scored rows of a split, memory-mapped."""

    split: str
    logit_N: NDArray[np.float32]
    label_N: NDArray[np.uint8]
    group_N: NDArray[np.int64] | None
    """Key of the group, where the job names one."""
    slices_NS: NDArray[np.uint8]
    """Codes of `slice_columns`."""

    @classmethod
    def open(cls, folder: Path, split: str) -> Scores:
        """Return the scores that a `ScoreWriter` left in `folder`."""
        found = {
            kind: np.load(path, mmap_mode="r") if path.exists() else None
            for kind in DTYPES
            for path in [folder / f"{split}.{kind}.npy"]
        }
        logit, label, slices = found["logit"], found["label"], found["slices"]
        assert logit is not None
        assert label is not None
        assert slices is not None
        return cls(split, logit, label, found["group"], slices)

    def measured(self) -> Measured:
        """Return the rows with the sums and groups that metrics take from them."""
        return Measured.of(self.label_N, self.logit_N, self.group_N)

    def require_both_classes(self) -> None:
        """Raise DataError where there is no row, or only one class, so that AUC is not defined."""
        positives, rows = int(np.count_nonzero(self.label_N)), len(self.label_N)
        if not 0 < positives < rows:
            raise DataError(
                f"{self.split}: {positives} of {rows} rows have label 1, so AUC is not defined. "
                "Expected rows of both classes: choose another split, or check `features.label`."
            )


class ScoreWriter:
    """Writes the scored rows of one rank; a context manager, whose end makes the rows durable parts."""

    def __init__(self, folder: Path, split: str, *, rank: int = 0) -> None:
        self._folder = folder
        self._split = split
        self._rank = rank
        self._files: dict[str, Any] = {}

    def __enter__(self) -> Self:
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        return self

    def add(self, **rows: NDArray[Any] | None) -> None:
        """Append rows: `logit`, `label`, `slices`, and `group` unless it is None."""
        for kind, values in rows.items():
            if values is None:
                continue
            with writing(self._folder / self._split):
                if kind not in self._files:
                    self._files[kind] = _part(self._folder, self._split, kind, self._rank).open(
                        "wb"
                    )
                # Not `tofile`, which says nothing when the disk is full.
                self._files[kind].write(np.ascontiguousarray(values, DTYPES[kind]).tobytes())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            # Closing writes what is still buffered.
            with writing(self._folder / self._split), contextlib.ExitStack() as closing:
                for file in self._files.values():
                    closing.callback(file.close)
        except OutputError:
            self._discard()
            if error is None:
                raise
        if error is not None:
            self._discard()

    def _discard(self) -> None:
        for each in self._files:
            _part(self._folder, self._split, each, self._rank).unlink(missing_ok=True)


def join_parts(folder: Path, split: str, *, num_slices: int, world_size: int = 1) -> Scores:
    """Join the parts of all ranks, which must have ended, into the files of the split.

    Those of before are replaced when all new ones are written, so that a full disk leaves them.
    """
    parts = {
        kind: [
            path
            for rank in range(world_size)
            if (path := _part(folder, split, kind, rank)).exists()
        ]
        for kind in DTYPES
    }
    num_bytes = sum(path.stat().st_size for path in parts["logit"])
    rows = num_bytes // np.dtype(DTYPES["logit"]).itemsize
    joined = {kind: folder / f".{split}.{kind}.part" for kind in DTYPES}
    try:
        with writing(folder / split):
            for kind, path in joined.items():
                if parts[kind] or kind != "group":
                    shape = (rows, num_slices) if kind == "slices" else (rows,)
                    _join(path, parts[kind], DTYPES[kind], shape)
            for kind, path in joined.items():
                target = folder / f"{split}.{kind}.npy"
                if path.exists():
                    path.replace(target)
                else:
                    target.unlink(missing_ok=True)
    finally:
        for path in (*joined.values(), *(each for paths in parts.values() for each in paths)):
            path.unlink(missing_ok=True)
    return Scores.open(folder, split)


def _join(
    target: Path, parts: Sequence[Path], dtype: type[np.generic], shape: tuple[int, ...]
) -> None:
    with target.open("wb") as file:
        descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
        header = {"descr": descr, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, file, 1 << 20)


def _part(folder: Path, split: str, kind: str, rank: int) -> Path:
    return folder / f".{split}.{kind}.{rank}.part"


def slice_columns(schema: Schema) -> list[tuple[EncodedColumn, int]]:
    """Return the scalar code columns with few codes, each with its place in `codes_BW`."""
    return [
        (column, place.start)
        for column, place in schema.code_places()
        if column.length == 1 and column.cardinality <= MAX_SLICE_CODES
    ]


def all_finite(logit: NDArray[np.float32]) -> bool:
    """Return whether every logit is a number; the sum is cheaper than a mask, and catches all."""
    return math.isfinite(float(np.asarray(logit, np.float64).sum()))
