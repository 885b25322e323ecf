"""State of an advertiser's budgets, as bytes: what is spent and in force, and what was learned."""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from headwater.pipelines.budgets.audit import GENESIS
from headwater.pipelines.budgets.records import Constraints, Put


class Array(msgspec.Struct, array_like=True):
    """A numpy array: its dtype, shape and bytes."""

    dtype: str
    shape: tuple[int, ...]
    content: bytes


class Account(msgspec.Struct, array_like=True):
    """What is known of a channel in a period, in micros."""

    allocated: int = 0
    in_force: int = 0
    """The most that the budget was at any time of the period."""
    applied: int = 0
    """The budget that the channel last said it has."""
    is_confirmed: bool = False
    """The channel has the budget that it was allocated."""
    reported: int = 0
    value: int = 0
    is_known: bool = False
    """A report of spend has come."""
    is_final: bool = False

    @property
    def exposure(self) -> int:
        """Return what the channel has spent or may still spend: reports, and the rest of its budget."""
        return self.reported if self.is_final else max(self.reported, self.in_force)


class State(msgspec.Struct):
    """State of one advertiser."""

    period: int = -1
    """The period that runs; -1 before the first tick."""
    put_number: int = 0
    """Number of the last accepted constraints."""
    constraints: Constraints | None = None
    """Constraints in force."""
    constraints_number: int = 0
    waiting: list[Put] = []
    """Constraints that hold from a later period on."""
    accounts: dict[int, dict[str, Account]] = {}
    """By period and channel: of the cycle that runs, and what is still to be learned from."""
    seen: dict[int, set[str]] = {}
    """Identifiers of records, by period."""
    channels: list[str] = []
    """Channels in the order in which the learner knows them; one that disappears stays."""
    unit: int = 0
    """Micros that are 1 to the learner: the first total of a period."""
    learned: dict[str, Array] = {}
    learned_to: int = 0
    """Periods below this were learned from."""
    decisions: int = 0
    last_hash: str = GENESIS

    def account(self, period: int, channel: str) -> Account:
        """Return the account of a channel in a period, a new one where there is none."""
        return self.accounts.setdefault(period, {}).setdefault(channel, Account())


def encode(state: State) -> bytes:
    """Return the state as bytes; equal states give equal bytes."""
    accounts = {
        period: dict(sorted(by_channel.items()))
        for period, by_channel in sorted(state.accounts.items())
    }
    seen = {period: sorted(ids) for period, ids in sorted(state.seen.items())}
    learned = dict(sorted(state.learned.items()))
    fields = {"accounts": accounts, "seen": seen, "learned": learned}
    return msgspec.msgpack.encode(msgspec.structs.replace(state, **fields))


def decode(content: bytes) -> State:
    """Return the state in bytes."""
    return msgspec.msgpack.decode(content, type=State)


def pack(arrays: dict[str, NDArray[np.generic]]) -> dict[str, Array]:
    """Return arrays as they are kept in a state."""
    return {
        name: Array(array.dtype.str, array.shape, np.ascontiguousarray(array).tobytes())
        for name, array in arrays.items()
    }


def unpack(arrays: dict[str, Array]) -> dict[str, NDArray[np.generic]]:
    """Return the arrays that `pack` was given."""
    return {
        name: np.frombuffer(array.content, array.dtype).reshape(array.shape).copy()
        for name, array in arrays.items()
    }
