"""What the learner of an advertiser knows, and what periods that have ended teach it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from headwater.models.budgets.sgd_ucb import Problem, SgdUcb, SgdUcbConfig
from headwater.pipelines.budgets.state import State, pack, unpack


class Settings(SgdUcbConfig):
    """Method and pace of the ledger."""

    bonus: float = 0.02
    """Factor of the bonus of uncertain arms; smoothing leaves less to be tried."""
    smooth: bool = True
    """Fit a concave, rising curve through the means of a channel, and choose by it."""
    delay_periods: int = 1
    """Periods to wait for late reports before one is learned from."""


def learner(state: State, settings: Settings) -> SgdUcb:
    """Return the learner in a state, with room for every channel and for the total of a period.

    Money and value are in the unit of the first total, so arms are amounts: other totals keep what was
    learned at them.
    """
    constraints = state.constraints
    assert constraints is not None
    share = constraints.total // constraints.periods_per_cycle
    state.unit = state.unit or max(share, 1)
    problem = Problem(np.ones(1), np.array([constraints.target_roi]))
    found = SgdUcb(settings, problem, len(state.channels))
    if state.learned:
        arrays = unpack(state.learned)
        found.restore(_with_room(arrays, len(state.channels), share / state.unit))
    found.problem = Problem(np.array([share / state.unit]), problem.target_R)
    return found


def keep(state: State, found: SgdUcb) -> None:
    """Put a learner into the state."""
    state.learned = pack(found.state())


def learn(state: State, settings: Settings) -> None:
    """Learn from the periods that ended long enough ago; a channel that reported no spend teaches nothing."""
    end = state.period - settings.delay_periods
    periods = [period for period in sorted(state.accounts) if state.learned_to <= period < end]
    found = learner(state, settings)
    for period in periods:
        accounts = [state.account(period, channel) for channel in state.channels]
        if not any(account.in_force for account in accounts):
            continue
        budget, value, spend = (
            np.array([amounts], dtype=np.float64) / state.unit
            for amounts in (
                [account.in_force for account in accounts],
                [account.value if account.is_known else math.nan for account in accounts],
                [account.reported for account in accounts],
            )
        )
        found.observe(budget, value, spend)
    state.learned_to = max(state.learned_to, end)
    keep(state, found)


def _with_room(
    arrays: dict[str, NDArray[np.generic]], num_channels: int, total: float
) -> dict[str, NDArray[np.generic]]:
    """Return the arrays with nothing known of new channels, and of new arms up to a larger total."""
    arm_K = arrays["arm_K"]
    step = float(arm_K[1])
    more = max(0, math.ceil((total - float(arm_K[-1])) / step - 1e-9))
    added = float(arm_K[-1]) + step * np.arange(1, more + 1)
    roomy: dict[str, NDArray[np.generic]] = {"arm_K": np.concatenate([arm_K, added])}
    for name, array in arrays.items():
        if name.endswith(("_RC", "_RCK")):
            new = (0, num_channels - array.shape[1])
            widths = [(0, 0), new, (0, more)][: array.ndim]
            array = np.pad(array, widths)
        roomy.setdefault(name, array)
    return roomy
