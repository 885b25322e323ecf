"""The HTTP application: every request is read within its bounds, finds its route, and is answered.

Spoken over granian's raw interface (RSGI): a framework between costs 0.3 to 0.9 ms of CPU a request, up
to a fifth of what a hundred rows cost to score. One pass over the open requests, ten times a second, ends
those that are late and those whose client has gone; so a quick request pays for no timer.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog
from granian.rsgi import ProtocolClosed

from headwater.serving.errors import DeadlineError, RequestError, SlowRequestError
from headwater.serving.protocols.bodies import read_body
from headwater.serving.protocols.middleware import answered, failure, wrapped
from headwater.serving.protocols.routes import UNKNOWN, Request, Response, Router
from headwater.serving.protocols.table import ROUTES
from headwater.serving.service import Service

if TYPE_CHECKING:
    from granian.rsgi import HTTPProtocol, Scope

log = structlog.get_logger(__name__)

SWEEP_EVERY_S = 0.1
WATCH_AFTER_S = 0.2
"""From this age on it is worth knowing whether the client still waits."""

CLIENT_GONE = 499


class _Open:
    """A request that is being answered."""

    __slots__ = (
        "error",
        "gone",
        "is_read",
        "protocol",
        "route",
        "scope",
        "start_s",
        "task",
        "watcher",
    )

    def __init__(self, scope: Scope, protocol: HTTPProtocol) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.task = task
        self.scope = scope
        self.protocol = protocol
        self.start_s = time.monotonic()
        self.route = UNKNOWN
        self.is_read = False
        self.gone = False
        self.error: RequestError | None = None
        self.watcher: asyncio.Task[None] | None = None


class Application:
    """The application that granian calls for each request."""

    def __init__(self, service: Service, *, max_body_bytes: int, timeout_s: float) -> None:
        self._service = service
        self._router = Router(wrapped(ROUTES, max_body_bytes=max_body_bytes))
        self._answer = answered(self._dispatch)
        self._max_body_bytes = max_body_bytes
        self._timeout_s = timeout_s
        self._open: dict[_Open, None] = {}
        service.admission.watch_open(lambda: len(self._open))

    async def __rsgi__(self, scope: Scope, protocol: HTTPProtocol) -> None:
        """Answer one request; never raises, so that no client sees an empty 500."""
        entry = _Open(scope, protocol)
        self._open[entry] = None
        try:
            response = await self._answer(entry)
        except asyncio.CancelledError:
            if entry.error is None and not entry.gone:
                raise
            response = None if entry.error is None else failure(entry.error)
        except ProtocolClosed:
            entry.gone = True
            # Whoever closed only its sending side can still read.
            response = failure(RequestError("body: expected whole, found it cut short"))
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

    async def _dispatch(self, entry: _Open) -> Response:
        """Read the body, find the route, and let its handler answer."""
        headers, path = entry.scope.headers, entry.scope.path
        # Before the body, so that one that is too large or late is counted under its route.
        entry.route = self._router.template(path)
        # Then the body, whatever the route: an answer over an unread body resets the connection.
        body = await read_body(entry.protocol, headers, self._max_body_bytes)
        entry.is_read = True
        route, params = self._router.find(entry.scope.method, path)
        return await route.handler(self._service, Request(body, headers, params))

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
