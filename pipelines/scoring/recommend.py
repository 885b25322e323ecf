"""`headwater recommend`: the best items for the queries of a file, as the service would give them.

Queries go through the same retriever as requests do, so that offline and online lists are equal. No torch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from headwater.feature_store.errors import DataError
from headwater.feature_store.normalise import named
from headwater.pipelines.arguments import checked, path_of, refused
from headwater.pipelines.console import Progress
from headwater.pipelines.data.files import find_files
from headwater.pipelines.data.table import Table
from headwater.pipelines.job import read_csv_format
from headwater.pipelines.output import whole_file
from headwater.pipelines.scoring.score import release_folder
from headwater.serving.errors import RequestError
from headwater.serving.kinds.retriever import Retriever
from headwater.serving.release import load_release

QUERIES = 256
"""Queries that are answered at a time."""
ADDED = ("items", "scores", "known")


def recommend(
    release: Path | str,
    source: str | Path,
    out: Path | str,
    *,
    k: int = 10,
    csv: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the rows of `source` to `out` with the best items of each; return their number, and the speed.

    Parameters
    ----------
    release
        Release folder, or the folder of a model: then its newest version.
    source
        Parquet, CSV or NDJSON: a path, glob or fsspec URL, with a query a row in the column of the release's
        input: a user, or a list of items, the oldest first.
    out
        Parquet file: the columns of `source`, `items` and `scores` (lists, the best first) and `known`: 0
        where training knew nothing of the query, and the most popular items answer. It appears when complete.
    k
        Items of an answer; fewer where fewer are left.
    csv
        How CSV files are written, as `data.csv` of a job, which is what counts when absent.
    """
    release = path_of(release, "recommend: release", "a release's folder, as text or Path")
    path_of(source, "recommend: source", "a path, glob or URL, as text or Path")
    out = path_of(out, "recommend: out")
    if checked(k, int, "recommend: k", "a number of items") < 1:
        raise refused(k, "recommend: k", "at least 1")
    start_s = time.perf_counter()
    retriever = load_release(release_folder(release), Retriever)
    manifest, asker = retriever.manifest, retriever.asker
    table = Table(find_files(str(source), read_csv_format(manifest.csv if csv is None else csv)))
    table.require({asker.name: f"(model {manifest.name!r} answers a {retriever.retrieval.query}.)"})
    names = table.names()
    for name in ADDED:
        if name in names:
            raise DataError(f"{table.path}: column {name!r} is written beside it; rename it.")
    table.infer(names, dtypes={asker.name: asker.dtype}, exact=True)
    frame = table.read(names)
    items: list[list[Any]] = []
    scores: list[list[float]] = []
    known: list[int] = []
    with Progress("recommend", total=len(frame), unit="queries") as bar:
        for start in range(0, len(frame), QUERIES):
            asked = frame.get_column(asker.name)[start : start + QUERIES].to_list()
            try:
                arrays = retriever.arrays(asked)
            except RequestError as error:
                raise DataError(f"{table.path}, rows from {start + 1}: {error}") from None
            dropped = [retriever.masked(each) for each in asked]
            found, each_known = retriever.answer(arrays, k, allowed=None, dropped=dropped)
            items += [[retriever.items.ids[place] for place in each] for each, _ in found]
            scores += [each.tolist() for _, each in found]
            known += each_known.tolist()
            bar.advance(len(asked))
    item = pl.Int64() if retriever.items.is_integer else pl.String()
    answered = frame.select(map(named, names)).with_columns(
        pl.Series("items", items, pl.List(item)),
        pl.Series("scores", scores, pl.List(pl.Float32())),
        pl.Series("known", known, pl.Int64()),
    )
    with whole_file(out) as file:
        answered.write_parquet(file)
    return {
        "out": str(out),
        "queries": len(frame),
        "queries_per_second": len(frame) / (time.perf_counter() - start_s),
    }
