"""The OpenAPI 3.1 page of a route table, made from the types of its messages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from http import HTTPStatus
from importlib.metadata import version
from typing import Any

import msgspec

from headwater.serving.errors import (
    EncodingError,
    RequestError,
    SlowRequestError,
    TooLargeError,
)
from headwater.serving.messages import Failure
from headwater.serving.routes import Route

_BODY_ERRORS = (RequestError, SlowRequestError, TooLargeError, EncodingError)


def openapi(routes: Sequence[Route]) -> dict[str, Any]:
    """Return the page: every route with its parameters, its messages and the errors it answers with."""
    types: list[type] = [Failure]
    for route in routes:
        types += [kind for kind in (route.request, route.response) if kind is not None]
    types = list(dict.fromkeys(types))
    schemas, components = msgspec.json.schema_components(
        types, ref_template="#/components/schemas/{name}"
    )
    references = dict(zip(types, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, references)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Headwater",
            "version": version("headwater"),
            "description": "Scores of the releases of this server: the Open Inference Protocol, "
            "version 2, and ranking by raw features.",
        },
        "paths": paths,
        "components": {"schemas": components},
    }


def _operation(route: Route, references: dict[type, dict[str, Any]]) -> dict[str, Any]:
    names: list[str] = re.findall(r"{(\w+)}", route.path)
    of_version = "_of_version" if "version" in names else ""
    operation: dict[str, Any] = {
        "operationId": route.handler.__name__ + of_version,
        "summary": route.summary,
    }
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": _PARAMETERS[name]}
            for name in names
        ]
    if route.request is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": references[route.request]}},
        }
    success: dict[str, Any] = {"description": "The answer"}
    if route.response is not None:
        success["content"] = {"application/json": {"schema": references[route.response]}}
    responses = {"200": success}
    for error in dict.fromkeys((*route.errors, *(_BODY_ERRORS if route.request else ()))):
        responses[str(error.status)] = {
            "description": HTTPStatus(error.status).phrase,
            "content": {"application/json": {"schema": references[Failure]}},
        }
    operation["responses"] = dict(sorted(responses.items()))
    return operation


_PARAMETERS: dict[str, dict[str, Any]] = {
    "model": {"type": "string"},
    "version": {"type": "integer", "minimum": 0},
}
