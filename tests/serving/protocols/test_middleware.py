"""What is around every handler: the answer to a release of another kind, and to what is raised."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, cast

import pytest

from headwater.serving.errors import KindError, NotReadyError, RequestError
from headwater.serving.protocols.middleware import answered, hinted
from headwater.serving.protocols.routes import Request, Response
from headwater.serving.protocols.table import ROUTES

SERVICE = cast("Any", None)
NO_HEADERS = cast("Any", {})


async def _result(answer: Awaitable[Response]) -> Response:
    return await answer


def test_release_of_another_kind_gets_the_routes_that_answer_for_it() -> None:
    async def other(_service: Any, _: Request) -> Response:
        raise KindError("shop", found="scorer", expected="retriever")

    (rank,) = [route for route in ROUTES if route.path == "/v1/rank"]
    with pytest.raises(
        RequestError,
        match="model 'shop': expected the kind 'retriever', found 'scorer', which POST /v1/rank answers",
    ) as refused:
        asyncio.run(_result(hinted(other, [rank])(SERVICE, Request(b"", NO_HEADERS, {}))))
    assert refused.value.status == 400


@dataclass
class _Request:
    route: str
    error: Exception


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (NotReadyError("not yet"), 503, "not yet"),
        (ZeroDivisionError(), 500, "internal error; the log has it as"),
    ],
)
def test_what_is_raised_is_answered(error: Exception, status: int, text: str) -> None:
    @answered
    async def fail(request: _Request) -> Response:
        raise request.error

    response = asyncio.run(_result(fail(_Request("/v1/rank", error))))
    assert response.status == status
    assert text in json.loads(response.body)["error"]
