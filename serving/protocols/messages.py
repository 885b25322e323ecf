"""The messages on the wire, as msgspec types; the OpenAPI page is made from them.

The envelope of a request is decoded into these types, so a wrong one is refused with its JSON path. Tensor
data stays raw (`Values`, `Rows`) until its dtype is known, and never becomes a Python object a number.

What a request may leave out may be null as well: many clients write each field that they know.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

Datatype = Literal["INT64", "FP64", "FP32", "BYTES"]

_VALUE: dict[str, Any] = {"type": ["integer", "number", "string", "null"]}
_LIST: dict[str, Any] = {"type": "array", "items": _VALUE}
_FEATURE: dict[str, Any] = {"anyOf": [_VALUE, _LIST]}

Values = Annotated[
    msgspec.Raw,
    msgspec.Meta(
        description="Values in row-major order, flat or nested as the shape says; null is missing.",
        extra_json_schema={"type": "array", "items": {"anyOf": [_VALUE, _LIST]}},
    ),
]
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
Score = Annotated[float, msgspec.Meta(ge=0, le=1)]
Parameters = dict[str, bool | int | float | str | None]


class InferInput(msgspec.Struct, kw_only=True):
    """An input tensor; `data`, or `parameters.binary_data_size` bytes after the JSON."""

    name: str
    datatype: str
    shape: list[Annotated[int, msgspec.Meta(ge=0, le=2**31)]]
    parameters: Parameters | None = None
    data: Values | msgspec.UnsetType = msgspec.UNSET


class RequestedOutput(msgspec.Struct, kw_only=True):
    """An output that the client wants; `parameters.binary_data` puts it after the JSON."""

    name: str
    parameters: Parameters | None = None


class InferRequest(msgspec.Struct, kw_only=True):
    """A request of the Open Inference Protocol; an input that is absent is missing in all rows."""

    inputs: list[InferInput]
    id: str | None = None
    parameters: Parameters | None = None
    outputs: list[RequestedOutput] | None = None


class InferOutput(msgspec.Struct, kw_only=True, omit_defaults=True):
    """An output tensor; `data`, or `parameters.binary_data_size` bytes after the JSON."""

    name: str
    datatype: Datatype
    shape: list[int]
    parameters: dict[str, int] = {}
    data: list[Score] | None = None


class InferResponse(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The scores, and the version that gave them."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[InferOutput]


class TensorMetadata(msgspec.Struct, kw_only=True):
    """A tensor of the graph; -1 is a dimension that the request chooses."""

    name: str
    datatype: Datatype
    shape: list[int]


class ModelMetadata(msgspec.Struct, kw_only=True):
    """What a model takes and gives, and its loaded versions, newest first."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerMetadata(msgspec.Struct, kw_only=True):
    """The service, its version, and the protocol extensions that it has."""

    name: str
    version: str
    extensions: list[str]


class ModelReady(msgspec.Struct, kw_only=True):
    """A model that can be asked."""

    name: str
    ready: bool


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


class Failure(msgspec.Struct, kw_only=True):
    """Why a request was not answered: where, what was found, what was expected."""

    error: str
