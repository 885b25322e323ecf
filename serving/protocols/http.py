"""The HTTP application: reads a request within its bounds, finds its route, and always answers.

Spoken over granian's raw interface (RSGI): a framework between costs 0.3 to 0.9 ms of CPU a request, up
to a fifth of what a hundred rows cost to score. One pass over the open requests, ten times a second, ends
those that are late and those whose client has gone; so a quick request pays for no timer.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec
import structlog
from granian.rsgi import ProtocolClosed

from headwater.serving.errors import (
    DeadlineError,
    QueueFullError,
    RequestError,
    SlowRequestError,
)
from headwater.serving.protocols import oip, rank
from headwater.serving.protocols.bodies import decoded, inflate, read_body
from headwater.serving.protocols.messages import Failure
from headwater.serving.protocols.openapi import openapi
from headwater.serving.protocols.routes import (
    JSON,
    UNKNOWN,
    Request,
    Response,
    Route,
    Router,
    json_response,
)
from headwater.serving.service import Service

if TYPE_CHECKING:
    from granian.rsgi import HTTPProtocol, Scope

log = structlog.get_logger(__name__)

SWEEP_EVERY_S = 0.1
WATCH_AFTER_S = 0.2
"""From this age on it is worth knowing whether the client still waits."""

CLIENT_GONE = 499


async def metrics(service: Service, _: Request) -> Response:
    """Answer with all metrics in the text format of Prometheus."""
    return Response(service.metrics.text(), headers=[("content-type", "text/plain; version=0.0.4")])


async def openapi_page(service: Service, _: Request) -> Response:
    """Answer with the OpenAPI page of all routes and of the releases that are loaded."""
    page = openapi(ROUTES, service.registry.models)
    return Response(msgspec.json.encode(page), headers=[JSON])


ROUTES: tuple[Route, ...] = (
    *oip.ROUTES,
    *rank.ROUTES,
    Route("GET", "/metrics", metrics, "Metrics for Prometheus", media_type="text/plain"),
    Route("GET", "/openapi.json", openapi_page, "This page", media_type="application/json"),
)


class _Open:
    """A request that is being answered."""

    __slots__ = ("error", "gone", "is_read", "protocol", "route", "start_s", "task", "watcher")

    def __init__(self, protocol: HTTPProtocol) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.task = task
        self.protocol = protocol
        self.start_s = time.monotonic()
        self.route = UNKNOWN
        self.is_read = False
        self.gone = False
        self.error: RequestError | None = None
        self.watcher: asyncio.Task[None] | None = None


class Application:
    """What granian calls for each request."""

    def __init__(self, service: Service, *, max_body_bytes: int, timeout_s: float) -> None:
        self._service = service
        self._router = Router(ROUTES)
        self._max_body_bytes = max_body_bytes
        self._timeout_s = timeout_s
        self._open: dict[_Open, None] = {}
        service.admission.watch_open(lambda: len(self._open))

    async def __rsgi__(self, scope: Scope, protocol: HTTPProtocol) -> None:
        """Answer one request; never raises, so that no client sees an empty 500."""
        entry = _Open(protocol)
        self._open[entry] = None
        try:
            response = await self._answer(scope, entry)
        except asyncio.CancelledError:
            if entry.error is None and not entry.gone:
                raise
            response = None if entry.error is None else _failure(entry.error)
        except ProtocolClosed:
            entry.gone = True
            # Whoever closed only its sending side can still read.
            response = _failure(RequestError("body: expected whole, found it cut short"))
        finally:
            del self._open[entry]
            if entry.watcher is not None:
                entry.watcher.cancel()
        if response is not None:
            protocol.response_bytes(response.status, response.headers, response.body)
        self._service.metrics.request_answered(
            entry.route,
            CLIENT_GONE if entry.gone or response is None else response.status,
            time.monotonic() - entry.start_s,
        )

    async def _answer(self, scope: Scope, entry: _Open) -> Response:
        try:
            headers = scope.headers
            # Before the body, so that one that is too large or late is counted under its route.
            path = scope.path
            entry.route = self._router.template(path)
            # Then the body, whatever the route: an answer over an unread body resets the connection.
            body = await read_body(entry.protocol, headers, self._max_body_bytes)
            entry.is_read = True
            route, params = self._router.find(scope.method, path)
            if QueueFullError in route.errors:
                # Before anything is done with the body: a refusal that costs much is no relief.
                self._service.admission.check()
            encoding = headers.get("content-encoding")
            if encoding is not None:
                body = await decoded(len(body) * 8, inflate, body, encoding, self._max_body_bytes)
            return await route.handler(self._service, Request(body, headers, params))
        except RequestError as error:
            return _failure(error)
        except (ProtocolClosed, asyncio.CancelledError):
            raise
        except Exception:
            key = uuid.uuid4().hex
            log.exception("request failed", route=entry.route, error_id=key)
            response = json_response(Failure(error=f"internal error; the log has it as {key}"))
            response.status = 500
            return response

    async def sweep(self) -> None:
        """End late requests and those that nobody waits for, until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            now_s = time.monotonic()
            for entry in list(self._open):
                age_s = now_s - entry.start_s
                if age_s > self._timeout_s:
                    if entry.error is None:
                        entry.error = self._late(entry)
                        entry.task.cancel()
                elif entry.is_read and age_s > WATCH_AFTER_S and entry.watcher is None:
                    entry.watcher = asyncio.create_task(_watch(entry))

    def _late(self, entry: _Open) -> RequestError:
        if entry.is_read:
            return DeadlineError(f"not scored within {self._timeout_s:g} s; try again later")
        return SlowRequestError(f"body: expected within {self._timeout_s:g} s, found it incomplete")


async def _watch(entry: _Open) -> None:
    with suppress(ProtocolClosed):
        await entry.protocol.client_disconnect()
    entry.gone = True
    entry.task.cancel()


def _failure(error: RequestError) -> Response:
    response = json_response(Failure(error=str(error)), error.headers)
    response.status = error.status
    return response
