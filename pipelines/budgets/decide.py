"""Budgets of a period, in whole micros: under what is left of the cycle, within every bound, with reasons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from headwater.models.budgets.grid import nearest_arm
from headwater.models.budgets.pacer import Limits
from headwater.models.budgets.sgd_ucb import SgdUcb
from headwater.pipelines.budgets.audit import sealed
from headwater.pipelines.budgets.learning import Settings, keep, learner
from headwater.pipelines.budgets.records import Allocation, Channel, Constraints, Decision
from headwater.pipelines.budgets.state import Account, State

_ABSENT = "absent"


@dataclass(slots=True)
class _Bounds:
    """Bounds of a channel in micros, and which constraint each comes from."""

    low: int
    high: int
    low_name: str
    high_name: str


def decide(state: State, settings: Settings, cause: str) -> Decision:
    """Decide the budgets of the period that runs, and put them in force in `state`.

    Allocations, reported spend and what is kept for unreported spend never add up to more than the total.
    Of what is left of a cycle each period gets an equal part; a period that has spent more than its part
    already, since the total was lowered, gets a part of the rest on top of that, so that it goes on.
    """
    constraints = state.constraints
    assert constraints is not None
    now = [state.account(state.period, channel) for channel in state.channels]
    previous = _previous(state)
    free = constraints.total - _exposure_of_others(state, constraints)
    alarms = _alarms(state, constraints)
    bounds = _bounds(state, constraints, now, previous, is_tick=cause == "tick")
    budget = _part(state, constraints, free, sum(account.reported for account in now))
    limit = free
    if constraints.needs_applied:
        # A budget that is never given up lasts to the end of the cycle, and into the next.
        limit = budget = min(budget, constraints.total // constraints.periods_per_cycle)
    lows = sum(each.low for each in bounds)
    found = learner(state, settings)
    curve_CK, optimistic_CK = found.curve()[0], found.optimistic()[0]
    if lows > max(0, free):
        alarms.append(
            f"floors and what is spent add up to {lows} micros, {max(0, free)} are left: floors are cut"
        )
        micros = _cut_floors(bounds, now, free)
        price = 0.0
    else:
        micros, price = _chosen(found, state.unit, max(budget, lows), bounds)
    keep(state, found)
    micros = _lower_raises(micros, now, limit)
    if _out_of_reach(found, optimistic_CK, constraints.target_roi):
        best = float((curve_CK[:, 1:] / found.arm_K[1:]).max())
        alarms.append(
            f"target ROI {constraints.target_roi:g} is out of reach: the best is about {best:.3g}"
        )
    allocations: list[Allocation] = []
    for place, (name, amount) in enumerate(zip(state.channels, micros, strict=True)):
        arm = int(nearest_arm(found.arm_K, np.array(amount / state.unit)))
        value = float(curve_CK[place, arm])
        allocations.append(
            Allocation(
                channel=name,
                micros=amount,
                previous=previous[place],
                expected_value=round(value * state.unit),
                uncertainty=round((float(optimistic_CK[place, arm]) - value) * state.unit),
                bound=_bound(amount, bounds[place]),
            )
        )
        account = now[place]
        account.is_confirmed &= account.allocated == amount
        account.allocated = amount
        account.in_force = max(account.in_force, amount)
    left = free - sum(account.exposure for account in now)
    if left < 0:
        alarms.append(f"what is spent or may be spent is {-left} micros above the total")
    decision = sealed(
        Decision(
            number=state.decisions,
            period=state.period,
            constraints=state.constraints_number,
            cause=cause,
            allocations=tuple(allocations),
            roi_price=float(found.lam_R[0]),
            budget_price=price,
            left=left,
            alarms=tuple(alarms),
            previous_hash=state.last_hash,
        )
    )
    state.decisions, state.last_hash = state.decisions + 1, decision.hash
    return decision


def _exposure_of_others(state: State, constraints: Constraints) -> int:
    """Return what is spent, or kept for unreported spend, in the other periods of the cycle."""
    length = constraints.periods_per_cycle
    return sum(
        account.exposure
        for period, accounts in state.accounts.items()
        if period // length == state.period // length and period != state.period
        for account in accounts.values()
    )


def _part(state: State, constraints: Constraints, free: int, spent: int) -> int:
    """Return the budget of this period."""
    length = constraints.periods_per_cycle
    remaining = length - state.period % length
    even = max(0, free) // remaining
    return even if spent < even else spent + max(0, free - spent) // remaining


def _previous(state: State) -> list[int]:
    """Return each channel's budget before this decision."""
    earlier = max((each for each in state.accounts if each < state.period), default=state.period)
    found: list[int] = []
    for channel in state.channels:
        now = state.account(state.period, channel).allocated
        found.append(now or state.account(earlier, channel).allocated)
    return found


def _bounds(
    state: State,
    constraints: Constraints,
    now: Sequence[Account],
    previous: Sequence[int],
    *,
    is_tick: bool,
) -> list[_Bounds]:
    """Return the bounds of all channels; a channel that is no longer declared gets nothing."""
    declared = {channel.name: channel for channel in constraints.channels}
    found: list[_Bounds] = []
    for name, account, last in zip(state.channels, now, previous, strict=True):
        bounds = _declared_bounds(declared.get(name), constraints.total, last)
        change = constraints.max_change
        if change is not None and is_tick and last > 0 and bounds.low < bounds.high:
            bounds = _bounded_change(bounds, last, change)
        if account.reported > bounds.low:
            bounds.low, bounds.low_name = account.reported, "spent"
        bounds.high = max(bounds.high, bounds.low)
        found.append(bounds)
    # Budgets fall no faster than asked where the total allows it, and no further.
    if sum(each.low for each in found) > constraints.total // constraints.periods_per_cycle:
        for each, account, name in zip(found, now, state.channels, strict=True):
            if each.low_name == "change":
                each.low = max(declared[name].floor, account.reported)
                each.low_name = "floor"
    return found


def _declared_bounds(channel: Channel | None, total: int, last: int) -> _Bounds:
    if channel is None:
        return _Bounds(0, 0, _ABSENT, _ABSENT)
    if channel.hold and last:
        return _Bounds(last, last, "hold", "hold")
    if channel.fixed is not None:
        return _Bounds(channel.fixed, channel.fixed, "fixed", "fixed")
    high = total if channel.ceiling is None else channel.ceiling
    return _Bounds(channel.floor, max(high, channel.floor), "floor", "ceiling")


def _bounded_change(bounds: _Bounds, last: int, change: float) -> _Bounds:
    low, high = int(np.ceil(last * (1 - change))), int(last * (1 + change))
    if low > bounds.low:
        bounds.low, bounds.low_name = min(low, bounds.high), "change"
    if high < bounds.high:
        bounds.high, bounds.high_name = max(high, bounds.low), "change"
    return bounds


def _chosen(
    found: SgdUcb, unit: int, budget: int, bounds: Sequence[_Bounds]
) -> tuple[list[int], float]:
    """Return the learner's budgets in micros, which add up to what it chose, and the price of the total."""
    low_C = np.array([[each.low for each in bounds]]) / unit
    high_C = np.array([[each.high for each in bounds]]) / unit
    paced = found.paced(Limits(np.array([budget / unit]), low_C, high_C))
    exact = (paced.budget_RC[0] * unit).tolist()
    return round_micros(exact, bounds, budget), float(paced.price_R[0])


def round_micros(exact: Sequence[float], bounds: Sequence[_Bounds], budget: int) -> list[int]:
    """Return whole micros near `exact`, within bounds, which add up to its sum and never above `budget`."""
    micros = [
        min(max(int(amount), each.low), each.high)
        for amount, each in zip(exact, bounds, strict=True)
    ]
    rest = min(budget, round(sum(exact))) - sum(micros)
    # Largest remainders first; where rounding went too far, the largest amounts give back.
    order = sorted(range(len(micros)), key=lambda i: (int(exact[i]) - exact[i], i))
    for place in order:
        if rest > 0 and micros[place] < bounds[place].high:
            micros[place] += 1
            rest -= 1
    for place in sorted(order, key=lambda i: -micros[i]):
        back = min(max(0, -rest), micros[place] - bounds[place].low)
        micros[place] -= back
        rest += back
    return micros


def _cut_floors(bounds: Sequence[_Bounds], now: Sequence[Account], free: int) -> list[int]:
    """Return what is spent, and equal shares of the floors above that, as far as they fit."""
    spent = [account.reported for account in now]
    wanted = [each.low - done for each, done in zip(bounds, spent, strict=True)]
    left = max(0, free - sum(spent))
    return [
        done + want * left // max(1, sum(wanted)) for done, want in zip(spent, wanted, strict=True)
    ]


def _lower_raises(micros: Sequence[int], now: Sequence[Account], free: int) -> list[int]:
    """Return the budgets with those lowered that would rise on money which others may still spend."""
    held = [
        account.reported if account.is_final else max(account.in_force, account.reported)
        for account in now
    ]
    raises = [max(0, amount - old) for amount, old in zip(micros, held, strict=True)]
    over = sum(held) + sum(raises) - free
    if over <= 0:
        return list(micros)
    fitting = max(0, sum(raises) - over)
    return [
        amount - rise + (rise * fitting // sum(raises) if rise else 0)
        for amount, rise in zip(micros, raises, strict=True)
    ]


def _alarms(state: State, constraints: Constraints) -> list[str]:
    """Return what is wrong with the reports of the cycle that runs."""
    length = constraints.periods_per_cycle
    alarms: list[str] = []
    reported = 0
    for period in sorted(state.accounts):
        if period // length != state.period // length:
            continue
        for channel, account in sorted(state.accounts[period].items()):
            reported += account.reported
            where = f"channel {channel!r}, period {period}"
            if account.reported > account.in_force and period <= state.period:
                alarms.append(
                    f"{where}: spent {account.reported} micros, above its budget {account.in_force}"
                )
            if account.applied > account.allocated and period < state.period:
                alarms.append(
                    f"{where}: has {account.applied} micros in force, not {account.allocated}"
                )
            if (
                period == state.learned_to - 1
                and account.allocated
                and not account.is_known
                and channel in {each.name for each in constraints.channels}
            ):
                alarms.append(f"{where}: no spend was reported")
    if reported > constraints.total:
        alarms.append(f"{reported} micros are spent, the total is {constraints.total}")
    return alarms


def _out_of_reach(found: SgdUcb, optimistic_CK: np.ndarray, target: float) -> bool:
    """Return whether no arm of any channel may bring the target, bonus included."""
    if not target or not found.means.count_RCK.sum(2).all():
        return False
    return bool((optimistic_CK[:, 1:] < target * found.arm_K[1:]).all())


def _bound(amount: int, bounds: _Bounds) -> str:
    if amount < bounds.low:
        return "total"
    if amount == bounds.low and (amount > 0 or bounds.low_name not in ("floor", "spent")):
        return bounds.low_name
    return bounds.high_name if amount == bounds.high else "choice"
