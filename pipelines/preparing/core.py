"""The k-core of a log: users and items with enough events, counted among what is left."""

from __future__ import annotations

import numpy as np
import polars as pl

from headwater.feature_store.errors import DataError
from headwater.feature_store.schema import INT64_MIN
from headwater.pipelines.console import note
from headwater.pipelines.data.names import GROUP, ROW, staged_name
from headwater.pipelines.job_interactions import InteractionLog
from headwater.pipelines.preparing.splits import is_one_of
from headwater.pipelines.preparing.staging import Part, Staged, StagedFile


def k_core(staged: Staged, log: InteractionLog) -> Staged:
    """Return the rows that are left when users and items with too few events go, again and again.

    Rows without a user or an item go too. Memory: some 30 bytes a row. DataError where no row is left.
    """
    if log.min_user_count == log.min_item_count == 1:
        return staged
    item = staged_name(log.item)
    wanted = [part.rows.select(ROW, GROUP, item) for part in staged.parts]
    rows = pl.concat(frame.collect(engine="streaming") for frame in wanted)
    complete = (pl.col(GROUP) != INT64_MIN) & pl.col(item).is_not_null()
    ranks = [pl.col(name).rank("dense") - 1 for name in (GROUP, item)]
    known = rows.filter(complete).select(ROW, *ranks)
    number, asker, taken = (column.to_numpy() for column in known.get_columns())
    least = ((asker, log.min_user_count), (taken, log.min_item_count))
    left = np.ones(len(number), np.bool_)
    before = -1
    while before != left.sum():
        before = left.sum()
        for of_row, count in least:
            left &= np.bincount(of_row[left], minlength=len(left) + 1)[of_row] >= count
    kept = number[left]
    note(
        f"kept {len(kept):,} of {rows.height:,} events, of {log.asker_key}s with "
        f"{log.min_user_count} or more and items with {log.min_item_count} or more"
    )
    if not len(kept):
        raise DataError(
            f"interactions: no event is left with min_user_count = {log.min_user_count} and min_item_count "
            f"= {log.min_item_count}. Lower them."
        )
    chosen, ends = is_one_of(kept), np.cumsum([0, *(part.num_rows for part in staged.parts)])
    of_part = np.searchsorted(kept, rows.get_column(ROW).to_numpy()[ends[:-1]])
    sizes = iter(np.diff([*of_part, len(kept)]).tolist())
    return Staged(
        [
            StagedFile(
                file.rows.filter(chosen),
                [Part(part.rows.filter(chosen), next(sizes)) for part in file.parts],
            )
            for file in staged.files
        ]
    )
