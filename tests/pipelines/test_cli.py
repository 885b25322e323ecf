"""The command line: lazy commands, one error policy, exit statuses."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclopts import App

from headwater.feature_store.errors import DataError, HeadwaterError, OutputError, TrainingError
from headwater.pipelines import cli
from headwater.pipelines.cli import COMMANDS, main

HEAVY = {"torch", "torchrec", "polars", "pyarrow", "onnx", "onnxruntime", "pydantic", "granian"}


def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str) -> None:
    """Register `headwater probe`, whose function has `body`."""
    (tmp_path / "probe_command.py").write_text(f"def probe(*, json: bool = False):\n    {body}\n")
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("probe_command", None)
    monkeypatch.setitem(COMMANDS, "probe", ("probe_command:probe", "Only here."))


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], [], ["nonsense"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from headwater.pipelines.cli import main; "
        f"main({arguments}); print(*sys.modules, sep='\\n', file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert HEAVY.isdisjoint(done.stderr.splitlines())


def test_help_lists_every_command_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    places = [shown.index(summary) for _, summary in COMMANDS.values()]
    assert places == sorted(places)


def test_command_shows_its_own_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--help"]) == 0
    assert "The exit status is 1 when something does not fit." in capsys.readouterr().out


def test_version_is_the_installed_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip().count(".") == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rum"], "unknown command 'rum'. Did you mean 'run'?"),
        (["doctor", "--jsn"], "Unknown option: --jsn."),
        (["datasets", "get"], "See `headwater datasets --help`."),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_wrong_usage_is_status_2_with_a_remedy(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("headwater: ")
    assert words in error
    assert "Traceback" not in error


@pytest.mark.parametrize(("kind", "status"), [(DataError, 2), (TrainingError, 1), (OutputError, 1)])
@pytest.mark.parametrize("as_json", [True, False])
def test_own_errors_are_one_line_and_carry_their_status(
    kind: type[HeadwaterError],
    status: int,
    as_json: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    body = (
        f"from headwater.feature_store.errors import {kind.__name__} as E; raise E('a.csv: empty')"
    )
    command(monkeypatch, tmp_path, body)
    assert main(["probe", "--json"] if as_json else ["probe"]) == status
    captured = capsys.readouterr()
    assert captured.err == "headwater: a.csv: empty\n"
    assert captured.out == ('{"error":"a.csv: empty"}\n' if as_json else "")


def test_each_line_of_an_error_says_whose_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = (
        "from headwater.feature_store.errors import JobError; "
        "raise JobError('a.toml: x: unknown key.\\na.toml: y: unknown key.')"
    )
    command(monkeypatch, tmp_path, body)
    assert main(["probe", "--json"]) == 2
    captured = capsys.readouterr()
    lines = ["a.toml: x: unknown key.", "a.toml: y: unknown key."]
    assert captured.err == "".join(f"headwater: {line}\n" for line in lines)
    assert json.loads(captured.out) == {"error": "\n".join(lines)}


@pytest.mark.parametrize(
    ("option", "is_json"), [("--json=true", True), ("--json=False", False), ("--json=maybe", True)]
)
def test_errors_are_json_for_every_form_of_the_option(
    option: str, is_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["datasets", "get", "ml-1m", option]) == 2
    assert capsys.readouterr().out.startswith('{"error":') is is_json


def test_absent_package_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(monkeypatch, tmp_path, "raise ModuleNotFoundError('no', name='torchrec.modules')")
    assert main(["probe"]) == 1
    error = capsys.readouterr().err
    assert "'torchrec.modules' is not installed" in error
    assert "install the extra headwater[train];" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("module", "remedies"),
    [
        ("simdjson", ["headwater[train]", "headwater[serve]"]),
        ("prometheus_client", ["headwater[serve]", "headwater[stream]"]),
        ("onnxruntime", ["headwater[train]", "headwater[serve]", "headwater[stream]"]),
        ("sklearn", []),
    ],
)
def test_extras_are_read_from_the_installed_metadata(module: str, remedies: list[str]) -> None:
    assert [f"headwater[{extra}]" for extra in cli._extras_of(module)] == remedies


def test_absent_package_at_import_of_the_command_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(monkeypatch, tmp_path, "pass")
    monkeypatch.setitem(sys.modules, "granian", None)
    module = tmp_path / "probe_command.py"
    module.write_text("import granian\n" + module.read_text())
    assert main(["probe"]) == 1
    assert "install the extra headwater[serve];" in capsys.readouterr().err


@pytest.mark.parametrize("code", ["ENOSPC", "EDQUOT", "EACCES", "EROFS"])
def test_what_the_machine_refuses_is_one_line_with_the_path(
    code: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    number = getattr(errno, code)
    command(
        monkeypatch, tmp_path, f"import os; raise OSError({number}, os.strerror({number}), 'runs')"
    )
    assert main(["probe"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("headwater: runs: ")
    assert "Remedy: free space or name another folder" in error
    assert "Traceback" not in error


def test_full_disk_is_known_by_its_text_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(monkeypatch, tmp_path, "raise RuntimeError('No space left on device (os error 28)')")
    assert main(["probe"]) == 1
    assert capsys.readouterr().err.startswith("headwater: output: No space left on device")


def test_interrupt_is_status_130(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(monkeypatch, tmp_path, "raise KeyboardInterrupt")
    assert main(["probe"]) == 130
    assert capsys.readouterr().err == "headwater: interrupted\n"


def test_anything_else_is_a_trace_and_status_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(monkeypatch, tmp_path, "raise ZeroDivisionError('by zero')")
    assert main(["probe", "--json"]) == 1
    captured = capsys.readouterr()
    assert "Traceback (most recent call last)" in captured.err
    assert json.loads(captured.out) == {"error": "ZeroDivisionError: by zero"}


def test_returned_number_is_the_status(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    command(monkeypatch, tmp_path, "return 3")
    assert main(["probe"]) == 3


def functions(app: App) -> Iterator[App]:
    """Yield the parts of a command that do something."""
    if app.default_command:
        yield app
    else:
        for part in app:
            if part[0] != "-":
                yield from functions(app[part])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_exists_and_takes_json(name: str) -> None:
    app = cli.build_app([name])[name]
    assert isinstance(app, App)
    for function in functions(app):
        names = {
            flag for argument in function.assemble_argument_collection() for flag in argument.names
        }
        assert "--json" in names


def test_schema_is_printed_for_readers_and_as_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    text = capsys.readouterr().out
    assert main(["schema", "--json"]) == 0
    line = capsys.readouterr().out
    assert text.count("\n") > 100
    assert line.count("\n") == 1
    assert json.loads(text) == json.loads(line)
    assert json.loads(line)["properties"].keys() >= {"data", "features", "model", "train"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "either a job file or --resume"),
        (["job.toml", "--resume", "run"], "either a job file or --resume"),
        (["--resume", "run", "--set", "train.seed=1"], "--set cannot change a run"),
    ],
)
def test_train_takes_a_job_or_a_run_to_resume_as_it_is(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *arguments]) == 2
    assert says in capsys.readouterr().err
