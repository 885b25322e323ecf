"""Errors of pydantic as lines for the reader of a job file: the path, what was expected and found.

The types of the declared models are walked along with pydantic's location, since it also names there which
alternative of a type it tried: that name stands in no file, but may look like a key of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from headwater.feature_store.errors import did_you_mean

_EXPECTED = {
    "model_type": "a table",
    "model_attributes_type": "a table",
    "dict_type": "a table",
    "list_type": "a list",
    "tuple_type": "a list",
}
"""Words of TOML for pydantic's words of Python."""


def explain(
    error: ValidationError, config: type[BaseModel], values: Mapping[str, Any], section: str = ""
) -> Iterator[str]:
    """Yield a line for each thing that is wrong in `values`, as read for `config`.

    `section` is where in the file `config` lies.
    """
    found = [
        (item, _locate(item["loc"], config, values, section))
        for item in error.errors(include_url=False)
    ]
    # Of several types that a value may have, pydantic refuses each by an error of its own.
    expected: dict[str, list[str]] = {}
    for item, place in found:
        if place.is_alternative:
            expected.setdefault(place.path, []).append(_expected(item) or item["msg"])
    for item, place in found:
        if not place.is_alternative:
            yield _line(item, place)
        elif place.path in expected:
            kinds = " or ".join(expected.pop(place.path))
            # A list or a table of which one entry is wrong is told by that entry.
            inside = (f"{place.path}[", f"{place.path}.")
            if not any(other.path.startswith(inside) for _, other in found):
                yield f"{place.path}: expected {kinds}, found {_shown(item['input'])}."


@dataclass(frozen=True, slots=True)
class _Place:
    """Place of an error in a file."""

    path: str
    config: Any
    """The model of the innermost table on the path, if it is known."""
    kind: Any
    """The type of the value at the path."""
    is_alternative: bool
    """True where the error is about one of several types that the value may have."""


def _locate(
    loc: Sequence[int | str], config: type[BaseModel], values: Mapping[str, Any], section: str
) -> _Place:
    path, kind, owner, is_alternative = section, config, config, False
    value: Any = values
    for part in loc:
        members, tag = _members(kind)
        is_alternative = len(members) > 1 and tag is None
        if len(members) > 1:
            kind = next((each for each in members if _bare(part) in _names(each, tag)), Any)
            continue
        kind = members[0]
        if isinstance(part, int):
            kind = _element(kind, part)
            # A value that stands for a list of one is no list in the file.
            if isinstance(value, list | tuple):
                value = value[part] if part < len(value) else None
                name = value.get("name") if isinstance(value, Mapping) else None
                path += f"[{part}]" + (f" ({name})" if name else "")
            continue
        owner = kind
        value = value.get(part) if isinstance(value, Mapping) else None
        path = f"{path}.{part}" if path else part
        kind = _value(kind, part)
    return _Place(path, owner, kind, is_alternative)


def _members(kind: Any, tag: str | None = None) -> tuple[list[Any], str | None]:
    """Return the alternatives of a type but None, and the key whose value tells them apart, if one does."""
    if get_origin(kind) is Annotated:
        inner, *notes = get_args(kind)
        for note in notes:
            if isinstance(note, FieldInfo) and isinstance(note.discriminator, str):
                tag = note.discriminator
        return _members(inner, tag)
    if get_origin(kind) not in (Union, UnionType):
        return [kind], tag
    members: list[Any] = []
    for each in get_args(kind):
        if each is not NoneType:
            inside, tag = _members(each, tag)
            members += inside
    return members, tag


def _bare(part: int | str) -> int | str:
    """Return pydantic's name of an alternative without the validators that it names around it."""
    if isinstance(part, str) and part.startswith("function-"):
        return part.rpartition(", ")[2].rstrip("]")
    return part


def _names(member: Any, tag: str | None) -> set[str]:
    """Return what pydantic may call an alternative: values of its tag, or its type."""
    if tag is not None:
        return set(get_args(_tags(member, tag)))
    return {getattr(member, "__name__", ""), str(member)}


def _tags(member: Any, tag: str | None) -> Any:
    """Return the type of an alternative's tag, a Literal."""
    return member.model_fields[tag].annotation


def _element(kind: Any, position: int) -> Any:
    """Return the type of an entry of a list."""
    kinds = [each for each in get_args(kind) if each is not ...]
    return kinds[min(position, len(kinds) - 1)] if kinds else Any


def _value(kind: Any, key: str) -> Any:
    """Return the type of the value of a key."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        field = kind.model_fields.get(key)
        return Any if field is None else Annotated[field.annotation, field]
    return get_args(kind)[1] if get_origin(kind) is dict else Any


def _line(item: ErrorDetails, place: _Place) -> str:
    value, where = item["input"], f"{place.path}: " if place.path else ""
    match item["type"]:
        case "extra_forbidden":
            known = getattr(place.config, "model_fields", {})
            return f"{where}unknown key.{did_you_mean(str(item['loc'][-1]), known)}"
        case "missing":
            return f"{where}required, but absent."
        case "too_short":
            least, found = (item.get("ctx", {})[key] for key in ("min_length", "actual_length"))
            return f"{where}expected at least {least} in the list, found {found}."
        case "union_tag_not_found" | "union_tag_invalid":
            members, tag = _members(place.kind)
            known = [name for member in members for name in get_args(_tags(member, tag))]
            expected = f"Expected {', '.join(map(repr, known[:-1]))} or {known[-1]!r}."
            if item["type"] == "union_tag_not_found":
                return f"{place.path}.{tag}: required, but absent. {expected}"
            hint = did_you_mean(str(value[tag]), known)
            return f"{place.path}.{tag}: unknown {value[tag]!r}.{hint} {expected}"
        case "literal_error":
            known = [each for member in _members(place.kind)[0] for each in get_args(member)]
            hint = did_you_mean(str(value), map(str, known))
            return f"{where}expected {_expected(item)}, found {_shown(value)}.{hint}"
        case _:
            pass
    if expected := _expected(item):
        return f"{where}expected {expected}, found {_shown(value)}."
    found = "" if isinstance(value, dict | list) else f", found {value!r}"
    return f"{where}{item['msg'].removeprefix('Value error, ')}{found}."


def _expected(item: ErrorDetails) -> str | None:
    """Return what should have been there; None where pydantic says what is wrong instead."""
    prefix, _, said = item["msg"].partition("Input should be ")
    return _EXPECTED.get(item["type"]) or (None if prefix else said)


def _shown(value: object) -> str:
    """Return what was found; a table or a list by its kind alone."""
    if isinstance(value, Mapping):
        return "a table"
    return "a list" if isinstance(value, list | tuple) else repr(value)
