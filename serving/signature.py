"""The inputs that a release takes in: their names, the checks of tensors, and what stands for absent ones.

N candidates: a candidate input has N rows; a context input has N rows, or one for all of them. A list
input is a pair, padded `[N, L]` and `<name>.length` int64 `[N, 1]`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from headwater.feature_store.schema import Dtype
from headwater.serving.errors import Misfit, RequestError, TooLargeError, shorten, unknown_name
from headwater.serving.manifest import Feature, Input
from headwater.serving.tensors import (
    MAX_CELLS,
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
        self.lists = tuple(name for name, column in self.inputs.items() if column.is_list)
        self.divided = tuple(column for column in self.inputs.values() if column.separators)
        self.context = tuple(n for n, tensor in self.tensors.items() if tensor.role == "context")
        self.alike: dict[tuple[Dtype, str], list[str]] = {}
        for name, column in self.inputs.items():
            if not column.is_list:
                self.alike.setdefault((column.dtype, column.role), []).append(name)

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
        given = len(arrays) == len(self.tensors) and not self.lists
        for column in self.divided:
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
        for name in self.lists:
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


def as_objects(array: Array) -> Array:
    """Return strings as objects."""
    if array.dtype.kind == "O":
        return array
    strings = [text.decode() for text in array.ravel().tolist()]
    return np.array(strings, object).reshape(array.shape)


def num_parts(column: Input, array: Array) -> int:
    """Return the most parts into which the graph divides a text of a string input."""
    texts = as_objects(array).ravel().tolist()
    most = max((text.count(each) for text in texts for each in column.separators), default=0)
    return most + 1


def _check_parts(column: Input, array: Array, num_rows: int) -> None:
    """Raise `TooLargeError` where the lists in a text, filled up to the longest, are too large."""
    rows = min(num_rows, MAX_RUN_ROWS)
    # Most texts are short: their length alone says it.
    if array.size and rows * max(map(len, array.ravel().tolist())) > MAX_CELLS:
        parts = num_parts(column, array)
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
