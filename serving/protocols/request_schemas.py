"""JSON Schemas of the requests that one release takes, for the OpenAPI page: inputs by name and type.

The types of the messages say what a request looks like for any model. Here a client, or a test that makes
requests from the page, finds what `manifest.json` says: which inputs there are, and what each may hold.

A schema cannot say that lists are equally long or that a shape counts the values; the descriptions do.
"""

from __future__ import annotations

from typing import Any

from headwater.feature_store.schema import INT64_MIN, Dtype
from headwater.serving.kinds.scorer import Scorer
from headwater.serving.manifest import Input
from headwater.serving.protocols.oip import DATATYPES
from headwater.serving.signature import LENGTH
from headwater.serving.tensors import MAX_CELLS

JsonSchema = dict[str, Any]

_VALUES: dict[Dtype, JsonSchema] = {
    "int64": {
        "type": ["integer", "boolean", "null"],
        "minimum": INT64_MIN,
        "maximum": -INT64_MIN - 1,
    },
    "double": {"type": ["number", "boolean", "null"]},
    "string": {"type": ["string", "null"]},
}
_NAMES: dict[Dtype, str] = {"int64": "Int64", "double": "Double", "string": "String"}
_EXAMPLES: dict[Dtype, Any] = {"int64": 1, "double": 0.5, "string": "a"}

COMPONENTS: dict[str, JsonSchema] = {
    **{
        _NAMES[dtype]: {"description": "A value; null is missing.", **schema}
        for dtype, schema in _VALUES.items()
    },
    **{
        f"{_NAMES[dtype]}List": {
            "description": "The entries of a list; null is an empty one.",
            "type": ["array", "null"],
            "items": {"$ref": f"#/components/schemas/{_NAMES[dtype]}"},
        }
        for dtype in _VALUES
    },
}
"""What the schemas of all releases refer to, under `#/components/schemas/`."""


def rank_schema(scorer: Scorer, *, is_newest: bool) -> JsonSchema:
    """Return the body of `POST /v1/rank` for a release, with an example.

    Each input stands where its role puts it; the service takes it on either side.
    """
    manifest = scorer.manifest
    by_role: dict[str, dict[str, Input]] = {"context": {}, "candidate": {}}
    for column in scorer.graph.inputs:
        by_role[column.role][column.name] = column
    candidate = _object({name: _value(each) for name, each in by_role["candidate"].items()})
    columns = _object(
        {
            name: {"type": "array", "items": _value(each)}
            for name, each in by_role["candidate"].items()
        }
    )
    schema = _object(
        {
            "model": {"const": manifest.name},
            "version": {"enum": [manifest.version, None] if is_newest else [manifest.version]},
            "id": {"type": ["string", "null"]},
            "context": {
                **_object({name: _value(each) for name, each in by_role["context"].items()}),
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
    example = {role: {n: _example(c) for n, c in each.items()} for role, each in by_role.items()}
    schema["examples"] = [
        {
            "model": manifest.name,
            "version": manifest.version,
            "context": example["context"],
            "candidates": [example["candidate"]],
        }
    ]
    return schema


def infer_schema(scorer: Scorer) -> JsonSchema:
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


def _object(properties: dict[str, JsonSchema]) -> JsonSchema:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _value(column: Input) -> JsonSchema:
    suffix = "List" if column.is_list else ""
    return {"$ref": f"#/components/schemas/{_NAMES[column.dtype]}{suffix}"}


def _tensor(tensor: Input) -> JsonSchema:
    value = {"$ref": f"#/components/schemas/{_NAMES[tensor.dtype]}"}
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


def _example(column: Input) -> Any:
    value = _EXAMPLES[column.dtype]
    return [value] if column.is_list else value


def _example_tensor(tensor: Input) -> JsonSchema:
    value = 1 if tensor.name.endswith(LENGTH) else _EXAMPLES[tensor.dtype]
    return {
        "name": tensor.name,
        "datatype": DATATYPES[tensor.dtype],
        "shape": [1, 1],
        "data": [value],
    }
