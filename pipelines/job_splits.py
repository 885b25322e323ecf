"""The rules of `data.split`: how the rows of one source are divided. `data/splits.py` applies them."""

from __future__ import annotations

from datetime import date
from math import isfinite
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from headwater.feature_store.config import Config


class Shares(Config):
    """Shares of the rows that are held out; the rest is for training."""

    valid: float = Field(default=0.1, gt=0, lt=1)
    """Share of the rows for validation."""
    test: float = Field(default=0.1, gt=0, lt=1)
    """Share of the rows for test."""

    @model_validator(mode="after")
    def _leaves_training_rows(self) -> Self:
        if self.valid + self.test >= 1:
            raise ValueError(f"valid {self.valid} and test {self.test} leave no rows for training")
        return self


class TimeSplit(Shares):
    """The newest rows are held out: the last `test` share for test, the `valid` share before it."""

    by: Literal["time"] = "time"
    column: str
    """Column that orders the rows."""


class RatioSplit(Shares):
    """Rows are held out at random: the same rows for the same seed and data."""

    by: Literal["ratio"] = "ratio"
    seed: int = 0
    """Seed of the assignment."""


class LeaveOneOutSplit(Config):
    """Each user's newest row is for test, the one before it for validation."""

    by: Literal["leave-one-out"] = "leave-one-out"
    user: str
    """Column of the user."""
    time: str
    """Column that orders a user's rows."""


SplitValue = str | bool | int | float
"""What says where a row belongs."""


def _split_value(value: object) -> SplitValue:
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, SplitValue) and not (isinstance(value, float) and not isfinite(value)):
        return value
    raise PydanticCustomError(
        "split_value", "Input should be text, a number, true or false, or a date"
    )


def split_text(value: SplitValue) -> str:
    """Return a value as a text would hold it: `5`, `0.5`, `true`."""
    return str(value).lower() if isinstance(value, bool) else str(value)


_SPLIT_VALUE: dict[str, Any] = {
    "anyOf": [{"type": "string"}, {"type": "number"}, {"type": "boolean"}]
}
SplitValues = Annotated[
    list[Annotated[SplitValue, PlainValidator(_split_value)]],
    BeforeValidator(lambda value: value if isinstance(value, list) else [value]),
    PlainSerializer(lambda values: values[0] if len(values) == 1 else values, when_used="json"),
    WithJsonSchema({"anyOf": [*_SPLIT_VALUE["anyOf"], {"type": "array", "items": _SPLIT_VALUE}]}),
]
"""One value or a list of them, in a job file; always a list once it is read."""


class ColumnSplit(Config):
    """A column of the data says where a row belongs, by the values given here."""

    by: Literal["column"] = "column"
    column: str
    """Column that holds the values: text, numbers, true and false, dates or times."""
    train: SplitValues = Field(default=["train"], min_length=1)
    """Its value for training rows, or several; 5 and "5" are the same, and a month or a day as text stands
    for all times in it."""
    valid: SplitValues = Field(default=["valid"], min_length=1)
    """Its value for validation rows, or several."""
    test: SplitValues = ["test"]
    """Its value for test rows, or several; `[]` for no test rows."""

    @model_validator(mode="after")
    def _apart(self) -> Self:
        owner: dict[str, str] = {}
        for part in ("train", "valid", "test"):
            for value in getattr(self, part):
                if owner.setdefault(split_text(value), part) != part:
                    raise ValueError(
                        f"`{owner[split_text(value)]}` and `{part}` both hold {split_text(value)!r}; "
                        "put it into one of them"
                    )
        return self


Split = Annotated[
    TimeSplit | RatioSplit | LeaveOneOutSplit | ColumnSplit, Field(discriminator="by")
]


def split_columns(split: Split | None) -> tuple[str, ...]:
    """Return the raw columns that a rule reads."""
    match split:
        case TimeSplit() | ColumnSplit():
            return (split.column,)
        case LeaveOneOutSplit():
            return split.time, split.user
        case RatioSplit() | None:
            return ()
