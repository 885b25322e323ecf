"""The OpenAPI 3.1 page: a route table with the types of its messages, and what each release takes in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
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
from headwater.serving.protocols.routes import (
    JSON,
    JSON_TYPE,
    Failure,
    Form,
    Request,
    Response,
    Route,
)
from headwater.serving.protocols.value_schemas import COMPONENTS, JsonSchema
from headwater.serving.registry import Model
from headwater.serving.service import Service

_BODY_ERRORS = (RequestError, SlowRequestError, TooLargeError, EncodingError)
_PARAMETERS: dict[str, JsonSchema] = {"version": {"type": "integer", "minimum": 0}}
"""Parts of a path that are no text."""

References = Mapping[type[msgspec.Struct], JsonSchema]


def with_page(routes: Sequence[Route]) -> tuple[Route, ...]:
    """Return the routes, and the one that answers with the page of all of them."""

    async def openapi_page(service: Service, _: Request) -> Response:
        page = openapi(table, service.registry.models)
        return Response(msgspec.json.encode(page), headers=[JSON])

    page = Route("GET", "/openapi.json", openapi_page, "This page", answers=(Form(JSON_TYPE),))
    table = (*routes, page)
    return table


def openapi(routes: Sequence[Route], models: Mapping[str, Model]) -> dict[str, Any]:
    """Return the page: every route with its parameters, its messages and the errors it answers with.

    A route says what the loaded releases of `models` take. Where they have paths of their own, these stand
    beside the template that is the same for all.
    """
    forms = [form for route in routes for form in (*route.bodies, *route.answers)]
    messages = [form.schema for form in forms if isinstance(form.schema, type)]
    references, components = _message_schemas((Failure, *dict.fromkeys(messages)))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        operation = _operation(route, references)
        paths.setdefault(route.path, {})[route.method.lower()] = operation
        schemas = {} if route.schemas_of is None else route.schemas_of(route.path, models)
        for index, (path, schema) in enumerate(schemas.items()):
            if path == route.path:
                operation |= _with_schema(operation, schema)
            else:
                paths[path] = {
                    route.method.lower(): _with_schema(operation, schema)
                    | {
                        "operationId": f"{operation['operationId']}_{index}",
                        "parameters": list(route.headers),
                    }
                }
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
    types: tuple[type[msgspec.Struct], ...],
) -> tuple[References, dict[str, Any]]:
    """Return a reference to the schema of each message, and the schemas: the same for any releases."""
    schemas, components = msgspec.json.schema_components(
        types, ref_template="#/components/schemas/{name}"
    )
    return dict(zip(types, schemas, strict=True)), components


def _operation(route: Route, references: References) -> dict[str, Any]:
    names: list[str] = re.findall(r"{(\w+)}", route.path)
    of_version = "_of_version" if "version" in names else ""
    operation: dict[str, Any] = {
        "operationId": route.handler.__name__ + of_version,
        "summary": route.summary,
    }
    parameters = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": _PARAMETERS.get(name, {"type": "string"}),
        }
        for name in names
    ]
    parameters += route.headers
    if parameters:
        operation["parameters"] = parameters
    if route.bodies:
        operation["requestBody"] = {
            "required": True,
            "content": _content(route.bodies, references),
        }
    success: dict[str, Any] = {"description": "The answer"}
    if route.answers:
        success["content"] = _content(route.answers, references)
    responses = {"200": success}
    for error in dict.fromkeys((*route.errors, *(_BODY_ERRORS if route.bodies else ()))):
        responses[str(error.status)] = {
            "description": HTTPStatus(error.status).phrase,
            "content": {JSON_TYPE: {"schema": references[Failure]}},
        }
    operation["responses"] = dict(sorted(responses.items()))
    return operation


def _content(forms: Sequence[Form], references: References) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for form in forms:
        schema = references[form.schema] if isinstance(form.schema, type) else form.schema
        content[form.media_type] = {} if schema is None else {"schema": schema}
    return content


def _with_schema(operation: dict[str, Any], schema: JsonSchema) -> dict[str, Any]:
    """Return an operation with another schema of its JSON body."""
    body = operation["requestBody"]
    content = body["content"] | {JSON_TYPE: {"schema": schema}}
    return operation | {"requestBody": body | {"content": content}}
