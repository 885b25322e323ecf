"""The messages of the Open Inference Protocol, as msgspec types; the OpenAPI page is made from them.

The envelope of a request is decoded into these types, so a wrong one is refused with its JSON path. Tensor
data stays raw (`Values`) until its dtype is known, and never becomes a Python object a number.

What a request may leave out may be null as well: many clients write each field that they know.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from headwater.serving.protocols.value_schemas import ANY_LIST, ANY_VALUE, Score

Datatype = Literal["INT64", "FP64", "FP32", "BYTES"]

Values = Annotated[
    msgspec.Raw,
    msgspec.Meta(
        description="Values in row-major order, flat or nested as the shape says; null is missing.",
        extra_json_schema={"type": "array", "items": {"anyOf": [ANY_VALUE, ANY_LIST]}},
    ),
]
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
    """The tensors that a model takes and gives, and its loaded versions, newest first."""

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
