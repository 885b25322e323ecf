"""The Open Inference Protocol, version 2, over HTTP: JSON and binary tensors, as standard clients send.

In the binary form the body is a JSON head of `Inference-Header-Content-Length` bytes, then the raw
little-endian tensors in the order of the inputs that have `binary_data_size`; a string is its length in
4 bytes and its UTF-8. The answer has the same form for outputs that were asked for in it.
"""

from __future__ import annotations

import struct
import sys
from importlib.metadata import version as installed_version

import msgspec
import numpy as np

from headwater.feature_store.schema import Dtype
from headwater.serving.errors import (
    DeadlineError,
    Misfit,
    NotReadyError,
    QueueFullError,
    RequestError,
    TooLargeError,
    UnknownError,
    shorten,
    unknown_name,
)
from headwater.serving.messages import (
    Datatype,
    InferInput,
    InferOutput,
    InferRequest,
    InferResponse,
    ModelMetadata,
    ModelReady,
    ServerMetadata,
    TensorMetadata,
)
from headwater.serving.registry import Model, is_version
from headwater.serving.routes import Request, Response, Route, json_response
from headwater.serving.scorer import Scorer
from headwater.serving.service import Service
from headwater.serving.signature import Arrays
from headwater.serving.tensors import NUMPY, Array, decode_json, from_json

DATATYPES: dict[Dtype, Datatype] = {"int64": "INT64", "double": "FP64", "string": "BYTES"}
HEAD_LENGTH = "inference-header-content-length"
_VERSION = installed_version("headwater")
_decoder = msgspec.json.Decoder(InferRequest)
_LENGTH = struct.Struct("<I")
_REFUSED = ("shared_memory_region", "classification")


async def live(_service: Service, _: Request) -> Response:
    """Answer 200 as long as the process runs."""
    return Response()


async def ready(service: Service, _: Request) -> Response:
    """Answer 200 while there is a release to serve and the service is not draining."""
    if not service.is_ready:
        raise NotReadyError("draining" if service.draining else "no release is ready")
    return Response()


async def server_metadata(_service: Service, _: Request) -> Response:
    """Answer with what this server is."""
    return json_response(
        ServerMetadata(name="headwater", version=_VERSION, extensions=["binary_tensor_data"])
    )


async def model_metadata(service: Service, request: Request) -> Response:
    """Answer with the tensors of a model."""
    model, scorer = _find(service, request)
    manifest = scorer.manifest
    return json_response(
        ModelMetadata(
            name=manifest.name,
            versions=[str(version) for version in model.versions],
            platform="onnxruntime_onnx",
            inputs=[
                TensorMetadata(
                    name=name,
                    datatype=DATATYPES[tensor.dtype],
                    shape=[-1, -1 if tensor.is_list else 1],
                )
                for name, tensor in scorer.signature.tensors.items()
            ],
            outputs=[
                TensorMetadata(name=output.name, datatype="FP32", shape=[-1])
                for output in manifest.outputs
            ],
        )
    )


async def model_ready(service: Service, request: Request) -> Response:
    """Answer 200 where the model, or this version of it, can be asked."""
    _, scorer = _find(service, request)
    return json_response(ModelReady(name=scorer.manifest.name, ready=True))


async def infer(service: Service, request: Request) -> Response:
    """Answer with the scores of the rows in the request."""
    _, scorer = _find(service, request)
    message, arrays = await service.decode(len(request.body), decode, request, scorer)
    scores = await service.score(scorer, arrays)
    return _answer(message, scorer, scores)


def decode(request: Request, scorer: Scorer) -> tuple[InferRequest, Arrays]:
    """Return the envelope and the checked tensors of an infer request."""
    body = request.body
    length = request.headers.get(HEAD_LENGTH)
    head = len(body) if length is None else _head_length(length, len(body))
    message = decode_json(_decoder, memoryview(body)[:head])
    _check_outputs(message, scorer)
    signature = scorer.signature
    arrays: Arrays = {}
    offset = head
    for index, tensor in enumerate(message.inputs):
        name = tensor.name
        column = signature.tensors.get(name)
        if column is None:
            where = f"$.inputs[{index}].name"
            raise signature.unknown(where, "input", name, signature.tensors)
        if name in arrays:
            raise RequestError(f"$.inputs[{index}].name: input {name!r} is given twice")
        try:
            if tensor.datatype != DATATYPES[column.dtype]:
                raise Misfit(
                    expected=f"{DATATYPES[column.dtype]} for {name!r}",
                    found=shorten(tensor.datatype, 30),
                    place=".datatype",
                )
            if len(tensor.shape) != 2:
                raise Misfit(
                    expected="two dimensions", found=shorten(f"{tensor.shape}", 60), place=".shape"
                )
            size = tensor.parameters.get("binary_data_size")
            if size is None:
                array = _from_json(tensor, column.dtype)
            else:
                size = _binary_size(tensor, size, len(body) - offset)
                array = _from_binary(body, offset, size, column.dtype, tensor)
                offset += size
            array = array.reshape(tensor.shape)
            signature.check(name, array)
        except Misfit as fault:
            raise fault.at(f"$.inputs[{index}]") from None
        arrays[name] = array
    if offset != len(body):
        raise RequestError(
            f"body: expected {offset} bytes, the JSON and the binary_data_size of its inputs, found "
            f"{len(body)}"
        )
    return message, arrays


def _find(service: Service, request: Request) -> tuple[Model, Scorer]:
    version = request.params.get("version")
    if version is not None and not is_version(version):
        raise UnknownError(f"version: expected an integer, found {shorten(version, 30)!r}")
    name = request.params["model"]
    return service.registry.get(name, None if version is None else int(version))


def _head_length(text: str, size: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 12 and int(text) <= size):
        raise RequestError(
            f"{HEAD_LENGTH}: expected an integer from 0 to {size}, the size of the body, found "
            f"{shorten(text, 30)!r}"
        )
    return int(text)


def _check_outputs(message: InferRequest, scorer: Scorer) -> None:
    known = [output.name for output in scorer.manifest.outputs]
    for index, output in enumerate(message.outputs):
        if output.name not in known:
            where = f"$.outputs[{index}].name"
            raise RequestError(unknown_name(where, "output", output.name, known))
        for key in _REFUSED:
            if output.parameters.get(key):
                raise RequestError(f"$.outputs[{index}].parameters.{key}: not supported")


def _from_json(tensor: InferInput, dtype: Dtype) -> Array:
    if tensor.data is msgspec.UNSET:
        found = "shared memory" if "shared_memory_region" in tensor.parameters else "none"
        raise Misfit(expected="data or parameters.binary_data_size", found=found)
    try:
        array = from_json(tensor.data, dtype)
    except Misfit as fault:
        fault.place = f".data{fault.place}"
        raise
    count = tensor.shape[0] * tensor.shape[1]
    if array.size != count:
        raise Misfit(
            expected=f"{count} values, as shape {tensor.shape} says",
            found=f"{array.size}",
            place=".data",
        )
    return array


def _binary_size(tensor: InferInput, size: object, rest: int) -> int:
    where = ".parameters.binary_data_size"
    if tensor.data is not msgspec.UNSET:
        raise Misfit(expected="either data or binary data", found="both", place=where)
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= rest:
        found = shorten(repr(size), 30)
        raise Misfit(expected=f"an integer up to the {rest} bytes left", found=found, place=where)
    return size


def _from_binary(body: bytes, offset: int, size: int, dtype: Dtype, tensor: InferInput) -> Array:
    count = tensor.shape[0] * tensor.shape[1]
    if dtype == "string":
        strings = _strings(body[offset : offset + size], count)
        if len(strings) != count:
            raise Misfit(
                expected=f"{count} strings, as shape {tensor.shape} says",
                found=f"{len(strings)}",
                place=", binary data",
            )
        return np.array(strings, object)
    numpy_dtype = NUMPY[dtype]
    if size != count * numpy_dtype.itemsize:
        raise Misfit(
            expected=f"{count * numpy_dtype.itemsize} bytes, as shape {tensor.shape} says",
            found=f"{size}",
            place=".parameters.binary_data_size",
        )
    array = np.frombuffer(body, numpy_dtype.newbyteorder("<"), count, offset)
    # onnxruntime reads whole words: they must lie where words may.
    return array if array.flags.aligned and sys.byteorder == "little" else array.astype(numpy_dtype)


def _strings(data: bytes, count: int) -> list[str]:
    equal = _equal_strings(data, count)
    if equal is not None:
        return equal
    # One decoding of the whole; where all of it is ASCII, lengths too, its slices are the strings.
    text = data.decode("latin-1")
    strings: list[str] = []
    offset, end = 0, len(data)
    while offset < end:
        start = offset + 4
        if start <= end:
            offset = start + _LENGTH.unpack_from(data, offset)[0]
        if start > end or offset > end:
            raise Misfit(
                expected="a length of 4 bytes and as many bytes of UTF-8 for each string",
                found="the data cut short",
                place=f", binary data[{len(strings)}]",
            )
        strings.append(text[start:offset])
    return strings if data.isascii() else _utf8(strings)


def _equal_strings(data: bytes, count: int) -> list[str] | None:
    """Return strings of one length and of ASCII alone, as hashed ids are, without a loop in Python."""
    width = len(data) // count if count else 0
    if width <= 4 or width * count != len(data) or not data.isascii():
        return None
    rows = np.frombuffer(data, np.uint8).reshape(count, width)
    if _LENGTH.unpack_from(data)[0] != width - 4 or (rows[:, :4] != rows[0, :4]).any():
        return None
    text = rows[:, 4:].tobytes().decode("ascii")
    return [text[start : start + width - 4] for start in range(0, len(text), width - 4)]


def _utf8(strings: list[str]) -> list[str]:
    for index, string in enumerate(strings):
        try:
            strings[index] = string.encode("latin-1").decode()
        except UnicodeDecodeError as error:
            raise Misfit(
                expected="UTF-8", found=f"{error}", place=f", binary data[{index}]"
            ) from None
    return strings


def _answer(message: InferRequest, scorer: Scorer, scores: Array) -> Response:
    name = scorer.manifest.outputs[0].name
    asked = message.outputs[0].parameters if message.outputs else {}
    binary = asked.get("binary_data", message.parameters.get("binary_data_output", False))
    output = InferOutput(name=name, datatype="FP32", shape=[len(scores)])
    tail = b""
    if binary:
        tail = scores.astype("<f4", copy=False).tobytes()
        output.parameters = {"binary_data_size": len(tail)}
    else:
        output.data = scores.tolist()
    response = json_response(
        InferResponse(
            model_name=scorer.manifest.name,
            model_version=str(scorer.manifest.version),
            id=message.id,
            outputs=[output],
        )
    )
    if binary:
        response.headers = [
            ("content-type", "application/octet-stream"),
            (HEAD_LENGTH, str(len(response.body))),
        ]
        response.body += tail
    return response


_INFER_ERRORS = (
    RequestError,
    UnknownError,
    TooLargeError,
    QueueFullError,
    NotReadyError,
    DeadlineError,
)
_MODEL_ERRORS = (UnknownError, NotReadyError)


def _model_routes(path: str) -> tuple[Route, ...]:
    return (
        Route(
            "GET", path, model_metadata, "Tensors and versions of a model",
            response=ModelMetadata, errors=_MODEL_ERRORS,
        ),
        Route(
            "GET", f"{path}/ready", model_ready, "Whether a model can be asked",
            response=ModelReady, errors=_MODEL_ERRORS,
        ),
        Route(
            "POST", f"{path}/infer", infer, "Score rows given as tensors",
            request=InferRequest, response=InferResponse, errors=_INFER_ERRORS,
        ),
    )  # fmt: skip


ROUTES: tuple[Route, ...] = (
    Route("GET", "/v2", server_metadata, "What this server is", response=ServerMetadata),
    Route("GET", "/v2/health/live", live, "Whether the process runs"),
    Route("GET", "/v2/health/ready", ready, "Whether requests are served", errors=(NotReadyError,)),
    *_model_routes("/v2/models/{model}"),
    *_model_routes("/v2/models/{model}/versions/{version}"),
)
