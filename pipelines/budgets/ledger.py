"""The ledger: records change an advertiser's state one by one; ticks and constraints decide budgets.

A pure function of state and records: no clock, no chance, no order but that of the records. So the same
records give bitwise the same allocations, however they are cut into batches.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from headwater.pipelines.budgets.decide import Settings, decide
from headwater.pipelines.budgets.learning import learn
from headwater.pipelines.budgets.records import (
    Applied,
    Conversion,
    Decision,
    Put,
    Record,
    Rejected,
    Spend,
    Tick,
    problems,
)
from headwater.pipelines.budgets.state import State, decode, encode


@dataclass(frozen=True, slots=True)
class Advanced:
    """What records led to."""

    state: bytes
    decisions: list[Decision] = field(default_factory=list[Decision])
    rejected: list[Rejected] = field(default_factory=list[Rejected])


def advance(state: bytes | None, records: Iterable[Record], settings: Settings) -> Advanced:
    """Return the state after the records, with every decision made and every record that changed nothing."""
    ledger = _Ledger(State() if state is None else decode(state), settings)
    for record in records:
        reason = ledger.take(record)
        if reason is not None:
            ledger.rejected.append(Rejected(record, reason))
    return Advanced(encode(ledger.state), ledger.decisions, ledger.rejected)


class _Ledger:
    """An advertiser's state while records are taken."""

    def __init__(self, state: State, settings: Settings) -> None:
        self.state = state
        self.settings = settings
        self.decisions: list[Decision] = []
        self.rejected: list[Rejected] = []

    def take(self, record: Record) -> str | None:
        """Change the state by a record; return why it changed nothing."""
        match record:
            case Tick():
                return self._tick(record.period)
            case Put():
                return self._put(record)
            case Spend() | Conversion() | Applied():
                return self._event(record)

    def _event(self, record: Spend | Conversion | Applied) -> str | None:
        state = self.state
        if state.constraints is None:
            return "no constraints have come yet: PUT them first"
        oldest, newest = self._kept_from(), state.period + state.constraints.periods_per_cycle
        if not oldest <= record.period <= newest:
            return f"period {record.period} is outside {oldest} to {newest}, which are open"
        if record.channel not in state.channels:
            return f"unknown channel {record.channel!r}; known are {', '.join(state.channels)}"
        if record.micros < 0:
            return f"{record.micros} micros: expected none below 0"
        if isinstance(record, Spend) and record.currency != state.constraints.currency:
            return f"currency {record.currency!r}, expected {state.constraints.currency!r}"
        seen = state.seen.setdefault(record.period, set())
        if record.id in seen:
            return f"duplicate: {record.id!r} came before"
        seen.add(record.id)
        account = state.account(record.period, record.channel)
        match record:
            case Spend():
                kept = 0 if record.restated else account.reported
                account.reported = kept + record.micros
                account.is_known = True
                account.is_final |= record.final
            case Conversion():
                account.value += record.micros
            case Applied():
                account.applied = record.micros
                account.is_confirmed = record.micros == account.allocated
                account.in_force = max(account.in_force, record.micros)
        return None

    def _tick(self, period: int) -> str | None:
        state = self.state
        if period <= state.period:
            return f"period {state.period} runs already"
        before, state.period = state.period, period
        self._take_waiting()
        if state.constraints is None:
            return None
        if state.constraints.needs_applied and before >= 0:
            self._carry(before, period)
        learn(state, self.settings)
        self.decisions.append(decide(state, self.settings, "tick"))
        oldest = self._kept_from()
        for table in (state.accounts, state.seen):
            for old in [each for each in table if each < oldest]:
                del table[old]
        return None

    def _put(self, record: Put) -> str | None:
        state = self.state
        if record.number != state.put_number + 1:
            return (
                f"number {record.number}, expected {state.put_number + 1}: another writer was first"
            )
        if found := problems(record.constraints):
            return "\n".join(found)
        last = state.waiting[-1].constraints if state.waiting else state.constraints
        if last is not None:
            for name in ("currency", "periods_per_cycle"):
                old, new = getattr(last, name), getattr(record.constraints, name)
                if old != new:
                    return f"{name}: found {new!r}, expected {old!r}, as it was; it cannot change"
        state.put_number = record.number
        state.waiting.append(record)
        if self._take_waiting() and state.period >= 0:
            self.decisions.append(decide(state, self.settings, "put"))
        return None

    def _take_waiting(self) -> bool:
        """Put the constraints in force whose period has come; return whether there were any."""
        state = self.state
        due = [put for put in state.waiting if put.from_period <= max(state.period, 0)]
        for put in due:
            state.constraints, state.constraints_number = put.constraints, put.number
            names = [channel.name for channel in put.constraints.channels]
            state.channels += [name for name in names if name not in state.channels]
        state.waiting = [put for put in state.waiting if put not in due]
        return bool(due)

    def _carry(self, before: int, period: int) -> None:
        """Leave budgets in force in the periods after, the largest where no channel confirmed the last."""
        for channel in self.state.channels:
            account = self.state.account(before, channel)
            carried = account.allocated if account.is_confirmed else account.in_force
            for later in range(before + 1, period + 1):
                account = self.state.account(later, channel)
                account.in_force = max(account.in_force, carried)

    def _kept_from(self) -> int:
        """Return the first period open to records: of the cycle that runs, or not learned from yet."""
        state = self.state
        assert state.constraints is not None
        length = state.constraints.periods_per_cycle
        return min(max(state.period, 0) // length * length, state.learned_to)


def exposure(state: bytes) -> int:
    """Return what is spent or may still be spent in the cycle that runs, in micros."""
    found = decode(state)
    assert found.constraints is not None
    length = found.constraints.periods_per_cycle
    cycle = max(found.period, 0) // length
    return sum(
        account.exposure
        for period, accounts in found.accounts.items()
        if period // length == cycle
        for account in accounts.values()
    )


def record_of(content: bytes) -> Record:
    """Return the record in a JSON message; msgspec.ValidationError names the wrong field."""
    return msgspec.json.decode(content, type=Record)
