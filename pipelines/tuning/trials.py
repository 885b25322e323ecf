"""Trials that have ended, as Optuna's storage in the folder of a tuning keeps them.

Only ended trials are in it, each added in one transaction, so that a kill leaves none half told. It is a
database of SQLite, which other tools of Optuna read too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import quote

import msgspec
import optuna
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

STORAGE = "optuna.db"
TRIALS = "trials"

State = Literal["complete", "pruned", "failed"]
_STATES = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


class TrialRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One trial, as tables show it."""

    number: int
    """From 1."""
    state: State
    values: dict[str, Any]
    """Values of the searched keys."""
    metric: float | None = None
    """The metric at the epoch that was kept, of a pruned trial at its last; of several that are joined, the
    sum of their gains."""
    gain: float | None = None
    """The metric, turned so that more is better."""
    epochs: int
    seconds: float
    """Time spent in steps."""
    run: str
    """Folder of its run, which the storage leaves out: the tuning may be moved."""
    error: str | None = None
    """Reason of a failed trial."""


class Trials:
    """The ended trials of a tuning, in order."""

    def __init__(self, folder: Path) -> None:
        """Open the storage of a tuning, or make it."""
        self.folder = folder
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        name = quote(str(folder / STORAGE))
        self._storage = optuna.storages.RDBStorage(f"sqlite:///file:{name}?uri=true")
        self._study = optuna.create_study(
            study_name="trials", storage=self._storage, direction="maximize", load_if_exists=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._storage.remove_session()
        self._storage.engine.dispose()

    @property
    def frozen(self) -> list[FrozenTrial]:
        """The trials as Optuna keeps them."""
        return self._study.get_trials(deepcopy=False)

    @property
    def records(self) -> list[TrialRecord]:
        """The trials as tables show them."""
        return [
            msgspec.convert(
                {**trial.user_attrs, "run": str(self.run_folder(position))}, TrialRecord
            )
            for position, trial in enumerate(self.frozen, start=1)
        ]

    def run_folder(self, number: int) -> Path:
        """Return the folder of a trial's run."""
        return self.folder / TRIALS / f"{number:04d}"

    def add(self, trial: Trial, record: TrialRecord, gains: Mapping[int, float]) -> None:
        """Add a trial that has ended; `gains` are by epoch."""
        told = msgspec.to_builtins(record)
        del told["run"]
        self._study.add_trial(
            create_trial(
                state=_STATES[record.state],
                value=None if record.state == "failed" else record.gain,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs=told,
                intermediate_values=dict(gains),
            )
        )


def best_of(records: Sequence[TrialRecord]) -> TrialRecord | None:
    """Return the best complete trial, of equal ones the first; None without one."""
    complete = [record for record in records if record.state == "complete"]
    return max(complete, key=lambda record: _known(record.gain), default=None)


def _known(gain: float | None) -> float:
    assert gain is not None, "a complete trial was measured"
    return gain
