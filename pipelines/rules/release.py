"""Rules of `[export]`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from headwater.feature_store.errors import did_you_mean
from headwater.feature_store.schema import Step


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
