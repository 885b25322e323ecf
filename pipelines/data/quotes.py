"""Quotes of a CSV file, looked at before they are read: a stray one would swallow rows without a word."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headwater.feature_store.errors import DataError
from headwater.pipelines.data.source_file import SourceFile

_NEWLINE, _RETURN = 10, 13


class QuoteCheck:
    """Holds that each quoted field ends where its closing quote stands.

    A quote opens a field only at its start; elsewhere in a field without quotes it is plain text. Blocks
    must not end at a quote or within a line end, but for the last.
    """

    def __init__(self, file: SourceFile) -> None:
        self._file = file
        self._quote = ord(file.csv.quote)
        self._after = np.array([ord(file.delimiter), _NEWLINE, _RETURN, self._quote], np.uint8)
        self._before = self._after[:3]
        self._is_inside = False
        self._last = _NEWLINE
        # The header is row 0.
        self._rows = 0 if file.csv.columns is None else 1
        self._opened_in = 0

    def add(self, block: bytes, *, is_last: bool) -> None:
        """Look at the next bytes; DataError by row for text after a closing quote, or none at the end."""
        data = np.frombuffer(block, np.uint8)
        quotes = np.flatnonzero(data == self._quote)
        if len(quotes) and not self._are_paired(data, quotes):
            quotes = self._real_quotes(data, quotes)
        rows = self._row_ends(data, quotes)
        if self._is_inside and not len(quotes) and not is_last:
            raise self._unclosed(f"not closed within {len(data)} bytes")
        if len(quotes) and (self._is_inside + len(quotes)) % 2:
            self._opened_in = self._rows + int(np.searchsorted(rows, quotes[-1]))
        self._is_inside = bool((self._is_inside + len(quotes)) % 2)
        self._rows += len(rows)
        if len(data):
            self._last = int(data[-1])
        if is_last and self._is_inside:
            raise self._unclosed("never closed")

    def _unclosed(self, what: str) -> DataError:
        return DataError(
            f"{self._where(self._opened_in)}: a quoted field is {what}. Close it, double quotes inside it, "
            f'or set csv = {{ quote = "" }} where quotes are plain text.'
        )

    def _are_paired(self, data: NDArray[np.uint8], quotes: NDArray[np.int64]) -> bool:
        """Return whether every quote opens a field, closes one, or is one of two inside one."""
        first = int(self._is_inside)
        opening, closing = quotes[first::2], quotes[1 - first :: 2]
        before = np.where(opening > 0, data[opening - 1], self._last)
        after = data[np.minimum(closing + 1, len(data) - 1)]
        at_end = closing == len(data) - 1
        opens = np.isin(before, self._after)
        # A quote after a quote goes on with its field, where that one closed it.
        return bool(opens.all() and (np.isin(after, self._after) | at_end).all())

    def _real_quotes(self, data: NDArray[np.uint8], quotes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the quotes that open or close a field, one by one: those within plain text do not."""
        real: list[int] = []
        is_inside = self._is_inside
        skipped = -1
        for position in quotes.tolist():
            if position == skipped:
                real.append(position)
                continue
            if not is_inside:
                before = data[position - 1] if position else self._last
                if before in self._before:
                    is_inside = True
                    real.append(position)
                continue
            real.append(position)
            after = data[position + 1] if position + 1 < len(data) else _NEWLINE
            if after == self._quote:
                skipped = position + 1
            elif after in self._before:
                is_inside = False
            else:
                raise self._stray(data, position, np.array(real, np.int64))
        return np.array(real, np.int64)

    def _stray(
        self, data: NDArray[np.uint8], position: int, quotes: NDArray[np.int64]
    ) -> DataError:
        ends = self._row_ends(data[: position + 1], quotes[:-1])
        found = data[position : position + 20].tobytes().decode(errors="replace")
        return DataError(
            f"{self._where(self._rows + len(ends))}: text after a closing quote: {found!r}. Double the "
            f'quotes inside a quoted field, or set csv = {{ quote = "" }} where quotes are plain text.'
        )

    def _row_ends(self, data: NDArray[np.uint8], quotes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the newlines that end a row: those outside of quotes, and not of an empty line."""
        ends = np.flatnonzero(data == _NEWLINE)
        if len(quotes) or self._is_inside:
            passed = np.searchsorted(quotes, ends) + self._is_inside
            ends = ends[passed % 2 == 0]
        before = np.where(ends > 0, data[np.maximum(ends - 1, 0)], self._last)
        is_return = before == _RETURN
        two_before = np.where(ends > 1, data[np.maximum(ends - 2, 0)], self._last)
        return ends[np.where(is_return, two_before, before) != _NEWLINE]

    def _where(self, row: int) -> str:
        return f"{self._file.path}, row {row}" if row else f"{self._file.path}, the header"
