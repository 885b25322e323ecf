"""Errors a user can cause, shared by every part of Headwater.

    HeadwaterError
    |- InputError            the user's input is wrong: exit status 2
    |  |- JobError           a job file: unknown key, wrong value, contradiction
    |  |- DataError          raw data: missing file or column, wrong type, bad label, empty data
    |  |- FeatureError       an encoder cannot take the column it was given
    |  |- ShardError         prepared data: corrupt, incomplete, or made by another schema
    |  |- RunError           a run folder: incomplete, or of another job
    |  `- ReleaseError       a release: corrupt, incomplete, or refused by its own golden rows
    |- TrainingError         training stopped by itself, as on a non-finite loss: exit status 1
    |- ParityError           an exported graph differs from the trained network: exit status 1
    `- OutputError           the result could not be written, as on a full disk: exit status 1

A message says where, what was found, what was expected, and the remedy.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches


class HeadwaterError(Exception):
    """Base of every error that Headwater raises on purpose; `exit_status` is the process's status."""

    exit_status = 1


class InputError(HeadwaterError):
    """The user's input is wrong; the message names the file, key, column or row."""

    exit_status = 2


class JobError(InputError):
    """A job file has an unknown key, a wrong value or a contradiction."""


class DataError(InputError):
    """Raw data is absent, empty, of a wrong type, or has a label outside {0, 1}."""


class FeatureError(InputError):
    """An encoder cannot take the column it was given."""


class ShardError(InputError):
    """Prepared data is corrupt, incomplete, or was made with another schema."""


class RunError(InputError):
    """A run folder is incomplete or belongs to another job."""


class ReleaseError(InputError):
    """A release is corrupt, incomplete, or misses its own golden rows."""


class TrainingError(HeadwaterError):
    """Training stopped by itself, as on a non-finite loss."""


class ParityError(HeadwaterError):
    """An exported graph differs from the trained network by more than the job's tolerance."""


class OutputError(HeadwaterError):
    """A result could not be written, as on a full disk; what was there before is untouched."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the sentence that names the nearest known name, to follow another; '' where none is near."""
    near = get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def largest(counts: Mapping[str, int]) -> str:
    """Return the names of the three largest counts, quoted, each with its count."""
    descending = sorted(counts.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{name!r} {count:,}" for name, count in descending)
