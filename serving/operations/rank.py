"""Ranking: the candidates of a request and the context that they share, as the tensors of one score each."""

from __future__ import annotations

from headwater.serving.signature import Signature, repeat
from headwater.serving.tensors import Arrays


def join_context(
    candidates: Arrays, context: Arrays, num_rows: int, signature: Signature
) -> Arrays:
    """Return the tensors of `num_rows` candidates and of their context, which has one row.

    What the release takes in as context stays one row; the rest is repeated for each candidate. Raises
    `TooLargeError` where that is too much.
    """
    arrays = dict(candidates)
    for name, array in context.items():
        is_context = signature.tensors[name].role == "context" and num_rows > 0
        arrays[name] = array if is_context else repeat(name, array, num_rows)
    return arrays
