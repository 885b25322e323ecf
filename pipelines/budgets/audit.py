"""The audit log of decisions: each carries the hash of the one before, so that none can be changed unseen."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import msgspec

from headwater.feature_store.errors import DataError
from headwater.pipelines.budgets.records import Decision

GENESIS = "0" * 64
"""Hash before the first decision."""


def sealed(decision: Decision) -> Decision:
    """Return the decision with its hash: SHA-256 of its JSON without it."""
    return msgspec.structs.replace(decision, hash=_digest(decision))


def verify(decisions: Iterable[tuple[str, Decision]]) -> int:
    """Return the number of decisions in an unbroken chain, each given with where it stands.

    DataError names the first that was changed, left out, put in or moved.
    """
    expected, count = GENESIS, 0
    for place, decision in decisions:
        if decision.hash != _digest(decision):
            raise DataError(
                f"{place}: decision {decision.number} has hash {decision.hash[:12]}.., its content "
                f"{_digest(decision)[:12]}..: it was changed after it was made."
            )
        if decision.number != count or decision.previous_hash != expected:
            raise DataError(
                f"{place}: found decision {decision.number} after {decision.previous_hash[:12]}.., expected "
                f"{count} after {expected[:12]}..: decisions were left out, put in or moved."
            )
        expected, count = decision.hash, count + 1
    return count


def read_log(path: Path) -> Iterable[tuple[str, Decision]]:
    """Yield the decisions of an audit log, a JSON object a line, each with its place; else DataError."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from None
    for number, line in enumerate(lines, start=1):
        try:
            yield f"{path}, line {number}", msgspec.json.decode(line, type=Decision)
        except msgspec.DecodeError as error:
            raise DataError(f"{path}, line {number}: no decision: {error}.") from None


def _digest(decision: Decision) -> str:
    bare = msgspec.structs.replace(decision, hash="")
    return hashlib.sha256(msgspec.json.encode(bare, order="deterministic")).hexdigest()
