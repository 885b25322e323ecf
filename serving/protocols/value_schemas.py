"""JSON Schemas of the values that an input takes, for the messages and for what one release takes in.

The types of the messages say what a request looks like for any model. Beside them a client, or a test that
makes requests from the page, finds what `manifest.json` says: which inputs there are, and what each may hold.

A schema cannot say that lists are equally long or that a shape counts the values; the descriptions do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec

from headwater.feature_store.schema import INT64_MIN, Dtype
from headwater.serving.manifest import Input

if TYPE_CHECKING:
    from headwater.serving.kinds import Release
    from headwater.serving.registry import Model

R = TypeVar("R", bound="Release")
JsonSchema = dict[str, Any]

Score = Annotated[float, msgspec.Meta(ge=0, le=1)]

ANY_VALUE: JsonSchema = {"type": ["integer", "number", "string", "null"]}
ANY_LIST: JsonSchema = {"type": "array", "items": ANY_VALUE}
"""A value, and a list, of an input whose type is not known."""

_VALUES: dict[Dtype, JsonSchema] = {
    "int64": {
        "type": ["integer", "boolean", "null"],
        "minimum": INT64_MIN,
        "maximum": -INT64_MIN - 1,
    },
    "double": {"type": ["number", "boolean", "null"]},
    "string": {"type": ["string", "null"]},
}
EXAMPLES: dict[Dtype, Any] = {"int64": 1, "double": 0.5, "string": "a"}

COMPONENTS: dict[str, JsonSchema] = {
    **{
        dtype.capitalize(): {"description": "A value; null is missing.", **schema}
        for dtype, schema in _VALUES.items()
    },
    **{
        f"{dtype.capitalize()}List": {
            "description": "The entries of a list; null is an empty one.",
            "type": ["array", "null"],
            "items": {"$ref": f"#/components/schemas/{dtype.capitalize()}"},
        }
        for dtype in _VALUES
    },
}
"""Schemas to which those of all releases refer, under `#/components/schemas/`."""


def closed_object(properties: dict[str, JsonSchema]) -> JsonSchema:
    """Return the schema of an object that has no other properties; none is required."""
    return {"type": "object", "properties": properties, "additionalProperties": False}


def value_schema(column: Input) -> JsonSchema:
    """Return a reference to the schema of a value of an input."""
    suffix = "List" if column.is_list else ""
    return {"$ref": f"#/components/schemas/{column.dtype.capitalize()}{suffix}"}


def example(column: Input) -> Any:
    """Return a value that an input takes."""
    value = EXAMPLES[column.dtype]
    return [value] if column.is_list else value


def body_of_any(
    path: str,
    models: Mapping[str, Model],
    kind: type[R],
    schema_of: Callable[[R, bool], JsonSchema],
) -> dict[str, JsonSchema]:
    """Return the body that a path takes: that of any loaded release of a kind; nothing without one.

    `schema_of` gets a release, and whether it is the newest of its model, which need not be named.
    """
    schemas = [
        schema_of(release, number == model.newest)
        for model in models.values()
        for number, release in model.versions.items()
        if isinstance(release, kind)
    ]
    return {path: {"anyOf": schemas}} if schemas else {}
