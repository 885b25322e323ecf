"""Rules of `[export]`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from headwater.feature_store.errors import did_you_mean
from headwater.feature_store.schema import Step
from headwater.serving.manifest import TableType

LEAST_INT8_DIM = 3
"""An int8 row of fewer dimensions takes, with its scale of two bytes, as many bytes as in float16."""


def context_problems(context: Iterable[str], read: Sequence[str]) -> list[str]:
    """Return a line for each entry of `export.context` that is none of the raw columns that features read."""
    problems: list[str] = []
    for name in context:
        if name not in read:
            hint = did_you_mean(name, read) or f" Known: {', '.join(read)}."
            problems.append(f"export.context: {name!r} is no raw column of a feature.{hint}")
    return problems


def opset_problems(opset: int | None, steps: Mapping[str, Sequence[Step]]) -> list[str]:
    """Return a line for each feature, by name, whose steps need a later operator set than `export.opset`."""
    if opset is None:
        return []
    from headwater.feature_store.onnx_compiler import least_opset  # onnx, which few jobs need here

    return [
        f"export.opset: {opset} is below {least_opset(own)}, which feature {name!r} needs to read text as a "
        f"list or a time. Leave `opset` out, or raise it."
        for name, own in steps.items()
        if opset < least_opset(own)
    ]


def table_problems(stored: TableType, dims: Collection[int]) -> list[str]:
    """Return why `export.tables` changes nothing for tables of these dimensions; empty where it does."""
    if stored == "float32":
        return []
    if not dims:
        why, remedy = (
            "every feature is a number, and none has an embedding table",
            "Leave `tables` out",
        )
    elif stored == "int8" and max(dims) < LEAST_INT8_DIM:
        why = (
            f"no table has more than {LEAST_INT8_DIM - 1} dimensions, and a row with its scale takes as many "
            f"bytes as in float16"
        )
        remedy = "Set export.tables = 'float16'"
    else:
        return []
    return [f"export.tables: {stored!r} saves nothing: {why}. {remedy}."]
