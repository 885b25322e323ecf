"""`POST /v1/rank`: raw features by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CONTEXT = {"user": 42, "country": "fr", "recent": [3, 5, None]}
CANDIDATES: list[dict[str, Any]] = [
    {"item": 1, "price": 2.5, "brand": "acme", "tags": ["new", "sale"]},
    {"item": 2, "brand": None, "tags": None},
    {"price": 7},
    {},
]


def _rank(server: Any, **request: Any) -> Any:
    status, answer = server.post("/v1/rank", {"model": "shop", **request})
    assert status == 200, answer
    return answer


def _columns(candidates: list[dict[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for candidate in candidates for name in candidate)
    return {name: [candidate.get(name) for candidate in candidates] for name in names}


def test_scores_equal_offline_scores_in_candidate_order(
    server: Any, shop: Path, offline: Callable[..., Any]
) -> None:
    answer = _rank(server, context=CONTEXT, candidates=CANDIDATES, id="abc")
    rows = {name: [value] * len(CANDIDATES) for name, value in CONTEXT.items()}
    expected = offline(shop / "shop" / "3", rows | _columns(CANDIDATES))
    assert len(set(answer["scores"])) == len(CANDIDATES)
    np.testing.assert_allclose(answer["scores"], expected, atol=1e-7)
    assert {key: answer[key] for key in ("model", "version", "id")} == {
        "model": "shop",
        "version": 3,
        "id": "abc",
    }


def test_columns_equal_objects(server: Any) -> None:
    objects = _rank(server, context=CONTEXT, candidates=CANDIDATES)
    columns = _rank(server, context=CONTEXT, candidates=_columns(CANDIDATES))
    assert objects == columns


def test_what_may_be_left_out_may_be_null(server: Any) -> None:
    expected = _rank(server, candidates=CANDIDATES)
    assert expected == _rank(server, candidates=CANDIDATES, context=None, version=None, id=None)


def test_older_version_is_asked_by_number(server: Any) -> None:
    older = _rank(server, candidates=CANDIDATES, version=2)
    assert older["version"] == 2
    assert older["scores"] != _rank(server, candidates=CANDIDATES)["scores"]


def test_feature_of_either_role_may_stand_on_either_side(server: Any) -> None:
    once = _rank(server, context={"user": 7, "brand": "acme"}, candidates=[{"item": 1}] * 3)
    each = _rank(server, candidates=[{"item": 1, "user": 7, "brand": "acme"}] * 3)
    np.testing.assert_allclose(once["scores"], each["scores"], atol=1e-7)


def test_no_candidates_give_no_scores(server: Any) -> None:
    assert _rank(server, context=CONTEXT, candidates=[])["scores"] == []
    assert _rank(server, context=CONTEXT, candidates={"item": []})["scores"] == []


def test_many_candidates_are_scored_in_order(server: Any) -> None:
    prices = {"price": [index / 100 for index in range(8000)]}
    scores = _rank(server, context=CONTEXT, candidates=prices)["scores"]
    assert len(set(scores)) > 4000
    assert np.diff(scores).min() > -1e-6


def test_missing_features_are_counted(server: Any, wait_until: Callable[..., None]) -> None:
    name = 'headwater_serving_missing_values_total{feature="price",model="shop"}'
    before = server.metric(name)
    _rank(server, candidates=[{"price": 1}, {"price": None}, {}])
    wait_until(lambda: server.metric(name) == before + 2)


_BAD: dict[str, tuple[Any, str]] = {
    "no candidates": ({}, "$: Object missing required field `candidates`"),
    "unknown key": (
        {"candidates": [], "contxt": {}},
        "$: Object contains unknown field `contxt`",
    ),
    "candidates is text": (
        {"candidates": "x"},
        "$.candidates: Expected `object`, got `str`",
    ),
    "candidate is a number": (
        {"candidates": [{}, 5]},
        "$.candidates[1]: Expected `object`, got `int`",
    ),
    "no column": ({"candidates": {}}, "$.candidates: expected at least one input, found none"),
    "column is a number": (
        {"candidates": {"item": 5}},
        "$.candidates.item: expected an array, found 5",
    ),
    "unknown feature in an object": (
        {"candidates": [{"item": 1}, {"itemm": 1}]},
        "$.candidates[1].itemm: unknown input 'itemm'. Did you mean 'item'?",
    ),
    "unknown feature in a column": (
        {"candidates": {"cuntry": ["de"]}},
        "$.candidates.cuntry: unknown input 'cuntry'. Did you mean 'country'?",
    ),
    "unknown feature in the context": (
        {"candidates": [{}], "context": {"zzz": 1}},
        "$.context.zzz: unknown input 'zzz'. Known: user, country, recent, item, price, brand, tags.",
    ),
    "a name that resembles none": (
        {"candidates": [{}], "context": {"cost": 1}},
        "$.context.cost: unknown input 'cost'. Known: user, country, recent, item, price, brand, tags.",
    ),
    "a computed feature": (
        {"candidates": [{"item": 1}], "context": {"parity": 1}},
        "$.context.parity: 'parity' is computed from 'item'; send 'item' instead",
    ),
    "a crossed feature": (
        {"candidates": {"crossed": [1]}},
        "$.candidates.crossed: 'crossed' is computed from 'user' and 'item'; send 'user' and 'item' instead",
    ),
    "feature on both sides": (
        {"candidates": [{"user": 1}], "context": {"user": 1}},
        "$.context.user: it is given in the candidates as well",
    ),
    "wrong type in an object": (
        {"candidates": [{"price": 1}, {"price": "2"}]},
        "$.candidates[1].price: expected a number or null, found '2'",
    ),
    "wrong type in a column": (
        {"candidates": {"price": [1, 2, True, "x"]}},
        "$.candidates.price[3]: expected a number or null, found 'x'",
    ),
    "wrong type in the context": (
        {"candidates": [{}], "context": {"country": 5}},
        "$.context.country: expected a string or null, found 5",
    ),
    "wrong type in a list of the context": (
        {"candidates": [{}], "context": {"recent": [1, "a"]}},
        ("$.context.recent[1]: expected an integer of 64 bits or null (a datetime is milliseconds UTC since "
        "1970), found 'a'"),
    ),
    "wrong type in a list of an object": (
        {"candidates": [{}, {"tags": ["new", 1]}]},
        "$.candidates[1].tags[1]: expected a string or null, found 1",
    ),
    "a time as text": (
        {"candidates": [{}], "context": {"user": "2026-03-01 10:20"}},
        ("$.context.user: expected an integer of 64 bits or null (a datetime is milliseconds UTC since "
        "1970), found '2026-03-01 10:20'"),
    ),
    "a time as text in a column": (
        {"candidates": {"item": [None, "2026-03-01"]}},
        ("$.candidates.item[1]: expected an integer of 64 bits or null (a datetime is milliseconds UTC "
        "since 1970), found '2026-03-01'"),
    ),
    "a number as text": (
        {"candidates": [{"item": "7"}]},
        "$.candidates[0].item: expected an integer of 64 bits or null, found '7'",
    ),
    "no list for a list": (
        {"candidates": {"tags": ["new"]}},
        "$.candidates.tags[0]: expected a list or null, found 'new'",
    ),
    "a list for no list": (
        {"candidates": [{"item": [1]}]},
        "$.candidates[0].item: expected an integer of 64 bits or null, found [1]",
    ),
    "list for a number among columns": (
        {"candidates": {"item": [[1], [2]]}},
        "$.candidates.item[0]: expected an integer of 64 bits or null, found [1]",
    ),
    "list for a text among columns": (
        {"candidates": {"brand": ["acme", ["acme"]]}},
        "$.candidates.brand[1]: expected a string or null, found ['acme']",
    ),
    "columns disagree": (
        {"candidates": {"item": [1, 2], "price": [1]}},
        "$.candidates.price: expected 2 values, as 'item' has, found 1",
    ),
    "integer too large": (
        {"candidates": [{"item": 2**64}]},
        "$.candidates[0].item: expected an integer of 64 bits",
    ),
    "one long list among many short ones": (
        {"candidates": {"tags": [["new"] * 10_000, *[[]] * 8000]}},
        "expected lists that padded to the longest have at most",
    ),
    "version is text": ({"candidates": [], "version": "3"}, "$.version: Expected `int | null`"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "message"), _BAD.values(), ids=_BAD.keys())
def test_bad_input_is_refused_with_its_path(server: Any, body: Any, message: str) -> None:
    status, answer = server.post("/v1/rank", {"model": "shop", **body})
    assert status == 400
    assert message in answer["error"]


def test_list_given_once_is_not_repeated_for_more_candidates_than_a_request_may_have(
    start_server: Callable[..., Any], shop: Path
) -> None:
    server = start_server(shop, max_body_bytes=8 * 1024 * 1024)
    before = _peak_bytes(server)
    candidates = [
        b"[" + b",".join([b"{}"] * 1_000_000) + b"]",
        b'{"item":[%s1]}' % (b"1," * 999_999),
    ]
    for each in candidates:
        tags = b",".join([b'"new"'] * 1000)
        body = b'{"model":"shop","context":{"tags":[%s]},"candidates":%s}' % (tags, each)
        status, answer = server.post("/v1/rank", body)
        assert status == 413
        assert "1000000 rows: expected at most 8192" in answer["error"]
    assert _peak_bytes(server) - before < 400e6


def _peak_bytes(server: Any) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        ({"model": "shpo"}, 404, "model: unknown model 'shpo'. Did you mean 'shop'?"),
        ({"model": "shop", "version": 1}, 404, "version 1 is not loaded; loaded: 3, 2"),
        ({"model": "shop", "version": -1}, 404, "version -1 is not loaded"),
        ({"model": "m" * 10_000}, 404, "unknown model"),
        ({"model": "shop", "candidates": [{}] * 9000}, 413, "9000 rows: expected at most 8192"),
        (
            {"model": "shop", "candidates": {"tags": [[]] * 9000}},
            413,
            "9000 rows: expected at most 8192",
        ),
        (
            {"model": "shop", "candidates": [{}] * 8000, "context": {"tags": ["new"] * 3000}},
            413,
            "input 'tags': a list of 3000 values for each of 8000 rows: expected at most 16777216",
        ),
    ],
)
def test_unknown_model_and_too_many_rows(
    server: Any, request_: dict[str, Any], status: int, message: str
) -> None:
    answer = server.post("/v1/rank", {"candidates": [{}], **request_})
    assert answer[0] == status
    assert message in answer[1]["error"]
    assert len(answer[1]["error"]) < 500
