"""A first job is guessed from messages, and is a job that runs."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest

from headwater.feature_store.errors import DataError
from headwater.pipelines.streams.declared import FeatureSettings
from headwater.pipelines.streams.first_stream import first_stream
from headwater.pipelines.streams.settings import parse_settings


def messages(**more: Any) -> list[bytes]:
    return [
        json.dumps(
            {
                "event": "click" if number % 3 else "view",
                "visitor": f"v{number % 7}",
                "product_id": number % 5,
                "price": number / 2,
                "at": 1_700_000_000 + number,
                "coupon": None if number % 2 else "x",
                "flags": [1],
                "is_new": True,
            }
            | more
        ).encode()
        for number in range(50)
    ]


def test_columns_time_keys_and_features_are_guessed() -> None:
    text = first_stream("shop", [*messages(), b"no json"])
    settings = parse_settings(tomllib.loads(text), FeatureSettings)
    source = settings.source
    assert (source.time, source.time_unit) == ("at", "s")
    assert {column.name: (column.dtype, column.optional) for column in source.columns} == {
        "event": ("string", False),
        "visitor": ("string", False),
        "product_id": ("int64", False),
        "price": ("double", False),
        "at": ("int64", False),
        "coupon": ("string", True),
    }
    assert [table.key for table in settings.tables] == ["visitor", "product_id"]
    names = [feature.name for feature in settings.tables[0].features]
    assert names == ["events_1h", "num_click", "num_view", "last_product_id"]
    assert "1 messages are no JSON objects" in text
    assert "flags, is_new" in text


def test_a_key_is_found_without_a_telling_name() -> None:
    rows = [json.dumps({"a": n % 3, "t": 1_700_000_000_000 + n}).encode() for n in range(9)]
    settings = parse_settings(tomllib.loads(first_stream("x", rows)), FeatureSettings)
    assert [table.key for table in settings.tables] == ["a"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([b"x", b"[1]"], "none of 2 messages is a JSON object"),
        (messages(at=5), "no integer field holds times"),
        ([b'{"t": 1700000000000}'], "no field looks like a key"),
    ],
)
def test_what_cannot_be_guessed_is_told(values: list[bytes], message: str) -> None:
    with pytest.raises(DataError, match=message):
        first_stream("shop", values)
