"""JSON Schemas of infer requests: their binary form, and the tensors that each release takes in."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

from headwater.serving.kinds.scorer import Scorer
from headwater.serving.manifest import Input
from headwater.serving.protocols.oip_alike import DATATYPES
from headwater.serving.protocols.value_schemas import EXAMPLES, JsonSchema, value_schema
from headwater.serving.registry import Model
from headwater.serving.signature import LENGTH
from headwater.serving.tensors import MAX_CELLS

HEAD_LENGTH = "inference-header-content-length"

HEAD_LENGTH_PARAMETER: JsonSchema = {
    "name": HEAD_LENGTH,
    "in": "header",
    "required": False,
    "description": "With tensors in binary form only: the bytes of the JSON before them.",
    "schema": {"type": "integer", "minimum": 0},
}
BINARY: JsonSchema = {
    "description": "The JSON form, without the data of the tensors that have "
    "`parameters.binary_data_size`; then these, in order, little-endian, a string as its length in 4 "
    "bytes and its UTF-8.",
    "contentMediaType": "application/octet-stream",
}


def schemas_of(path: str, models: Mapping[str, Model]) -> dict[str, JsonSchema]:
    """Return the JSON bodies by the paths of the scorers that the template `path` stands for."""
    schemas: dict[str, JsonSchema] = {}
    for name, model in models.items():
        for number, release in model.versions.items():
            if not isinstance(release, Scorer):
                continue
            if "{version}" not in path and number != model.newest:
                continue
            of_model = path.replace("{model}", quote(name, safe=""))
            schemas[of_model.replace("{version}", str(number))] = _infer_schema(release)
    return schemas


def _infer_schema(scorer: Scorer) -> JsonSchema:
    """Return the JSON body of an infer request of a release, with an example."""
    manifest = scorer.manifest
    tensors = list(scorer.signature.tensors.values())
    return {
        "title": f"{manifest.name}, version {manifest.version}",
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": ["string", "null"]},
            "parameters": {
                **_PARAMETERS,
                "description": "With `binary_data_output`, the answer has the binary form.",
            },
            "inputs": {
                "type": "array",
                "minItems": 1,
                "maxItems": len(tensors),
                "description": "Each at most once; one that is absent is missing in all rows. All have "
                "N rows; a context input has N, or 1 for all of them.",
                "items": {"oneOf": [_tensor(tensor) for tensor in tensors]},
            },
            "outputs": {
                "type": ["array", "null"],
                "items": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {
                        "name": {"enum": [output.name for output in scorer.graph.outputs]},
                        "parameters": _OUTPUT_PARAMETERS,
                    },
                },
            },
        },
        "examples": [{"inputs": [_example_tensor(tensor) for tensor in tensors]}],
    }


_PARAMETER: JsonSchema = {"type": ["boolean", "integer", "number", "string", "null"]}
_PARAMETERS: JsonSchema = {"type": ["object", "null"], "additionalProperties": _PARAMETER}
_UNSET: JsonSchema = {"enum": [False, None, 0, ""]}
_OUTPUT_PARAMETERS: JsonSchema = {
    **_PARAMETERS,
    "description": "With `binary_data`, the answer has the binary form.",
    "properties": {"shared_memory_region": _UNSET, "classification": _UNSET},
}
_TENSOR_PARAMETERS: JsonSchema = {
    **_PARAMETERS,
    "description": "In the binary form, `binary_data_size` stands for the data.",
    "properties": {"binary_data_size": {"type": "null"}},
}


def _tensor(tensor: Input) -> JsonSchema:
    value = value_schema(Input(name=tensor.name, dtype=tensor.dtype))
    width = (
        {"type": "integer", "minimum": 0, "maximum": MAX_CELLS} if tensor.is_list else {"const": 1}
    )
    rows = {"type": "integer", "minimum": 0, "maximum": MAX_CELLS}
    return {
        "type": "object",
        "required": ["name", "datatype", "shape", "data"],
        "properties": {
            "name": {"const": tensor.name},
            "datatype": {"const": DATATYPES[tensor.dtype]},
            "parameters": _TENSOR_PARAMETERS,
            "shape": {"type": "array", "prefixItems": [rows, width], "minItems": 2, "maxItems": 2},
            "data": {
                "description": "As many values as the shape says, flat or a list a row.",
                "type": "array",
                "items": {"anyOf": [value, {"type": "array", "items": value}]},
            },
        },
    }


def _example_tensor(tensor: Input) -> JsonSchema:
    value = 1 if tensor.name.endswith(LENGTH) else EXAMPLES[tensor.dtype]
    return {
        "name": tensor.name,
        "datatype": DATATYPES[tensor.dtype],
        "shape": [1, 1],
        "data": [value],
    }
