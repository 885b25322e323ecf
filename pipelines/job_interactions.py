"""The `[interactions]` section of a job: a log of users or baskets with items, and how it is measured."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from headwater.feature_store.config import Config
from headwater.feature_store.encoders import Vocabulary

Cutoffs = Annotated[list[Annotated[int, Field(ge=1, le=200)]], Field(min_length=1)]


class InteractionLog(Config):
    """Columns of a log, minimum counts, and what evaluation does."""

    user: str | None = None
    """Column of the user whose items these are."""
    basket: str | None = None
    """Column of the basket, bundle or session that holds the items, in place of `user`; whole baskets are for
    training, and of the others some items are shown and the rest is to be found."""
    item: str
    """Column of the item."""
    time: str | None = None
    """Column of the event time, which orders a user's items; the order of the rows when absent."""
    weight: str | None = None
    """Column of the weight of an event, not negative."""
    hidden: str | None = None
    """Column that is 1 where an item of a validation or test basket is to be found, 0 where it is shown;
    drawn by `shown` when absent."""
    shown: float = Field(default=0.5, gt=0, lt=1)
    """Share of the items of such a basket that are shown, at least one and not all."""
    min_user_count: PositiveInt = 1
    """Users or baskets with fewer events are left out, until with those of rare items none is left."""
    min_item_count: PositiveInt = 1
    """Items with fewer events are left out, likewise; both before the split."""
    mask_seen: bool | Literal["train"] = True
    """Items of the query's history are no answer: all of them, those of training alone, or false for none."""
    top_k: Cutoffs = [10, 20, 50]
    """Lengths of the lists that are measured."""

    @model_validator(mode="after")
    def _one_asker(self) -> Self:
        if (self.user is None) == (self.basket is None):
            raise ValueError("give `user`, or `basket` in its place")
        if self.item == self.asker:
            raise ValueError(f"item: {self.item!r} is the column of the {self.asker_key} too")
        if self.hidden is not None and self.basket is None:
            raise ValueError("hidden: goes with `basket`")
        return self

    @property
    def asker_key(self) -> Literal["user", "basket"]:
        """The key that is given."""
        return "basket" if self.user is None else "user"

    @property
    def asker(self) -> str:
        """Column of the user or basket."""
        name = self.basket if self.user is None else self.user
        assert name is not None, "one of them is given"
        return name

    def columns(self) -> list[Vocabulary]:
        """Return the encoded columns: the user, as a basket is not asked again, and the item."""
        names = [self.item] if self.user is None else [self.user, self.item]
        return [Vocabulary(name=name, encoder="vocabulary") for name in names]
