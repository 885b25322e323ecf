"""The OpenAPI 3.1 page: a route table with the types of its messages, and what each release takes in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from http import HTTPStatus
from importlib.metadata import version
from typing import Any
from urllib.parse import quote

import msgspec

from headwater.serving.errors import (
    EncodingError,
    RequestError,
    SlowRequestError,
    TooLargeError,
)
from headwater.serving.kinds.scorer import Scorer
from headwater.serving.protocols.messages import Failure, InferRequest, RankRequest
from headwater.serving.protocols.oip import HEAD_LENGTH
from headwater.serving.protocols.request_schemas import COMPONENTS, infer_schema, rank_schema
from headwater.serving.protocols.routes import Route
from headwater.serving.registry import Model

_BODY_ERRORS = (RequestError, SlowRequestError, TooLargeError, EncodingError)


def openapi(routes: Sequence[Route], models: Mapping[str, Model]) -> dict[str, Any]:
    """Return the page: every route with its parameters, its messages and the errors it answers with.

    Ranking takes what the loaded releases of `models` take. A release has paths of its own for tensors,
    beside the templates that are the same for all.
    """
    references, components = _message_schemas(tuple(routes))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        operation = _operation(route, references)
        paths.setdefault(route.path, {})[route.method.lower()] = operation
        if route.request is RankRequest:
            rank_schemas = _rank_schemas(models)
            if rank_schemas:
                _json_of(operation["requestBody"])["schema"] = {"anyOf": rank_schemas}
        elif route.request is InferRequest:
            paths |= _infer_paths(route, operation, models)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Headwater",
            "version": version("headwater"),
            "description": "Scores of the releases of this server: the Open Inference Protocol, "
            "version 2, and ranking by raw features.",
        },
        "paths": paths,
        "components": {"schemas": components | COMPONENTS},
    }


@cache
def _message_schemas(
    routes: tuple[Route, ...],
) -> tuple[dict[type, dict[str, Any]], dict[str, Any]]:
    """Return a reference to the schema of each message, and the schemas: the same for any releases."""
    types: list[type] = [Failure]
    for route in routes:
        types += [kind for kind in (route.request, route.response) if kind is not None]
    types = list(dict.fromkeys(types))
    schemas, components = msgspec.json.schema_components(
        types, ref_template="#/components/schemas/{name}"
    )
    return dict(zip(types, schemas, strict=True)), components


def _operation(route: Route, references: dict[type, dict[str, Any]]) -> dict[str, Any]:
    names: list[str] = re.findall(r"{(\w+)}", route.path)
    of_version = "_of_version" if "version" in names else ""
    operation: dict[str, Any] = {
        "operationId": route.handler.__name__ + of_version,
        "summary": route.summary,
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": _PARAMETERS[name]}
        for name in names
    ]
    if route.request is not None:
        content: dict[str, Any] = {"application/json": {"schema": references[route.request]}}
        if route.request is InferRequest:
            content["application/octet-stream"] = _BINARY
            parameters.append(_HEAD_LENGTH)
        operation["requestBody"] = {"required": True, "content": content}
    success: dict[str, Any] = {"description": "The answer"}
    if route.response is not None:
        success["content"] = {"application/json": {"schema": references[route.response]}}
    elif route.media_type is not None:
        success["content"] = {route.media_type: {}}
    if route.request is InferRequest:
        success["content"]["application/octet-stream"] = _BINARY
    if parameters:
        operation["parameters"] = parameters
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
_HEAD_LENGTH: dict[str, Any] = {
    "name": HEAD_LENGTH,
    "in": "header",
    "required": False,
    "description": "With tensors in binary form only: the bytes of the JSON before them.",
    "schema": {"type": "integer", "minimum": 0},
}
_BINARY: dict[str, Any] = {
    "schema": {
        "description": "The JSON form, without the data of the tensors that have "
        "`parameters.binary_data_size`; then these, in order, little-endian, a string as its length in 4 "
        "bytes and its UTF-8.",
        "contentMediaType": "application/octet-stream",
    }
}


def _json_of(body: dict[str, Any]) -> dict[str, Any]:
    return body["content"]["application/json"]


def _rank_schemas(models: Mapping[str, Model]) -> list[dict[str, Any]]:
    return [
        rank_schema(scorer, is_newest=number == model.newest)
        for model in models.values()
        for number, scorer in model.versions.items()
        if isinstance(scorer, Scorer)
    ]


def _infer_paths(
    route: Route, operation: dict[str, Any], models: Mapping[str, Model]
) -> dict[str, dict[str, Any]]:
    """Return the paths of the releases for a template of them, each with the tensors that it takes."""
    paths: dict[str, dict[str, Any]] = {}
    for name, model in models.items():
        for number, scorer in model.versions.items():
            if not isinstance(scorer, Scorer):
                continue
            if "{version}" not in route.path and number != model.newest:
                continue
            path = route.path.replace("{model}", quote(name, safe=""))
            path = path.replace("{version}", str(number))
            body = operation["requestBody"]
            schema = infer_schema(scorer)
            content = body["content"] | {"application/json": {"schema": schema}}
            paths[path] = {
                route.method.lower(): operation
                | {
                    "operationId": f"{operation['operationId']}_{len(paths)}",
                    "parameters": [_HEAD_LENGTH],
                    "requestBody": body | {"content": content},
                }
            }
    return paths
