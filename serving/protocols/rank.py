"""`POST /v1/rank`: raw features by name, the context once, the candidates as objects or as columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import msgspec

from headwater.serving.errors import (
    Misfit,
    RequestError,
    shorten,
)
from headwater.serving.kinds.scorer import Scorer
from headwater.serving.manifest import Input
from headwater.serving.operations.rank import join_context
from headwater.serving.operations.score import score
from headwater.serving.protocols.bodies import decoded
from headwater.serving.protocols.json_values import any_json, decode_json, from_json
from headwater.serving.protocols.routes import (
    ASKING_ERRORS,
    JSON_TYPE,
    Form,
    Request,
    Response,
    Route,
    json_response,
)
from headwater.serving.protocols.value_schemas import (
    ANY_LIST,
    ANY_VALUE,
    JsonSchema,
    Score,
    body_of_any,
    closed_object,
    example,
    value_schema,
)
from headwater.serving.registry import Model
from headwater.serving.service import Service
from headwater.serving.signature import LENGTH, Signature
from headwater.serving.tensors import Arrays, flat, ragged

_FEATURE: JsonSchema = {"anyOf": [ANY_VALUE, ANY_LIST]}

Feature = Annotated[
    msgspec.Raw,
    msgspec.Meta(
        description="The value of a feature, or the values of a list feature; null is missing.",
        extra_json_schema=_FEATURE,
    ),
]
Rows = Annotated[
    msgspec.Raw,
    msgspec.Meta(
        description="One object a candidate, or one array a feature with a value for each candidate.",
        extra_json_schema={
            "oneOf": [
                {
                    "type": "array",
                    "items": {"type": "object", "additionalProperties": _FEATURE},
                },
                {
                    "type": "object",
                    "minProperties": 1,
                    "additionalProperties": {"type": "array", "items": _FEATURE},
                },
            ]
        },
    ),
]


class RankRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A context and its candidates, raw features by name; a feature that is absent is missing."""

    model: str
    candidates: Rows
    context: dict[str, Feature] | None = None
    version: int | None = None
    """Default: the newest version."""
    id: str | None = None
    """Comes back in the answer."""


class RankResponse(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One score a candidate, in the order of the request."""

    model: str
    version: int
    id: str | None = None
    scores: list[Score]


_request = msgspec.json.Decoder(RankRequest)
_objects = msgspec.json.Decoder(list[dict[str, Any]])
_columns = msgspec.json.Decoder(dict[str, msgspec.Raw])


async def rank(service: Service, request: Request) -> Response:
    """Answer with one score a candidate, in the order of the request."""
    size = len(request.body)
    message = await decoded(size, decode_json, _request, memoryview(request.body))
    _, scorer = service.registry.get(message.model, message.version, Scorer)
    turn = request.admitted
    arrays, num_rows = await decoded(size, decode, message, scorer, turn.check_size)
    scores = await score(service, turn, scorer, arrays, num_rows)
    return json_response(
        RankResponse(
            model=scorer.manifest.name,
            version=scorer.manifest.version,
            id=message.id,
            scores=scores.tolist(),
        )
    )


def decode(
    message: RankRequest, scorer: Scorer, check_size: Callable[[int], None]
) -> tuple[Arrays, int]:
    """Return the checked tensors of a request and the number of its candidates.

    `check_size` gets this number before anything of that size is made.
    """
    signature = scorer.signature
    data = memoryview(message.candidates)
    if data[:1].tobytes() == b"[":
        objects = decode_json(_objects, data, "$.candidates")
        num_rows = len(objects)
        check_size(num_rows)
        arrays = _from_objects(objects, signature)
    else:
        columns = decode_json(_columns, data, "$.candidates")
        arrays, num_rows = _from_columns(columns, signature, check_size)
    context: Arrays = {}
    for name, raw in (message.context or {}).items():
        column = _column(signature, name, "$.context")
        if name in arrays:
            raise RequestError(f"$.context.{name}: it is given in the candidates as well")
        try:
            context |= tensors_of(column, [any_json(raw)])
        except Misfit as fault:
            place = fault.place.removeprefix("[0]")
            raise fault.at(f"$.context.{name}", place) from None
    return join_context(arrays, context, num_rows, signature), num_rows


def _column(signature: Signature, name: str, where: str) -> Input:
    column = signature.inputs.get(name)
    if column is None:
        path = f"{where}.{shorten(name, 60)}"
        raise signature.unknown(path, "input", name, signature.inputs)
    return column


def tensors_of(column: Input, values: list[Any]) -> Arrays:
    """Return the tensors of an input from a value a row."""
    if column.is_list:
        padded, lengths = ragged(values, column.dtype)
        return {column.name: padded, column.name + LENGTH: lengths}
    return {column.name: flat(values, column.dtype).reshape(-1, 1)}


def _from_objects(objects: list[dict[str, Any]], signature: Signature) -> Arrays:
    names = objects[0].keys() if objects else set[str]()
    if any(candidate.keys() != names for candidate in objects):
        names = dict.fromkeys(name for candidate in objects for name in candidate)
    arrays: Arrays = {}
    for name in names:
        if name not in signature.inputs:
            index = next(i for i, candidate in enumerate(objects) if name in candidate)
            _column(signature, name, f"$.candidates[{index}]")
        column = signature.inputs[name]
        try:
            arrays |= tensors_of(column, [candidate.get(name) for candidate in objects])
        except Misfit as fault:
            row, _, place = fault.place.partition("]")
            raise fault.at(
                f"$.candidates{row}].{name}" if row else f"$.candidates.{name}", place
            ) from None
    return arrays


def _from_columns(
    columns: dict[str, msgspec.Raw], signature: Signature, check_size: Callable[[int], None]
) -> tuple[Arrays, int]:
    if not columns:
        raise RequestError("$.candidates: expected at least one input, found none")
    arrays: Arrays = {}
    num_rows = first = None
    for name, raw in columns.items():
        column = _column(signature, name, "$.candidates")
        try:
            if column.is_list:
                values = any_json(raw)
                if not isinstance(values, list):
                    found = shorten(repr(values), 60)
                    raise Misfit(expected="a list for each candidate", found=found)
                check_size(len(values))
                tensors = tensors_of(column, values)
            else:
                tensors = {name: from_json(raw, column.dtype, nested=False).reshape(-1, 1)}
        except Misfit as fault:
            raise fault.at(f"$.candidates.{name}") from None
        rows = tensors[name].shape[0]
        if num_rows is None:
            check_size(rows)
            num_rows, first = rows, name
        elif rows != num_rows:
            raise RequestError(
                f"$.candidates.{name}: expected {num_rows} values, as {first!r} has, found {rows}"
            )
        arrays |= tensors
    return arrays, num_rows or 0


def schemas_of(path: str, models: Mapping[str, Model]) -> dict[str, JsonSchema]:
    """Return the body of a ranking request of any scorer that is loaded, for the only path."""
    return body_of_any(path, models, Scorer, _rank_schema)


def _rank_schema(scorer: Scorer, is_newest: bool) -> JsonSchema:
    """Return the body of `POST /v1/rank` for a release, with an example.

    Each input stands where its role puts it; the service takes it on either side.
    """
    manifest = scorer.manifest
    by_role: dict[str, dict[str, Input]] = {"context": {}, "candidate": {}}
    for column in scorer.graph.inputs:
        by_role[column.role][column.name] = column
    candidate = closed_object(
        {name: value_schema(each) for name, each in by_role["candidate"].items()}
    )
    columns = closed_object(
        {
            name: {"type": "array", "items": value_schema(each)}
            for name, each in by_role["candidate"].items()
        }
    )
    schema = closed_object(
        {
            "model": {"const": manifest.name},
            "version": {"enum": [manifest.version, None] if is_newest else [manifest.version]},
            "id": {"type": ["string", "null"]},
            "context": {
                **closed_object(
                    {name: value_schema(each) for name, each in by_role["context"].items()}
                ),
                "type": ["object", "null"],
            },
            "candidates": {
                "oneOf": [
                    {"type": "array", "items": candidate},
                    {
                        **columns,
                        "minProperties": 1,
                        "description": "Columns; each has one value for each candidate.",
                    },
                ]
            },
        }
    )
    schema["required"] = ["model", "candidates", *([] if is_newest else ["version"])]
    schema["title"] = f"{manifest.name}, version {manifest.version}"
    given = {role: {n: example(c) for n, c in each.items()} for role, each in by_role.items()}
    schema["examples"] = [
        {
            "model": manifest.name,
            "version": manifest.version,
            "context": given["context"],
            "candidates": [given["candidate"]],
        }
    ]
    return schema


ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        "/v1/rank",
        rank,
        "Score candidates for a context, raw features by name",
        kind=Scorer,
        bodies=(Form(JSON_TYPE, RankRequest),),
        answers=(Form(JSON_TYPE, RankResponse),),
        schemas_of=schemas_of,
        errors=ASKING_ERRORS,
    ),
)
