"""Middleware: what is the same around every handler, as functions from a handler to a handler.

`wrapped` puts them around the handler of a route, the outermost last. `answered` goes around all of it, as a
request may be refused before its route is known.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Protocol, TypeVar

import structlog
from granian.rsgi import ProtocolClosed

from headwater.serving.errors import KindError, QueueFullError, RequestError
from headwater.serving.protocols.bodies import decoded, inflate
from headwater.serving.protocols.routes import (
    Failure,
    Handler,
    Request,
    Response,
    Route,
    json_response,
)
from headwater.serving.service import Service

log = structlog.get_logger(__name__)


class Routed(Protocol):
    """A request, of which the path of its route is known or `UNKNOWN`."""

    route: str


E = TypeVar("E", bound=Routed)


def wrapped(routes: Iterable[Route], *, max_body_bytes: int) -> tuple[Route, ...]:
    """Return the routes with their handlers in all middleware."""
    routes = tuple(routes)
    found: list[Route] = []
    for route in routes:
        handler = hinted(inflated(route.handler, max_body_bytes), routes)
        if QueueFullError in route.errors:
            handler = admitted(handler)
        found.append(replace(route, handler=handler))
    return tuple(found)


def admitted(handler: Handler) -> Handler:
    """Let a request in, or refuse it, before its body is looked at: a refusal must cost little."""

    async def handle(service: Service, request: Request) -> Response:
        with service.admission.turn() as request.turn:
            return await handler(service, request)

    return handle


def inflated(handler: Handler, max_body_bytes: int) -> Handler:
    """Give the handler the body without its content encoding."""

    async def handle(service: Service, request: Request) -> Response:
        encoding = request.headers.get("content-encoding")
        if encoding is not None:
            size = len(request.body) * 8
            request.body = await decoded(size, inflate, request.body, encoding, max_body_bytes)
        return await handler(service, request)

    return handle


def hinted(handler: Handler, routes: Iterable[Route]) -> Handler:
    """Name the routes that answer for a release where it is of another kind than the handler asks."""
    of_kind: dict[str, list[str]] = {}
    for route in routes:
        if route.kind is not None and route.bodies:
            of_kind.setdefault(route.kind.kind, []).append(f"{route.method} {route.path}")

    async def handle(service: Service, request: Request) -> Response:
        try:
            return await handler(service, request)
        except KindError as error:
            hint = " or ".join(of_kind.get(error.found, ["no route"]))
            raise RequestError(f"{error}, which {hint} answers") from None

    return handle


def answered(handle: Callable[[E], Awaitable[Response]]) -> Callable[[E], Awaitable[Response]]:
    """Turn what is raised into an answer, and log a fault of ours; a client that went away is passed on."""

    async def answer(request: E) -> Response:
        try:
            return await handle(request)
        except RequestError as error:
            return failure(error)
        except (ProtocolClosed, asyncio.CancelledError):
            raise
        except Exception:
            key = uuid.uuid4().hex
            log.exception("request failed", route=request.route, error_id=key)
            response = json_response(Failure(error=f"internal error; the log has it as {key}"))
            response.status = 500
            return response

    return answer


def failure(error: RequestError) -> Response:
    """Return the answer that says why there is none."""
    response = json_response(Failure(error=str(error)), error.headers)
    response.status = error.status
    return response
