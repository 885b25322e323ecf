"""A route, what a handler gets and gives, and the table that finds the handler of a path."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec

from headwater.serving.errors import (
    DeadlineError,
    MethodError,
    NotReadyError,
    QueueFullError,
    RequestError,
    TooLargeError,
    UnknownError,
    shorten,
)

if TYPE_CHECKING:
    from headwater.serving.admission import Turn
    from headwater.serving.kinds import Release
    from headwater.serving.protocols.value_schemas import JsonSchema
    from headwater.serving.registry import Model
    from headwater.serving.service import Service

JSON_TYPE = "application/json"
JSON = ("content-type", JSON_TYPE)
UNKNOWN = "unknown"
"""Stands for a template where a path has no route."""

_encoder = msgspec.json.Encoder()
_KEPT_PATHS = 256
"""Paths whose route is kept, the recent ones: clients ask few."""


class Headers(Protocol):
    """The headers of a request, by name in lower case."""

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a header, or `default`."""
        ...


@dataclass(slots=True)
class Request:
    """A request whose body has arrived; the handler of a route gets it inflated."""

    body: bytes
    headers: Headers
    params: Mapping[str, str]
    """Values of the `{name}` parts of the route."""
    turn: Turn | None = None
    """Given by admission, for a route that can answer with 429."""

    @property
    def admitted(self) -> Turn:
        """The turn of a request whose route is bounded by admission."""
        assert self.turn is not None, "the route does not say that it can raise QueueFullError"
        return self.turn


@dataclass(slots=True)
class Response:
    """An answer; `body` is what is sent."""

    body: bytes = b""
    status: int = 200
    headers: list[tuple[str, str]] = field(default_factory=list)


class Failure(msgspec.Struct, kw_only=True):
    """The reason why a request was not answered: where, what was found, what was expected."""

    error: str


@dataclass(frozen=True, slots=True)
class Form:
    """A media type of a body, and what the OpenAPI page says of it: a message, a schema, or nothing."""

    media_type: str
    schema: type[msgspec.Struct] | JsonSchema | None = None


ASKING_ERRORS = (
    RequestError,
    UnknownError,
    TooLargeError,
    QueueFullError,
    NotReadyError,
    DeadlineError,
)
"""Errors of a handler that asks a release for rows."""

Handler = Callable[["Service", Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Route:
    """A method and a path with `{name}` parts, and what the OpenAPI page says of them."""

    method: Literal["GET", "POST"]
    """GET answers HEAD as well."""
    path: str
    handler: Handler
    summary: str
    kind: type[Release] | None = None
    """Kind of the release that it asks, None where it asks none."""
    bodies: tuple[Form, ...] = ()
    """Forms in which a request's body may come, none where it has no body."""
    answers: tuple[Form, ...] = ()
    """Forms in which an answer may come, none where it is empty."""
    headers: tuple[JsonSchema, ...] = ()
    """OpenAPI parameters for the headers that the handler reads."""
    schemas_of: Callable[[str, Mapping[str, Model]], Mapping[str, JsonSchema]] | None = None
    """From the route's path and the models that are loaded to schemas of the JSON body, by path: for the path
    itself, or for paths of releases that it stands for."""
    errors: tuple[type[RequestError], ...] = ()
    """Errors that the handler can raise, besides those of every route."""


def json_response(message: msgspec.Struct, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    """Return a message as JSON."""
    return Response(_encoder.encode(message), headers=[JSON, *headers])


class Router:
    """Finds the route of a path by its parts, so the cost does not grow with the number of routes."""

    def __init__(self, routes: tuple[Route, ...]) -> None:
        self._root: dict[str, Any] = {}
        for route in routes:
            node = self._root
            for part in _parts(route.path):
                node = node.setdefault("{}" if part.startswith("{") else part, {})
            methods = node.setdefault("", {})
            methods[route.method] = route
            if route.method == "GET":
                # Answered alike: granian leaves out the body of an answer to HEAD.
                methods["HEAD"] = route
        self.find = lru_cache(_KEPT_PATHS)(self._find)
        self.template = lru_cache(_KEPT_PATHS)(self._template)

    def _template(self, path: str) -> str:
        """Return the path of the route, with its `{name}` parts; `UNKNOWN` where there is none."""
        try:
            methods, _ = self._walk(path)
        except UnknownError:
            return UNKNOWN
        return next(iter(methods.values())).path

    def _find(self, method: str, path: str) -> tuple[Route, Mapping[str, str]]:
        """Return the route and its parameters; raises `UnknownError` or `MethodError`."""
        methods, values = self._walk(path)
        route = methods.get(method)
        if route is None:
            allowed = ", ".join(sorted(methods))
            raise MethodError(
                f"{shorten(path)}: expected {allowed}, found {shorten(method, 20)}", allowed=methods
            )
        names = [part[1:-1] for part in _parts(route.path) if part.startswith("{")]
        return route, MappingProxyType(dict(zip(names, values, strict=True)))

    def _walk(self, path: str) -> tuple[dict[str, Route], list[str]]:
        """Return the routes of a path by method, and the values of its `{name}` parts."""
        node = self._root
        values: list[str] = []
        for part in _parts(path):
            child = node.get(part) if part else None
            if child is None:
                child = node.get("{}") if part else None
                values.append(part)
            if child is None:
                raise UnknownError(f"no route {shorten(path)!r}; /openapi.json lists them")
            node = child
        methods: dict[str, Route] = node.get("", {})
        if not methods:
            raise UnknownError(f"no route {shorten(path)!r}; /openapi.json lists them")
        return methods, values


def _parts(path: str) -> list[str]:
    return path.split("/")[1:]
