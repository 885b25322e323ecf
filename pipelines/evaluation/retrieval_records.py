"""Records of the evaluation of a retrieval model, as `evaluation.json` holds them (`docs/metrics.md`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from headwater.pipelines.evaluation.records import Evaluation, SplitEvaluation
from headwater.pipelines.runs.records import Values


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """A metric at each of several k."""

    metric: str
    """Name without k, as `recall`."""
    k: list[int]
    value: list[float]


class RankingSlice(msgspec.Struct, frozen=True, kw_only=True):
    """Metrics of a part of the test items, or of the users."""

    by: Literal["items", "users"]
    name: str
    """Such as `cold` or `5 to 9 events`."""
    users: int
    """Users with a test item in the slice."""
    test_items: int
    metrics: Values


class Decile(msgspec.Struct, frozen=True, kw_only=True):
    """A tenth of the catalogue by popularity in training, and its shares of several sums."""

    items: int
    events: float
    """Share of the training events."""
    taken: float
    """Share of the known test items."""
    answered: float
    """Share of the answers."""


class PopularityCurve(msgspec.Struct, frozen=True, kw_only=True):
    """Shares that the most popular items have, cumulative from (0, 0) to (1, 1)."""

    items: list[float]
    """Share of the catalogue, the most popular items first."""
    events: list[float]
    taken: list[float]
    answered: list[float]


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """An item that a user is shown, and whether it is among its test items."""

    item: str
    hit: bool


class UserExample(msgspec.Struct, frozen=True, kw_only=True):
    """A user, and what it would be shown."""

    user: str
    history: list[str]
    """Its newest known items, the oldest first."""
    test_items: list[str]
    unknown_items: int
    """Test items that training never saw, which have no name here."""
    shown: list[Shown]


class RetrievalSplit(SplitEvaluation, frozen=True, kw_only=True):
    """Measures of a retrieval model on one split; `rows` are its events, metrics means over users."""

    users: int
    """Users with a test item, over whom metrics are means."""
    users_without_items: int
    test_items: int
    """Distinct items of each user, unknown ones as often as they came."""
    unknown_items: int
    """Those of `test_items` that training never saw."""
    masked: list[str]
    """Splits whose items are not answered to the users who took them; none where history is not masked."""
    top_k: int
    """Answers behind deciles, popularity curve and examples."""
    curves: list[Curve]
    slices: list[RankingSlice]
    deciles: list[Decile]
    """The most popular items first."""
    popularity: PopularityCurve
    examples: list[UserExample]


class RetrievalEvaluation(Evaluation, frozen=True, kw_only=True):
    """`evaluation.json` of a retrieval model."""

    splits: Mapping[str, RetrievalSplit]
