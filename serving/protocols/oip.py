"""The Open Inference Protocol, version 2, over HTTP: JSON and binary tensors, as standard clients send.

In the binary form the body is a JSON head of `Inference-Header-Content-Length` bytes, then the raw
little-endian tensors in the order of the inputs that have `binary_data_size`; a string is its length in
4 bytes and its UTF-8. The answer has the same form for outputs that were asked for in it.
"""

from __future__ import annotations

from importlib.metadata import version as installed_version

import msgspec

from headwater.serving.errors import (
    NotReadyError,
    RequestError,
    UnknownError,
    shorten,
    unknown_name,
)
from headwater.serving.kinds.scorer import Scorer
from headwater.serving.operations.score import score
from headwater.serving.protocols.bodies import decoded
from headwater.serving.protocols.json_values import decode_json
from headwater.serving.protocols.oip_alike import DATATYPES
from headwater.serving.protocols.oip_messages import (
    InferOutput,
    InferRequest,
    InferResponse,
    ModelMetadata,
    ModelReady,
    ServerMetadata,
    TensorMetadata,
)
from headwater.serving.protocols.oip_schemas import (
    BINARY,
    HEAD_LENGTH,
    HEAD_LENGTH_PARAMETER,
    schemas_of,
)
from headwater.serving.protocols.oip_tensors import decode_tensors
from headwater.serving.protocols.routes import (
    ASKING_ERRORS,
    JSON_TYPE,
    Form,
    Request,
    Response,
    Route,
    json_response,
)
from headwater.serving.registry import Model
from headwater.serving.release import is_version
from headwater.serving.service import Service
from headwater.serving.tensors import Array, Arrays

BINARY_TYPE = "application/octet-stream"
_VERSION = installed_version("headwater")
_decoder = msgspec.json.Decoder(InferRequest)
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
                for output in scorer.graph.outputs
            ],
        )
    )


async def model_ready(service: Service, request: Request) -> Response:
    """Answer 200 where the model, or this version of it, can be asked."""
    _, release = service.registry.find(*_named(request))
    return json_response(ModelReady(name=release.manifest.name, ready=True))


async def infer(service: Service, request: Request) -> Response:
    """Answer with the scores of the rows in the request."""
    _, scorer = _find(service, request)
    message, arrays = await decoded(len(request.body), decode, request, scorer)
    scores = await score(service, request.admitted, scorer, arrays)
    return _answer(message, scorer, scores)


def decode(request: Request, scorer: Scorer) -> tuple[InferRequest, Arrays]:
    """Return the envelope and the checked tensors of an infer request."""
    body = request.body
    length = request.headers.get(HEAD_LENGTH)
    head = len(body) if length is None else _head_length(length, len(body))
    message = decode_json(_decoder, memoryview(body)[:head])
    _check_outputs(message, scorer)
    return message, decode_tensors(message.inputs, body, head, scorer.signature)


def _find(service: Service, request: Request) -> tuple[Model, Scorer]:
    return service.registry.get(*_named(request), Scorer)


def _named(request: Request) -> tuple[str, int | None]:
    """Return the model and the version that a path names; `UnknownError` where that is no number."""
    version = request.params.get("version")
    if version is not None and not is_version(version):
        raise UnknownError(f"version: expected an integer, found {shorten(version, 30)!r}")
    return request.params["model"], None if version is None else int(version)


def _head_length(text: str, size: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 12 and int(text) <= size):
        raise RequestError(
            f"{HEAD_LENGTH}: expected an integer from 0 to {size}, the size of the body, found "
            f"{shorten(text, 30)!r}"
        )
    return int(text)


def _check_outputs(message: InferRequest, scorer: Scorer) -> None:
    known = [output.name for output in scorer.graph.outputs]
    for index, output in enumerate(message.outputs or ()):
        if output.name not in known:
            where = f"$.outputs[{index}].name"
            raise RequestError(unknown_name(where, "output", output.name, known))
        for key in _REFUSED:
            if (output.parameters or {}).get(key):
                raise RequestError(f"$.outputs[{index}].parameters.{key}: not supported")


def _answer(message: InferRequest, scorer: Scorer, scores: Array) -> Response:
    name = scorer.output.name
    asked = message.outputs[0].parameters if message.outputs else None
    binary = (asked or {}).get("binary_data")
    if binary is None:
        binary = (message.parameters or {}).get("binary_data_output")
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
            ("content-type", BINARY_TYPE),
            (HEAD_LENGTH, str(len(response.body))),
        ]
        response.body += tail
    return response


_MODEL_ERRORS = (UnknownError, NotReadyError)


def _model_routes(path: str) -> tuple[Route, ...]:
    return (
        Route(
            "GET", path, model_metadata, "Tensors and versions of a model",
            kind=Scorer, answers=(Form(JSON_TYPE, ModelMetadata),), errors=_MODEL_ERRORS,
        ),
        Route(
            "GET", f"{path}/ready", model_ready, "Whether a model can be asked",
            answers=(Form(JSON_TYPE, ModelReady),), errors=_MODEL_ERRORS,
        ),
        Route(
            "POST", f"{path}/infer", infer, "Score rows given as tensors",
            kind=Scorer,
            bodies=(Form(JSON_TYPE, InferRequest), Form(BINARY_TYPE, BINARY)),
            answers=(Form(JSON_TYPE, InferResponse), Form(BINARY_TYPE, BINARY)),
            headers=(HEAD_LENGTH_PARAMETER,), schemas_of=schemas_of, errors=ASKING_ERRORS,
        ),
    )  # fmt: skip


ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/v2",
        server_metadata,
        "What this server is",
        answers=(Form(JSON_TYPE, ServerMetadata),),
    ),
    Route("GET", "/v2/health/live", live, "Whether the process runs"),
    Route("GET", "/v2/health/ready", ready, "Whether requests are served", errors=(NotReadyError,)),
    *_model_routes("/v2/models/{model}"),
    *_model_routes("/v2/models/{model}/versions/{version}"),
)
