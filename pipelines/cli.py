"""The `headwater` command: a table of commands, imported when they run, and one error policy.

Lazy on purpose: `headwater serve` works where only the serve extra is installed, and
`headwater --help` imports neither torch nor polars nor onnxruntime.

Exit status: 0 done, 2 the user's input or usage is wrong, 130 interrupted, 1 anything else.
"""

from __future__ import annotations

import errno
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from importlib import metadata

from cyclopts import App, CycloptsError

from headwater.feature_store.errors import HeadwaterError, did_you_mean
from headwater.pipelines.console import note, to_json

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": (
        "headwater.pipelines.commands.demo:demo",
        "The whole way on real data, from logs to a score.",
    ),
    "init": (
        "headwater.pipelines.commands.init:init",
        "Look at a data file and write a first job for it.",
    ),
    "validate": ("headwater.pipelines.commands.validate:validate", "Check a job and its data."),
    "run": ("headwater.pipelines.commands.steps:run", "Prepare, train, evaluate and export a job."),
    "prepare": (
        "headwater.pipelines.commands.steps:prepare",
        "Fit encoders and write encoded shards.",
    ),
    "train": ("headwater.pipelines.commands.steps:train", "Train a model on encoded shards."),
    "search": (
        "headwater.pipelines.commands.steps:search",
        "Search for a model's architecture, and stop there.",
    ),
    "tune": ("headwater.pipelines.commands.tune:tune", "Search over settings of a job by trials."),
    "evaluate": ("headwater.pipelines.commands.steps:evaluate", "Measure a run on its test data."),
    "export": ("headwater.pipelines.commands.steps:export", "Write a run as a release."),
    "report": (
        "headwater.pipelines.commands.steps:report",
        "Write or compare HTML reports of runs.",
    ),
    "score": (
        "headwater.pipelines.commands.steps:score",
        "Score a file with a release, without torch.",
    ),
    "recommend": (
        "headwater.pipelines.commands.steps:recommend",
        "Recommend items to a file of queries.",
    ),
    "serve": ("headwater.serving.command:serve", "Serve a folder of releases over HTTP."),
    "schema": ("headwater.pipelines.commands.steps:schema", "Print the JSON Schema of a job file."),
    "stream": ("headwater.pipelines.commands.stream:app", "Keep online features up from Kafka."),
    "skew": (
        "headwater.pipelines.commands.skew:skew",
        "Compare a stream job's features offline and online.",
    ),
    "broker": (
        "headwater.pipelines.commands.broker:broker",
        "Start a local Kafka for development, without Java or Docker.",
    ),
    "budgets": (
        "headwater.pipelines.commands.budgets:app",
        "Check the log of decisions on channel budgets.",
    ),
    "datasets": ("headwater.pipelines.commands.datasets:app", "List, fetch and make data sets."),
    "doctor": (
        "headwater.pipelines.commands.doctor:doctor",
        "Check that the installed versions fit.",
    ),
}
"""Name to (where it is, what it does); a function, or a cyclopts App for a command with parts."""

_ENVIRONMENT_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS}
_FULL_DISK_TEXT = ("No space left on device", "Disk quota exceeded")
_JSON_ASKED = r"--json(=(?!(no|n|0|false|f)$).*)?"
"""The option as cyclopts reads it; what it refuses as a value is asked for too."""
_DISTRIBUTION_OF = {"simdjson": "pysimdjson"}
"""Modules whose distribution has another name."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    as_json = any(re.fullmatch(_JSON_ASKED, token, re.IGNORECASE) for token in tokens)
    try:
        if tokens and tokens[0] not in {*COMMANDS, "--help", "-h", "--version"}:
            return _fail(_unknown_command(tokens[0]), 2, as_json=as_json)
        status = build_app(tokens)(tokens, exit_on_error=False, print_error=False)
    except HeadwaterError as error:
        return _fail(str(error), error.exit_status, as_json=as_json)
    except CycloptsError as error:
        error.verbose = False
        help_of = tokens[0] if tokens and tokens[0] in COMMANDS else ""
        text = f"{error} See `{' '.join(filter(None, ('headwater', help_of, '--help')))}`."
        return _fail(text, 2, as_json=as_json)
    except KeyboardInterrupt:
        return _fail("interrupted", 130, as_json=as_json)
    except BaseException as error:
        # A panic of Polars is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        text = _environment_text(error)
        if text is None:
            traceback.print_exc()
            text = f"{type(error).__name__}: {error}"
        return _fail(text, 1, as_json=as_json)
    return status


def build_app(tokens: Sequence[str] = ()) -> App:
    """Return the cyclopts App; the command that `tokens` name shows its own docstring as help."""
    app = App(
        name="headwater",
        help="Declare features once; train on TorchRec tables; serve ONNX with no skew.",
        version=lambda: metadata.version("headwater"),
        result_action="return_int_as_exit_code_else_zero",
        suppress_keyboard_interrupt=False,
    )
    for position, (name, (path, summary)) in enumerate(COMMANDS.items()):
        # A summary given here keeps the list of commands from importing them, but would also
        # replace the long help of the one that is asked for.
        shown = None if tokens and tokens[0] == name else summary
        app.command(path, name=name, help=shown, sort_key=position)
    return app


def _fail(text: str, status: int, *, as_json: bool) -> int:
    # Each line by itself says whose it is, for logs that mix those of several programs.
    for line in text.splitlines():
        note(f"headwater: {line}")
    if as_json:
        print(to_json({"error": text}), flush=True)
    return status


def _unknown_command(name: str) -> str:
    # Not left to cyclopts, which would import every command to look for a near name.
    return (
        f"unknown command {name!r}.{did_you_mean(name, COMMANDS)} Commands: {', '.join(COMMANDS)}."
    )


def _environment_text(error: BaseException) -> str | None:
    """Return what is wrong with the machine, and the remedy; None if Headwater is at fault."""
    for cause in _chain(error):
        if isinstance(cause, ModuleNotFoundError) and cause.name:
            extras = _extras_of(cause.name.partition(".")[0])
            if extras:
                # Not `pip install`: for the train extra it brings the CUDA build of fbgemm everywhere.
                named = " or ".join(f"headwater[{extra}]" for extra in extras)
                return (
                    f"the package '{cause.name}' is not installed. Remedy: install the extra "
                    f"{named}; in a checkout `make venv` installs all."
                )
        text = str(cause)
        if any(part in text for part in _FULL_DISK_TEXT) or (
            isinstance(cause, OSError) and cause.errno in _ENVIRONMENT_ERRORS
        ):
            place = getattr(cause, "filename", None)
            reason = getattr(cause, "strerror", None) or text
            return (
                f"{place or 'output'}: {reason}. What was there before is untouched. "
                "Remedy: free space or name another folder, then run the same command again."
            )
        if "fbgemm" in text and isinstance(cause, OSError | ImportError):
            return f"{text}. Remedy: `headwater doctor` says which versions do not fit."
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _extras_of(module: str) -> list[str]:
    """Return the extras of Headwater that bring `module`; `dev` only if no other does."""
    # Late, as it is needed by this error alone.
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    wanted = canonicalize_name(_DISTRIBUTION_OF.get(module, module))
    markers = [
        requirement.marker
        for requirement in map(Requirement, metadata.requires("headwater") or [])
        if requirement.marker is not None and canonicalize_name(requirement.name) == wanted
    ]
    known = metadata.metadata("headwater").get_all("Provides-Extra") or []
    extras = [
        extra for extra in known if any(marker.evaluate({"extra": extra}) for marker in markers)
    ]
    return [extra for extra in extras if extra != "dev"] or extras


if __name__ == "__main__":
    sys.exit(main())
