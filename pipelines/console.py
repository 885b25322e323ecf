"""Output of a command: its result and its progress.

Results go to standard output and everything else to standard error, so that
`headwater run --json | tail -1` is one JSON object. A progress bar appears on a terminal only; a
file or a pipe gets a plain line now and then.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import msgspec

if TYPE_CHECKING:
    from tqdm import tqdm

LINE_EVERY_S = 10.0
"""Seconds between two plain lines of progress."""


def emit(result: Mapping[str, Any], *, as_json: bool, text: str) -> None:
    """Print a command's result: `text` for a reader, or `result` as one line of JSON.

    Paths become text, NaN and infinities become null (JSON has neither).
    """
    print(to_json(result) if as_json else text, flush=True)


def to_json(result: Mapping[str, Any]) -> str:
    """Return `result` as one line of JSON."""
    return msgspec.json.encode(dict(result), enc_hook=_plain).decode()


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as an indented table, numbers to the right, without columns that are empty."""
    keys = [key for key in (rows[0] if rows else ()) if any(row[key] != "" for row in rows)]
    cells = [[_cell(row[key]) for key in keys] for row in rows]
    widths = [max(len(line[i]) for line in [keys, *cells]) for i in range(len(keys))]
    right = [all(isinstance(row[key], int | float) for row in rows) for key in keys]
    lines = [title]
    for line in [keys, *cells]:
        parts = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ]
        lines.append("  " + "  ".join(parts).rstrip())
    return "\n".join(lines)


def note(text: str) -> None:
    """Tell the reader, on standard error, what is being done or should be known."""
    print(text, file=sys.stderr, flush=True)


class Progress:
    """Progress of one piece of work, as a context manager: `bar.advance(k)` counts `k` units.

    A tqdm bar on a terminal; otherwise a line every `LINE_EVERY_S` seconds and one at the end.
    Without `closing` the end leaves nothing, for work whose result is told otherwise; `shown` is False
    on ranks that should be silent.
    """

    def __init__(
        self,
        description: str,
        *,
        total: int | None = None,
        unit: str = "steps",
        closing: bool = True,
        shown: bool = True,
    ) -> None:
        self._description = description
        self._closing = closing and shown
        self._shown = shown
        self._total = total
        self._unit = unit
        self._done = 0
        self._start_s = self._line_s = time.monotonic()
        self._bar: tqdm[Any] | None = None
        if shown and sys.stderr.isatty():
            # Late: tqdm comes with the train extra, and no command of another extra needs it.
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, desc=description, unit=f" {unit}", unit_scale=True, leave=closing
            )

    def advance(self, count: int = 1) -> None:
        """Count `count` more units as done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self._shown and time.monotonic() - self._line_s >= LINE_EVERY_S:
            self._line_s = time.monotonic()
            note(self.line())

    def line(self) -> str:
        """Return the state as one line: what, how much, how fast, how long it will take."""
        speed = self._done / max(time.monotonic() - self._start_s, 1e-9)
        if self._total:
            share = 100 * self._done / self._total
            amount = f"{self._done:,} of {self._total:,} {self._unit} ({share:.0f} %)"
        else:
            amount = f"{self._done:,} {self._unit}"
        line = f"{self._description}: {amount}, {speed:,.{0 if speed >= 10 else 1}f} {self._unit}/s"
        if self._total and 0 < self._done < self._total:
            line += f", {(self._total - self._done) / speed:,.0f} s left"
        return line

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif error is None and self._closing:
            note(self.line())


def _plain(value: object) -> object:
    """Turn what msgspec does not know into what it does: a path to text, a scalar to a number."""
    if isinstance(value, PurePath):
        return str(value)
    item = getattr(value, "item", None)
    if callable(item):
        return item()
    raise NotImplementedError(f"a result cannot hold {type(value).__name__}")


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
