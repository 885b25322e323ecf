"""The `[tune]` section: settings of the job to search, and values to try. `tuning/` carries it out."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Self

from pydantic import AllowInfNan, BeforeValidator, Field, Strict, StrictInt, model_validator

from headwater.feature_store.config import Config

Number = StrictInt | Annotated[float, Strict(), AllowInfNan(False)]


class Range(Config):
    """Numbers from `low` to `high`, both included; whole numbers where both ends are."""

    low: Number
    """Lower end."""
    high: Number
    """Upper end."""
    log: bool = False
    """Draw evenly over the orders of magnitude, as fits learning rates."""
    step: Number | None = None
    """Distance of the numbers to draw, from `low` on; when absent 1 for whole numbers, else none."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low {self.low} has no logarithm; with log = true it must be above 0")
        if self.step is None:
            return self
        if self.log:
            raise ValueError("`step` does not go with log = true")
        if self.step <= 0:
            raise ValueError(f"step {self.step} is not above 0")
        if self.is_whole and not isinstance(self.step, int):
            raise ValueError(f"step {self.step} between whole numbers must be whole too")
        if self._steps() % 1:
            raise ValueError(
                f"no number of steps of {self.step} leads from {self.low} to {self.high}"
            )
        return self

    @property
    def is_whole(self) -> bool:
        """True where whole numbers are drawn."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def count(self) -> int | None:
        """Number of values; None where they are continuous."""
        if self.is_whole or self.step is not None:
            return int(self._steps()) + 1
        return None

    @property
    def text(self) -> str:
        """The range for a reader."""
        step = "" if self.step is None else f" in steps of {self.step}"
        return f"{self.low} to {self.high}{step}{', on a scale of logarithms' if self.log else ''}"

    def numbers(self) -> list[int | float]:
        """Return all values of a range that is not continuous."""
        step = _exact(self.step or 1)
        kind = int if self.is_whole else float
        return [kind(_exact(self.low) + i * step) for i in range(self.count or 0)]

    def _steps(self) -> Decimal:
        return (_exact(self.high) - _exact(self.low)) / _exact(self.step or 1)


def _exact(number: float) -> Decimal:
    """Return a number as it is written."""
    return Decimal(str(number))


def choice_text(value: object) -> str:
    """Return a value of a job as JSON, which tells 1 from true and from the text "1"."""
    return json.dumps(value, ensure_ascii=False, default=str)


def _whole_keys(keys: object) -> object:
    """Refuse a key that was written without quotes, which TOML reads as nested tables."""
    if isinstance(keys, Mapping):
        for key, values in keys.items():
            if isinstance(values, Mapping) and not values.keys() & {"low", "high"}:
                raise ValueError(
                    f"{key}: expected a list of choices, or a table with low and high. A key with dots needs "
                    'quotes: "train.dense.lr" = {low = 1e-4, high = 1e-2}'
                )
    return keys


class Tune(Config):
    """Search over settings of the job, which `headwater tune` carries out; other commands pass over it."""

    trials: int = Field(gt=0)
    """Trainings in all, each with other values."""
    keys: Annotated[dict[str, Range | list[Any]], BeforeValidator(_whole_keys)] = Field(
        min_length=1
    )
    """Keys of the job, in quotes, each with a list of choices or a range: `"train.dense.lr" = {low = 1e-4,
    high = 1e-2, log = true}`. A list of lists is a choice of lists."""
    metric: str | None = None
    """Validation metric that decides between trials, or several joined by '-' as in `train.monitor`; that of
    `train.monitor` when absent."""
    prune: bool = True
    """Once five trials are complete, stop one whose best epoch so far is worse than the median of theirs at
    the same epoch."""
    seed: int = 2024
    """Seed of the values that are drawn."""

    @model_validator(mode="after")
    def _makes_trials(self) -> Self:
        for key, values in self.keys.items():
            if isinstance(values, Range):
                continue
            if not values:
                raise ValueError(f"keys: {key}: expected at least one choice")
            texts = [choice_text(value) for value in values]
            if twice := sorted({text for text in texts if texts.count(text) > 1}):
                raise ValueError(f"keys: {key}: {', '.join(twice)} given twice")
        if self.combinations is not None and self.trials > self.combinations:
            raise ValueError(
                f"trials: found {self.trials}, expected at most {self.combinations}, the number of "
                "combinations that `keys` have; no two trials are equal"
            )
        return self

    @property
    def combinations(self) -> int | None:
        """Number of different trials; None where a range is continuous."""
        counts = [
            values.count if isinstance(values, Range) else len(values)
            for values in self.keys.values()
        ]
        known = [count for count in counts if count is not None]
        return math.prod(known) if len(known) == len(counts) else None
