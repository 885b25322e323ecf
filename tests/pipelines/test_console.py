"""What a command shows: one JSON line, and plain progress on standard error."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from headwater.pipelines import console
from headwater.pipelines.console import Progress, emit


def test_json_result_is_one_line_with_plain_values(
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = {"run": Path("runs/a"), "auc": np.float32(0.5), "bad": float("nan")}
    emit(result, as_json=True, text="not shown")
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line) for line in lines] == [{"run": "runs/a", "auc": 0.5, "bad": None}]


def test_text_result_goes_to_standard_output(
    capsys: pytest.CaptureFixture[str],
) -> None:
    emit({"run": "a"}, as_json=False, text="done")
    assert capsys.readouterr().out == "done\n"


def test_progress_away_from_a_terminal_is_one_line_at_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Progress("read", total=3, unit="files") as bar:
        bar.advance(3)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("read: 3 of 3 files (100 %), ")
    assert captured.err.count("\n") == 1


def test_long_progress_writes_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "LINE_EVERY_S", 0.0)
    with Progress("train", unit="rows") as bar:
        bar.advance(4096)
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith("train: 4,096 rows, ")
    assert first.endswith(" rows/s")


def test_a_line_of_unfinished_work_says_how_long_it_will_take(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "LINE_EVERY_S", 0.0)
    with Progress("search", total=40, unit="candidates", closing=False) as bar:
        bar._start_s -= 20
        bar.advance(10)
    line = capsys.readouterr().err.strip()
    assert line == "search: 10 of 40 candidates (25 %), 0.5 candidates/s, 60 s left"


def test_failed_work_writes_no_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="stop"), Progress("train"):
        raise ValueError("stop")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("closing", [True, False])
def test_progress_on_a_terminal_is_a_bar(
    closing: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress("read", total=3, unit="files", closing=closing) as bar:
        bar.advance(3)
    shown = capsys.readouterr().err
    assert shown.startswith("\rread:   0%")
    assert ("3.00/3.00" in shown.rpartition("\r")[2]) == closing
    assert "read: 3 of 3" not in shown


def test_value_that_json_cannot_hold_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="cannot hold object"):
        emit({"x": object()}, as_json=True, text="")
