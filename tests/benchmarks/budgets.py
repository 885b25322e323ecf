"""SGD-UCB: how fast it decides, how its regret falls, and what it reaches beside other ways to split.

speed      Time to decide the budgets of 10,000 advertisers with 10 channels of 30 arms, beside the bare
           numpy argmax of a difference of two arrays of that shape.
regret     Gap of the mean unpaced budgets to the global optimum, with what they lack of the constraints at
           its prices, on instances whose target binds; slope over T.
table      Value as a share of the optimum of every policy on every simulated market.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Annotated

import numpy as np
from cyclopts import App, Parameter
from measure import interleave, machine, ratios, table

from headwater.models.budgets.baselines import (
    ExploreThenCommit,
    GreedyMarginal,
    HillCurves,
    Known,
    Paced,
    Policy,
    Proportional,
    Thompson,
)
from headwater.models.budgets.environment import Market, Setting
from headwater.models.budgets.pacer import Limits
from headwater.models.budgets.sgd_ucb import Problem, SgdUcb, SgdUcbConfig
from headwater.models.budgets.simulate import simulate

app = App(help=__doc__)

Horizons = Annotated[Sequence[int], Parameter(consume_multiple=True)]

SETTINGS: dict[str, Setting] = {
    "second price": Setting(),
    "second price, target": Setting(target=1.2),
    "first price": Setting(kind="first_price"),
    "multi-item": Setting(kind="multi_item"),
    "bad bidding": Setting(kind="bad_bidding"),
    "switching": Setting(drift="switching"),
    "seasonal": Setting(drift="seasonal"),
    "delay of 20 periods": Setting(delay_periods=20),
}


def _policies(problem: Problem, channels: int, horizon: int) -> dict[str, Policy]:
    """Return a new policy of each kind."""
    plain = SgdUcbConfig(horizon=horizon)
    smooth = SgdUcbConfig(horizon=horizon, smooth=True, bonus=0.02)
    windowed = SgdUcbConfig(horizon=horizon, smooth=True, bonus=0.02, window=max(20, horizon // 5))
    return {
        "equal": Known.equal(problem, channels),
        "proportional": Proportional(problem, channels),
        "explore, commit": ExploreThenCommit(problem, channels, horizon, 1),
        "greedy marginal": GreedyMarginal(problem, channels, horizon, 1),
        "Thompson": Thompson(problem, channels, horizon, 1),
        "Hill curves": HillCurves(problem, channels, horizon, 1),
        "SGD-UCB paced": Paced(plain, problem, channels),
        "SGD-UCB smooth": Paced(smooth, problem, channels),
        "SGD-UCB smooth, window": Paced(windowed, problem, channels),
    }


@app.command(name="table")
def compare(*, horizons: Horizons = (100, 1000), seeds: int = 50, only: str = "") -> None:
    """Run every policy on every market, and print the mean share of the optimum with its 95 % interval.

    Parameters
    ----------
    only
        Markets whose name holds this; all when empty.
    """
    lines: list[list[str]] = []
    head: list[str] = []
    for name, setting in SETTINGS.items():
        if only not in name:
            continue
        for horizon in horizons:
            market = Market(setting, seeds, horizon, seed=2026)
            problem = Problem(np.ones(seeds), market.target_R)
            cells: list[str] = []
            for policy in _policies(problem, setting.num_channels, horizon).values():
                found = simulate(market, policy)
                assert found.most_spent <= 1 + 1e-9, "above the total"
                half = 1.96 * found.share_R.std(ddof=1) / np.sqrt(seeds)
                cells.append(f"{found.share_R.mean():.3f} +- {half:.3f}")
            head = ["market", "T", *_policies(problem, setting.num_channels, horizon)]
            lines.append([name, f"{horizon:,}", *cells])
    print(machine())
    print(table(head, lines))


@app.command
def regret(*, horizons: Horizons = (1_000, 10_000), seeds: int = 20, instances: int = 5) -> None:
    """Print the regret of the mean unpaced budgets by T, and its slope on log axes, of each instance."""
    lines: list[list[str]] = []
    slopes: list[float] = []
    for instance in range(instances):
        regrets = [_regret(instance, horizon, seeds) for horizon in horizons]
        slope = float(np.polyfit(np.log(horizons), np.log(np.maximum(regrets, 1e-9)), 1)[0])
        slopes.append(slope)
        lines.append([f"{instance}", *(f"{each:.4f}" for each in regrets), f"{slope:.3f}"])
    print(machine())
    print(table(["instance", *(f"T = {each:,}" for each in horizons), "slope"], lines))
    print(f"median slope {np.median(slopes):.3f}")


def _regret(instance: int, horizon: int, seeds: int) -> float:
    """Return the mean regret over seeds, as a share of the optimum."""
    market = Market(Setting(target=1.2), seeds, horizon, seed=100 + instance, shared=True)
    best, curves = market.optima(0)[0], market.means[0]
    target = float(market.target_R[0])
    problem = Problem(np.ones(seeds), market.target_R)
    learner = SgdUcb(SgdUcbConfig(horizon=horizon), problem, len(curves))
    for period in range(horizon):
        budget_RC = learner.unpaced()
        learner.observe(budget_RC, market.value(period, budget_RC))
    budget_RC = learner.mean_budgets()
    value_R = np.sum([curve.value(budget_RC[:, c]) for c, curve in enumerate(curves)], axis=0)
    spend_R = budget_RC.sum(1)
    lacking_R = best.roi_price * np.maximum(0, target * spend_R - value_R)
    over_R = best.budget_price * np.maximum(0, spend_R - 1)
    return float((best.value - value_R + lacking_R + over_R).mean() / best.value)


@app.command
def speed(*, rounds: int = 9, rows: int = 10_000, channels: int = 10, arms: int = 30) -> None:
    """Print the time to decide, paced and unpaced, as a multiple of the bare argmax."""
    rng = np.random.default_rng(0)
    first, second = rng.random((2, rows, channels, arms))
    scale_RC = rng.uniform(0.2, 2.0, (rows, channels))
    limits = Limits.of_total(np.ones(rows), channels)

    def learner(*, pace: bool) -> SgdUcb:
        config = SgdUcbConfig(horizon=10_000, arms=arms)
        found = SgdUcb(config, Problem(np.ones(rows), np.full(rows, 0.5)), channels)
        for _ in range(arms + 10):
            budget_RC = found.paced(limits).budget_RC if pace else found.unpaced()
            noise = rng.uniform(0.8, 1.2, budget_RC.shape)
            found.observe(budget_RC, scale_RC * np.sqrt(budget_RC) * noise)
        return found

    paced, unpaced = learner(pace=True), learner(pace=False)
    times = interleave(
        {
            "argmax": _timed(lambda: np.argmax(first - second, axis=-1)),
            "unpaced": _timed(unpaced.unpaced),
            "paced": _timed(lambda: paced.paced(limits)),
        },
        rounds,
    )
    print(machine())
    lines = [
        [
            name,
            f"{1e3 * float(np.median(times[name])):.1f} ms",
            ratios(times["argmax"], times[name]).text(),
        ]
        for name in times
    ]
    print(table(["", "median", "x argmax"], lines))


def _timed(run: Callable[[], object]) -> Callable[[], float]:
    def timed() -> float:
        start_s = perf_counter()
        run()
        return perf_counter() - start_s

    return timed


if __name__ == "__main__":
    app()
