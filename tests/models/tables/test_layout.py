"""What a table's dimension must be."""

from __future__ import annotations

from headwater.models.tables.layout import fused_problems


def test_dimension_of_fused_tables_is_one_or_a_multiple_of_four() -> None:
    assert fused_problems([1, 4, 16]) == []
    assert fused_problems([6, 1, 13]) == [
        (
            "model.embedding_dim: 6 is not a multiple of 4, as fused tables need. "
            "Set 8, or train.sparse.mode = 'lazy'."
        ),
        (
            "model.embedding_dim: 13 is not a multiple of 4, as fused tables need. "
            "Set 16, or train.sparse.mode = 'lazy'."
        ),
    ]
