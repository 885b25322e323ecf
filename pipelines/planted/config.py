"""Settings of data with planted truth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeFloat, ValidationError, model_validator

from headwater.feature_store.config import Config
from headwater.feature_store.errors import InputError
from headwater.pipelines.job_errors import explain

SplitName = Literal["train", "valid", "test"]


class PlantedConfig(Config):
    """Settings of data with planted truth; the defaults are for methods that choose interactions."""

    rows: int = Field(default=250_000, ge=1)
    """Rows of the three files together."""
    fields: int = Field(default=12, ge=1)
    """Columns of integer ids: small, large and useless ones."""
    ids: int = Field(default=3_050, ge=1)
    """Distinct values of all fields together: `small_ids` for each small one, the rest shared evenly."""
    small_fields: int = Field(default=5, ge=0)
    """Fields of few values, equally frequent."""
    small_ids: int = Field(default=50, ge=2)
    """Values of each small field."""
    useless_fields: int = Field(default=2, ge=0)
    """Fields of many values, of which none has an effect."""
    memorised: int = Field(default=3, ge=0)
    """Pairs of small fields with a random sign for every combination of values."""
    factorised: int = Field(default=3, ge=0)
    """Pairs of large fields with an inner product of latent vectors, one for each value."""
    rank: int = Field(default=2, ge=1)
    """Dimension of the latent vectors."""
    cell_effect: NonNegativeFloat = 1.2
    """Effect of a memorised pair: its sign times this is added to the logit."""
    product_effect: NonNegativeFloat = 1.2
    """Effect of a factorised pair: the standard deviation over rows of what it adds to the logit."""
    id_effects: tuple[NonNegativeFloat, NonNegativeFloat] = (0.0, 0.3)
    """Range of what a value alone adds to the logit, drawn evenly, with a random sign."""
    useless_ids: float = Field(default=0.0, ge=0, lt=1)
    """Share of the values of large fields that have no effect; they are as frequent as the others."""
    exponent: float = Field(default=0.0, ge=0)
    """Skew of the values of large and useless fields: 0 is even, 1 log-uniform, more is steeper."""
    noise: NonNegativeFloat = 0.0
    """Standard deviation of what is added to each row's logit and stands in no column."""
    min_count: int = Field(default=10, ge=1)
    """Combinations seen less often in training give nothing to the planted architecture's AUC."""
    valid: float = Field(default=0.1, gt=0, lt=1)
    """Share of the rows for validation."""
    test: float = Field(default=0.1, gt=0, lt=1)
    """Share of the rows for test."""
    seed: int = Field(default=0, ge=0)
    """Seed of the truth and of the rows."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.small_fields + self.useless_fields > self.fields:
            raise ValueError(
                f"fields: expected at least {self.small_fields + self.useless_fields}, small_fields and "
                f"useless_fields together, found {self.fields}"
            )
        for option, kind, fields in (
            ("memorised", "small", self.small_fields),
            ("factorised", "large", self.large_fields),
        ):
            most, found = math.comb(fields, 2), getattr(self, option)
            if found > most:
                raise ValueError(
                    f"{option}: expected at most {most}, the pairs of {fields} {kind} fields, found {found}"
                )
        self._require_ids()
        if self.id_effects[0] > self.id_effects[1]:
            raise ValueError(
                f"id_effects: expected [least, most], found [{self.id_effects[0]}, {self.id_effects[1]}]"
            )
        if min(self.split.values()) < 1:
            raise ValueError(
                f"valid and test: of {self.rows} rows they leave {self.split}; expected at least one each"
            )
        return self

    def _require_ids(self) -> None:
        small, others = self.small_fields * self.small_ids, self.fields - self.small_fields
        if not others:
            if self.ids != small:
                raise ValueError(
                    f"ids: expected {small}, those of the small fields, as there are no others; "
                    f"found {self.ids}"
                )
        # A factorised effect needs two values that have one.
        elif (self.ids - small) // others * (1 - self.useless_ids) < 2:
            raise ValueError(
                f"ids: found {self.ids}, which leaves fewer than two useful values for each of "
                f"{others} large and useless fields, as the small ones take {small}"
            )

    @property
    def large_fields(self) -> int:
        """Fields that are neither small nor useless."""
        return self.fields - self.small_fields - self.useless_fields

    @property
    def split(self) -> dict[SplitName, int]:
        """Rows of each file."""
        valid, test = round(self.rows * self.valid), round(self.rows * self.test)
        return {"train": self.rows - valid - test, "valid": valid, "test": test}


def read_config(values: Mapping[str, Any], source: str) -> PlantedConfig:
    """Return the settings in a dict; InputError has a line after `source` for each wrong one."""
    try:
        return PlantedConfig.model_validate(dict(values))
    except ValidationError as error:
        lines = explain(error, PlantedConfig, values)
        raise InputError("\n".join(f"{source}: {line}" for line in lines)) from None
