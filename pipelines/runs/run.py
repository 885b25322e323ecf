"""The folder of a run: `runs/<job name>/<UTC time>/`.

job.toml          the resolved job
model.toml        settings of the model that was trained, where a search found them
phases/           folders of the phases before the last one, with what they found
checkpoint/       what training goes on from, and the best epoch
log.jsonl         one JSON object a line: what happened, with its time
scores/           logits of the validation and test rows
metrics.json      its presence says that training is complete
evaluation.json   what the report draws
"""

from __future__ import annotations

import errno
import os
import time
import tomllib
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import tomli_w

from headwater.feature_store.errors import OutputError, RunError
from headwater.pipelines.arguments import path_of
from headwater.pipelines.console import to_json
from headwater.pipelines.job import Job, ModelSection, dump_job, load_job
from headwater.pipelines.output import locked, write_whole, writing
from headwater.pipelines.runs.checkpoint import CHECKPOINT
from headwater.pipelines.runs.records import RunMetrics, read_run_metrics

RUNS = Path("runs")
TUNING = "tune.toml"
"""File of a folder of trials, which lies among the runs of its job and is none of them."""
METRICS = "metrics.json"
MODEL = "model.toml"
ARCHITECTURE = "architecture.toml"
PHASES = "phases"
EVALUATION = "evaluation.json"


@dataclass(frozen=True, slots=True)
class Run:
    """One training of one job."""

    path: Path
    job: Job

    @property
    def checkpoint(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / CHECKPOINT

    @property
    def scores(self) -> Path:
        """Folder of the scored rows."""
        return self.path / "scores"

    @property
    def architectures(self) -> list[Path]:
        """Files of what the phases of a search found, in their order; none where no phase leaves one."""
        return sorted(self.path.glob(f"{PHASES}/*/{ARCHITECTURE}"))

    @property
    def architecture(self) -> Path:
        """File of what the last phase of a search found."""
        return self.architectures[-1]

    @property
    def trained_job(self) -> Job:
        """The job with the settings of the model that was trained, which an earlier phase may have found."""
        path = self.path / MODEL
        if not path.is_file():
            return self.job
        section = ModelSection.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        return self.job.model_copy(update={"model": section})

    def record_model(self, job: Job) -> None:
        """Record the settings of the model that is trained, where they differ from the job's."""
        if job.model != self.job.model:
            section = job.model.model_dump(mode="json", exclude_none=True)
            write_whole(self.path / MODEL, tomli_w.dumps(section).encode())

    @property
    def is_complete(self) -> bool:
        """True when training has ended by itself."""
        return (self.path / METRICS).is_file()

    @contextmanager
    def training(self) -> Generator[None]:
        """Keep other processes from training in this run; RunError where one does, OutputError without locks.

        What torchrun started lives on when torchrun itself is killed, and would go on writing here.
        """
        with alone_in(self.path, "training"):
            yield

    @property
    def metrics(self) -> RunMetrics:
        """Content of `metrics.json`; RunError where training has not ended, or the file is damaged."""
        path = self.path / METRICS
        try:
            return read_run_metrics(path.read_bytes())
        except FileNotFoundError:
            raise RunError(
                f"{path}: no such file. Training has not ended: go on with "
                f"`headwater train --resume {self.path}`."
            ) from None
        except msgspec.MsgspecError as error:
            raise RunError(f"{path}: damaged: {error}. Train again.") from error

    def write(self, name: str, record: msgspec.Struct) -> None:
        """Write a record as a JSON file of the run, as a whole; NaN and infinities become null."""
        text = msgspec.json.format(to_json(msgspec.to_builtins(record)), indent=1)
        write_whole(self.path / name, text.encode())

    def log(self, event: str, **fields: Any) -> None:
        """Append one event to `log.jsonl`; `event` is a constant text, values are fields."""
        path = self.path / "log.jsonl"
        line = to_json({"ts_ms": time.time_ns() // 1_000_000, "event": event, **fields}) + "\n"
        content = line.encode()
        with writing(path), path.open("ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            if file.write(content) < len(content):
                # The disk filled up within the line.
                file.truncate(end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def alone_in(folder: Path, work: str) -> Generator[None]:
    """Keep other processes from the same work in a folder; RunError where one is at it."""
    with ExitStack() as stack:
        with writing(folder):
            try:
                stack.enter_context(locked(folder, wait=False))
            except BlockingIOError:
                raise RunError(
                    f"{folder}: another process is {work} it. Wait for its end, or stop it first."
                ) from None
        yield


def create_run(job: Job, root: Path = RUNS) -> Run:
    """Make the folder of a new run, named by the present time, with the resolved job in it."""
    return Run(new_folder(job, root, "", "job.toml"), job)


def new_folder(job: Job, root: Path, prefix: str, file: str) -> Path:
    """Make a folder among a job's runs, named by `prefix` and the present time, with the job in `file`."""
    name = prefix + datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    path = root / job.name / name
    with writing(path):
        attempt = 1
        while True:
            try:
                path.mkdir(parents=True)
                break
            except FileExistsError:
                attempt += 1
                path = root / job.name / f"{name}-{attempt}"
    try:
        write_whole(path / file, dump_job(job).encode())
    except OutputError:
        path.rmdir()
        raise
    return path


def open_run(path: Path | str) -> Run:
    """Return the run in a folder, complete or not; RunError where it is not a run."""
    path = Path(path)
    if not (path / "job.toml").is_file():
        raise RunError(
            f"{path}: not a run, it holds no job.toml. "
            "Expected a folder such as runs/<job name>/<time>."
        )
    return Run(path, load_job(path / "job.toml"))


def run_folder(run: Run | Path | str, argument: str) -> Path:
    """Return the folder of a run; InputError where `argument` holds neither a run nor a path."""
    if isinstance(run, Run):
        return run.path
    return path_of(run, argument, "a run: a Run, or its folder as text or Path")


def as_run(run: Run | Path | str, argument: str) -> Run:
    """Return a run as it is, or the one in a folder; RunError where the folder is not a run's."""
    return run if isinstance(run, Run) else open_run(run_folder(run, argument))


def newest_run(name: str, root: Path = RUNS) -> Run:
    """Return the newest complete run of a job's name; RunError where there is none."""
    folder = root / name
    found = sorted(path.parent for path in folder.glob(f"*/{METRICS}"))
    if not found:
        unfinished = sorted(path.parent for path in folder.glob("*/job.toml"))
        hint = (
            f"Go on with the unfinished one: headwater train --resume {unfinished[-1]}"
            if unfinished
            else "Train one first: headwater train JOB.toml"
        )
        raise RunError(f"{folder}: no complete run. {hint}")
    return open_run(found[-1])
