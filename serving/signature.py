"""What a release takes in: checks tensors, fills in what is absent, joins requests to a batch.

N candidates: a candidate input has N rows; a context input has N rows, or one for all of them. A list
input is a pair, padded `[N, L]` and `<name>.length` int64 `[N, 1]`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headwater.feature_store.schema import INT64_MIN, Dtype
from headwater.serving.errors import Misfit, RequestError, TooLargeError, shorten, unknown_name
from headwater.serving.manifest import Feature, Input
from headwater.serving.tensors import (
    MAX_CELLS,
    MISSING,
    NUMPY,
    Array,
    Arrays,
    flat,
    missing,
    ragged,
)

LENGTH = ".length"
MAX_RUN_ROWS = 4096
"""Rows of one call of onnxruntime: a bound on the memory of activations; more gains no speed."""
_MAX_RUNS = 64
_MISSING_INT = np.int64(INT64_MIN)


@dataclass(frozen=True, slots=True)
class Run:
    """Inputs that follow each other in a request and are alike: numbers or strings, of one role."""

    names: tuple[str, ...]
    dtype: Dtype | None
    """None for one to be looked at by itself: a list, an unknown name, or one that was there before."""
    inputs: slice
    """Their places in the request."""


class Signature:
    """The inputs of a release; `tensors` has one entry a tensor of the graph, lengths among them."""

    def __init__(self, inputs: Iterable[Input], features: Iterable[Feature] = ()) -> None:
        self.inputs = {column.name: column for column in inputs}
        self._features = {feature.name: feature for feature in features}
        self.tensors: dict[str, Input] = {}
        for column in self.inputs.values():
            self.tensors[column.name] = column
            if column.is_list:
                name = column.name + LENGTH
                self.tensors[name] = Input(name=name, dtype="int64", role=column.role)
        self._lists = tuple(name for name, column in self.inputs.items() if column.is_list)
        self._divided = tuple(column for column in self.inputs.values() if column.separators)
        self._context = tuple(n for n, tensor in self.tensors.items() if tensor.role == "context")
        self._alike: dict[tuple[Dtype, str], list[str]] = {}
        for name, column in self.inputs.items():
            if not column.is_list:
                self._alike.setdefault((column.dtype, column.role), []).append(name)
        self._runs: dict[tuple[str, ...], tuple[Run, ...]] = {}

    def runs(self, names: tuple[str, ...]) -> tuple[Run, ...]:
        """Return the runs of inputs that come in this order.

        Those of known names are kept, as most clients ask with the same inputs each time.
        """
        runs = self._runs.get(names)
        if runs is None:
            runs = self._find_runs(names)
            if len(names) <= len(self.tensors) and self.tensors.keys() >= set(names):
                if len(self._runs) >= _MAX_RUNS:
                    self._runs.clear()
                self._runs[names] = runs
        return runs

    def _find_runs(self, names: tuple[str, ...]) -> tuple[Run, ...]:
        runs: list[Run] = []
        seen: set[str] = set()
        kind = None
        for index, name in enumerate(names):
            before, column = kind, self.inputs.get(name)
            kind = None
            if column is not None and not column.is_list and name not in seen:
                kind = column.dtype, column.role
            seen.add(name)
            if kind is not None and kind == before:
                last = runs.pop()
                inputs = slice(last.inputs.start, index + 1)
                runs.append(Run((*last.names, name), last.dtype, inputs))
            else:
                dtype = None if kind is None else kind[0]
                runs.append(Run((name,), dtype, slice(index, index + 1)))
        return tuple(runs)

    def unknown(self, where: str, kind: str, name: str, known: Iterable[str]) -> RequestError:
        """Return the error for a name that is none of `known`; for a computed feature, what to send."""
        sources = sorted(set(self._sources(name)), key=list(self.inputs).index)
        if not sources:
            return RequestError(unknown_name(where, kind, name, known))
        shown = " and ".join(repr(source) for source in sources)
        return RequestError(
            f"{where}: {shorten(name)!r} is computed from {shown}; send {shown} instead"
        )

    def _sources(self, name: str) -> list[str]:
        """Return the inputs that a feature is computed from, those of a crossed one through its parts."""
        if name in self.inputs:
            return [name]
        feature = self._features.get(name)
        parts = () if feature is None else feature.inputs
        return [source for part in parts if part != name for source in self._sources(part)]

    def check(self, name: str, array: Array) -> None:
        """Raise `Misfit` unless `array` has the dtype and the shape of the tensor `name`."""
        tensor = self.tensors[name]
        dtype = NUMPY[tensor.dtype]
        if array.dtype != dtype:
            raise Misfit(expected=str(dtype), found=str(array.dtype), place=".dtype")
        if array.ndim != 2 or not (tensor.is_list or array.shape[1] == 1):
            shape = "[N, L]" if tensor.is_list else "[N, 1]"
            raise Misfit(
                expected=f"shape {shape} of {name!r}", found=f"{list(array.shape)}", place=".shape"
            )

    def num_rows(self, arrays: Mapping[str, Array]) -> int:
        """Return N: the rows of the candidate inputs or, without any, of the context inputs."""
        if not arrays:
            raise RequestError("inputs: expected at least one input, found none")
        rows = 1
        for name, array in arrays.items():
            if self.tensors[name].role == "candidate":
                return array.shape[0]
            rows = rows if array.shape[0] == 1 else array.shape[0]
        return rows

    def complete(self, arrays: Mapping[str, Array], num_rows: int) -> Arrays:
        """Return a tensor for each input of the graph from checked `arrays`; what is absent is missing.

        Raises `RequestError` where rows disagree or a length is not within its list, `TooLargeError`
        where a list given once is too long to be repeated.
        """
        given = len(arrays) == len(self.tensors) and not self._lists
        for column in self._divided:
            if column.name in arrays:
                _check_parts(column, arrays[column.name], num_rows)
        if given and {len(array) for array in arrays.values()} == {num_rows}:
            return dict(arrays)
        # Before anything is made of them: a tensor of no columns may claim any number of rows.
        for name, array in arrays.items():
            once = self.tensors[name].role == "context" and array.shape[0] == 1
            if not once and array.shape[0] != num_rows:
                raise self._wrong_rows(name, arrays, num_rows)
        # The graph broadcasts all context inputs or none.
        context_rows = max(
            (a.shape[0] for name, a in arrays.items() if self.tensors[name].role == "context"),
            default=min(1, num_rows),
        )
        feeds: Arrays = {}
        for name, tensor in self.tensors.items():
            is_context = tensor.role == "context"
            rows = context_rows if is_context else num_rows
            array = arrays.get(name)
            if array is None:
                array = self._absent(name, tensor, arrays, rows)
            elif array.shape[0] != rows:
                array = repeat(name, array, rows)
            feeds[name] = array
        for name in self._lists:
            self._check_list(name, feeds)
        return feeds

    def _wrong_rows(self, name: str, arrays: Mapping[str, Array], num_rows: int) -> RequestError:
        expected = f"{num_rows} row{'' if num_rows == 1 else 's'}"
        if num_rows > 1 and self.tensors[name].role == "context":
            expected += " or 1"
        like = next((other for other, array in arrays.items() if len(array) == num_rows), None)
        reason = "" if like is None else f" (as {like!r} has {num_rows})"
        return RequestError(
            f"input {name!r}: expected {expected}{reason}, found {len(arrays[name])}"
        )

    def _absent(self, name: str, tensor: Input, arrays: Mapping[str, Array], rows: int) -> Array:
        if name in self.inputs:
            if tensor.is_list and name + LENGTH in arrays:
                raise RequestError(f"input {name!r}: expected beside {name + LENGTH!r}, found none")
            return missing(tensor.dtype, rows)
        # A list without lengths is as long as its tensor.
        padded = arrays.get(name.removesuffix(LENGTH))
        return np.full((rows, 1), 0 if padded is None else padded.shape[1], np.int64)

    def _check_list(self, name: str, feeds: Arrays) -> None:
        padded, lengths = feeds[name], feeds[name + LENGTH]
        if padded.shape[0] != lengths.shape[0]:
            raise RequestError(
                f"input {name + LENGTH!r}: expected {padded.shape[0]} rows, as {name!r} has, found "
                f"{lengths.shape[0]}"
            )
        if padded.shape[1] == 0:
            feeds[name] = missing(self.inputs[name].dtype, padded.shape[0])
        if lengths.size and not 0 <= lengths.min() <= lengths.max() <= padded.shape[1]:
            raise RequestError(
                f"input {name + LENGTH!r}: expected lengths from 0 to {padded.shape[1]}, the width "
                f"of {name!r}, found {lengths.min()} to {lengths.max()}"
            )

    def shared(self, feeds: Arrays, num_rows: int) -> bool:
        """Return whether a context input is given once for several candidates."""
        return num_rows > 1 and any(feeds[name].shape[0] == 1 for name in self._context)

    def width(self, feeds: Arrays) -> int:
        """Return the width of the widest list, given as one or as text, 1 without any."""
        lists = [feeds[name].shape[1] for name in self._lists]
        return max(
            [*lists, *(_num_parts(each, feeds[each.name]) for each in self._divided)], default=1
        )

    def join(self, parts: Sequence[tuple[Arrays, int]]) -> tuple[Arrays, int]:
        """Return several requests as one: rows in order, a context repeated for its own candidates."""
        if len(parts) == 1:
            return parts[0]
        joined: Arrays = {}
        for name, tensor in self.tensors.items():
            arrays = [
                feeds[name]
                if feeds[name].shape[0] == rows
                else np.repeat(feeds[name], rows, axis=0)
                for feeds, rows in parts
            ]
            if tensor.is_list:
                arrays = _same_width(arrays, tensor)
            if tensor.dtype == "string" and len({array.dtype.kind for array in arrays}) > 1:
                arrays = [_texts(array) for array in arrays]
            joined[name] = np.concatenate(arrays)
        return joined, sum(rows for _, rows in parts)

    def count_missing(self, feeds: Arrays) -> dict[str, int]:
        """Return how many values of each input are missing (a list: is empty), where any is."""
        counts = {name: np.count_nonzero(feeds[name + LENGTH] == 0) for name in self._lists}
        for (dtype, _), alike in self._alike.items():
            # One look at all of them together: one at each costs as much as scoring a row.
            for names in _by_kind(alike, feeds) if dtype == "string" else (alike,):
                found = _is_missing(np.concatenate([feeds[name] for name in names]), dtype)
                if found.any():
                    each = np.count_nonzero(found.reshape(len(names), -1), axis=1)
                    counts.update(zip(names, each.tolist(), strict=True))
        return {name: int(count) for name, count in counts.items() if count}


def _num_parts(column: Input, array: Array) -> int:
    """Return the most parts into which the graph divides a text of a string input."""
    texts = _texts(array).ravel().tolist()
    most = max((text.count(each) for text in texts for each in column.separators), default=0)
    return most + 1


def _check_parts(column: Input, array: Array, num_rows: int) -> None:
    """Raise `TooLargeError` where the lists in a text, filled up to the longest, are too large."""
    rows = min(num_rows, MAX_RUN_ROWS)
    # Most texts are short: their length alone says it.
    if array.size and rows * max(map(len, array.ravel().tolist())) > MAX_CELLS:
        parts = _num_parts(column, array)
        if rows * parts > MAX_CELLS:
            raise TooLargeError(
                f"input {column.name!r}: a text of {parts} parts beside {rows} rows: expected at most "
                f"{MAX_CELLS} values in all; send shorter texts, or fewer rows"
            )


def repeat(name: str, array: Array, num_rows: int) -> Array:
    """Return the one row of the tensor `name` `num_rows` times; `TooLargeError` beyond `MAX_CELLS`."""
    width = array.shape[1]
    if num_rows * width > MAX_CELLS:
        raise TooLargeError(
            f"input {name!r}: a list of {width} values for each of {num_rows} rows: expected at most "
            f"{MAX_CELLS} values in all; send a shorter list, or fewer rows"
        )
    return np.repeat(array, num_rows, axis=0)


def _by_kind(names: Sequence[str], feeds: Arrays) -> list[list[str]]:
    """Return the names of string tensors that hold bytes, and of those that hold objects."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(feeds[name].dtype.kind, []).append(name)
    return list(kinds.values())


def _is_missing(values: Array, dtype: Dtype) -> npt.NDArray[np.bool_]:
    if dtype == "double":
        # NaN alone differs from itself.
        return values != values
    if dtype == "int64":
        return values == _MISSING_INT
    if values.dtype.kind == "S":
        return values.view(np.uint8).reshape(len(values), -1)[:, 0] == 0
    return values == ""


def _texts(array: Array) -> Array:
    """Return strings as objects."""
    if array.dtype.kind == "O":
        return array
    strings = [text.decode() for text in array.ravel().tolist()]
    return np.array(strings, object).reshape(array.shape)


def _same_width(arrays: list[Array], tensor: Input) -> list[Array]:
    width = max(array.shape[1] for array in arrays)
    fill = MISSING[tensor.dtype]
    return [
        array
        if array.shape[1] == width
        else np.pad(array, ((0, 0), (0, width - array.shape[1])), constant_values=fill)
        for array in arrays
    ]


def columns_to_arrays(
    inputs: Iterable[Input], columns: Mapping[str, Sequence[object] | Array]
) -> Arrays:
    """Return the tensors of raw columns, one value a row: what `headwater score` and golden rows use.

    A column is a list (None where missing; a list a row for a list input) or an array `[N]`; integer
    arrays of any width and bool become int64, float32 becomes double. Columns that are no input are
    ignored. Raises `RequestError` with column and row.
    """
    arrays: Arrays = {}
    for column in inputs:
        values = columns.get(column.name)
        if values is None:
            continue
        try:
            if column.is_list:
                arrays[column.name], arrays[column.name + LENGTH] = ragged(
                    list(values), column.dtype
                )
            else:
                arrays[column.name] = _one_column(column, values).reshape(-1, 1)
        except Misfit as fault:
            raise fault.at(f"column {column.name!r}", f", row {fault.place}") from None
    return arrays


def _one_column(column: Input, values: Sequence[object] | Array) -> Array:
    if not isinstance(values, np.ndarray):
        return flat(values, column.dtype)
    dtype = NUMPY[column.dtype]
    if column.dtype == "string" or values.dtype == object:
        return flat(values.tolist(), column.dtype)
    if values.dtype == dtype:
        return values
    if np.can_cast(values.dtype, dtype, "safe"):
        return values.astype(dtype)
    raise Misfit(expected=f"{column.dtype} values", found=f"dtype {values.dtype}")
