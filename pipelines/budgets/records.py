"""Messages about an advertiser's budgets: what is reported and declared, and what is decided.

Money is integer micros of the advertiser's currency, and values are too. Periods are numbered from 0; a cycle
(a day of hours, as a rule) is `periods_per_cycle` of them, and the total is for a cycle.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from headwater.feature_store.errors import InputError


class Channel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of a channel's budget in a period, in micros."""

    name: str
    floor: int = 0
    ceiling: int | None = None
    fixed: int | None = None
    """The budget itself, which is then not chosen."""
    hold: bool = False
    """Keep the budget as it is, by hand."""


class Constraints(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an advertiser asks for."""

    currency: str
    total: int
    """Micros of a cycle that are never exceeded."""
    channels: tuple[Channel, ...]
    periods_per_cycle: int = 24
    target_roi: float = 0.0
    """Value for each unit of spend; 0 asks for none."""
    max_change: float | None = None
    """Largest change of a channel's budget from period to period, as a share of it."""
    needs_applied: bool = False
    """A budget is in force only when its channel says so; until then the larger of old and new counts."""


class Spend(msgspec.Struct, frozen=True, tag="spend", forbid_unknown_fields=True):
    """Spend of a channel in a period."""

    id: str
    channel: str
    period: int
    micros: int
    currency: str
    restated: bool = False
    """`micros` is the whole of the period and replaces what was reported; otherwise it is added."""
    final: bool = False
    """Nothing more will come for the period: what was kept for unreported spend is free again."""


class Conversion(msgspec.Struct, frozen=True, tag="conversion", forbid_unknown_fields=True):
    """Value that a channel brought in a period."""

    id: str
    channel: str
    period: int
    micros: int


class Applied(msgspec.Struct, frozen=True, tag="applied", forbid_unknown_fields=True):
    """The budget that a channel has in force in a period."""

    id: str
    channel: str
    period: int
    micros: int


class Tick(msgspec.Struct, frozen=True, tag="tick", forbid_unknown_fields=True):
    """A period begins, and all before it have ended."""

    period: int


class Put(msgspec.Struct, frozen=True, tag="put", forbid_unknown_fields=True):
    """Constraints that hold from a period on; their number is one above that of the last."""

    number: int
    from_period: int
    constraints: Constraints


Record = Spend | Conversion | Applied | Tick | Put


class Allocation(msgspec.Struct, frozen=True):
    """The budget of a channel for a period, and why."""

    channel: str
    micros: int
    previous: int
    expected_value: int
    """Micros of value that the budget is expected to bring."""
    uncertainty: int
    """Bonus for what is not known of it, in micros of value."""
    bound: str
    """What decided it: `choice`, or the bound where it lies: `floor`, `ceiling`, `fixed`, `hold`, `change`,
    `total`, or `spent`, what was spent already."""


class Decision(msgspec.Struct, frozen=True):
    """Allocations of a period, chained to the decision before by its hash."""

    number: int
    period: int
    constraints: int
    """Number of the constraints that held."""
    cause: str
    """`tick` or `put`."""
    allocations: tuple[Allocation, ...]
    roi_price: float
    budget_price: float
    left: int
    """Micros of the cycle that are neither spent, nor kept for unreported spend, nor allocated."""
    alarms: tuple[str, ...]
    previous_hash: str
    hash: str = ""


class Rejected(msgspec.Struct, frozen=True):
    """A record that changed nothing, and why."""

    record: Record
    reason: str


def parse_constraints(values: object) -> Constraints:
    """Return checked constraints; InputError has a line for each contradiction."""
    try:
        constraints = msgspec.convert(values, Constraints)
    except msgspec.ValidationError as error:
        raise InputError(f"constraints: {error}.") from None
    if found := problems(constraints):
        raise InputError("\n".join(found))
    return constraints


def problems(constraints: Constraints) -> list[str]:
    """Return what is wrong or cannot be met, a line each; a constraint is never relaxed in silence."""
    found: list[str] = []
    names = [channel.name for channel in constraints.channels]
    if not names or len(set(names)) < len(names):
        found.append(f"channels: expected at least one, each of its own name, found {names}.")
    if constraints.total < 0 or constraints.periods_per_cycle < 1:
        found.append(
            f"total and periods_per_cycle: expected at least 0 and 1, found {constraints.total} and "
            f"{constraints.periods_per_cycle}."
        )
        return found
    if constraints.target_roi < 0 or (constraints.max_change or 0) < 0:
        found.append("target_roi and max_change: expected none below 0.")
    for channel in constraints.channels:
        found += _channel_problems(channel)
    floors = sum(lower_bounds(constraints.channels))
    share = constraints.total // constraints.periods_per_cycle
    if floors > share:
        found.append(
            f"floors add up to {floors} micros a period, total is {share} ({constraints.total} over "
            f"{constraints.periods_per_cycle} periods): lower floors or fixed budgets, or raise the total."
        )
    return found


def lower_bounds(channels: Sequence[Channel]) -> list[int]:
    """Return the least budget of each channel in a period."""
    return [each.floor if each.fixed is None else each.fixed for each in channels]


def _channel_problems(channel: Channel) -> list[str]:
    amounts = {"floor": channel.floor, "ceiling": channel.ceiling, "fixed": channel.fixed}
    found = [
        f"channel {channel.name!r}: {name} is {amount}, expected none below 0."
        for name, amount in amounts.items()
        if amount is not None and amount < 0
    ]
    if channel.ceiling is not None and channel.floor > channel.ceiling:
        found.append(
            f"channel {channel.name!r}: floor {channel.floor} is above ceiling {channel.ceiling}."
        )
    if channel.fixed is not None and not (
        channel.floor <= channel.fixed <= (channel.ceiling or channel.fixed)
    ):
        found.append(
            f"channel {channel.name!r}: fixed {channel.fixed} is outside its floor and ceiling."
        )
    return found
