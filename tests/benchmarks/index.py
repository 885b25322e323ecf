"""The index of a retriever: build time, bytes, recall, and queries a CPU second beside bare faiss.

    .venv/bin/python tests/benchmarks/index.py [--items 100000 1000000]

Generated vectors of 64 numbers, clustered and of low rank, and queries of the same kind. Up to 200,000
items every vector is compared, above that the index has cells, tuned to a recall of .95 at 100. Each side
answers the same queries one by one with 100 items, on one thread, in turn: ours with its checks and its
order of equal scores, bare with the same index and parameters. A filter that 1 % of the items pass is
timed too.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import faiss
import numpy as np
from measure import Spread, interleave, machine, ratios, table, write_figures

from headwater.pipelines.release.index import write_index
from headwater.serving.kinds.retriever import Retriever
from headwater.serving.manifest import Retrieval

DIM, K = 64, 100
Kind = Literal["clustered", "low rank"]


def made(kind: Kind, num_items: int, num_queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors of items and of queries."""
    random = np.random.default_rng(7)
    if kind == "clustered":
        centre_CD = random.normal(size=(1000, DIM))

        def draw(number: int) -> np.ndarray:
            noise = 0.5 * random.normal(size=(number, DIM))
            return (centre_CD[random.integers(0, 1000, number)] + noise).astype(np.float32)
    else:
        basis_RD = random.normal(size=(16, DIM))

        def draw(number: int) -> np.ndarray:
            return (random.normal(size=(number, 16)) @ basis_RD).astype(np.float32)

    return draw(num_items), draw(num_queries)


def retriever_of(vectors: np.ndarray, index: Any, nprobe: int | None) -> Retriever:
    """Return a retriever that has nothing but vectors and their index."""
    made = Retriever.__new__(Retriever)
    kind = "exact" if nprobe is None else "ivf"
    made.retrieval = Retrieval(query="user", mask_seen=False, index=kind, nprobe=nprobe)
    made.vectors, made._index = vectors, index
    made.items = cast("Any", range(len(vectors)))
    return made


def one_by_one(answer: Callable[[np.ndarray], Any], queries: np.ndarray) -> float:
    """Return the CPU milliseconds of a query."""
    start_s = time.process_time()
    for query in queries:
        answer(query[None])
    return 1000 * (time.process_time() - start_s) / len(queries)


def measured(
    kind: Kind, num_items: int, num_queries: int, rounds: int
) -> tuple[list[object], dict[str, list[float]]]:
    """Return a line of the table, and the CPU milliseconds of a query by side and round."""
    vectors, queries = made(kind, num_items, num_queries)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index.faiss"
        start_s = time.process_time()
        tuned = write_index(path, vectors, queries)
        build_s = time.process_time() - start_s
        size = path.stat().st_size if tuned else vectors.nbytes
        index: Any = faiss.read_index(str(path)) if tuned else faiss.IndexFlatIP(DIM)
    if tuned is None:
        index.add(vectors)
    ours = retriever_of(vectors, index, None if tuned is None else tuned.nprobe)
    parameters = None if tuned is None else ours._parameters(None)
    passing = np.random.default_rng(8).random(num_items) < 0.01
    nothing = [np.zeros(0, np.int64)]
    answers: dict[str, Callable[[np.ndarray], Any]] = {
        "ours": lambda query: ours.search(query, K, None, nothing),
        "bare": lambda query: index.search(query, K, params=parameters),
        "filter": lambda query: ours.search(query, K, passing, nothing),
    }
    runs = {name: partial(one_by_one, answer, queries) for name, answer in answers.items()}
    cost_ms = interleave(runs, rounds)
    row: list[object] = [
        f"{num_items:,} {kind}",
        "exact" if tuned is None else f"{tuned.nprobe} cells",
        f"{build_s:.1f}",
        f"{size / 2**20:,.0f}",
        "1" if tuned is None else f"{tuned.recall:.3f}",
        f"{1000 / Spread.of(cost_ms['ours']).median:,.0f}",
        ratios(cost_ms["ours"], cost_ms["bare"]).text(),
        ratios(cost_ms["ours"], cost_ms["filter"]).text(),
    ]
    return row, cost_ms


def main() -> None:
    """Measure each kind and size, and print the figures as Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="file for the raw figures")
    args = parser.parse_args()
    faiss.omp_set_num_threads(1)
    rows: list[list[object]] = []
    figures: dict[str, Any] = {}
    for num_items in args.items:
        for kind in ("clustered", "low rank"):
            row, figures[f"{kind} {num_items}"] = measured(
                kind, num_items, args.queries, args.rounds
            )
            rows.append(row)
    print(machine())
    head = [
        "items",
        "index",
        "build CPU s",
        "MiB",
        f"recall@{K}",
        "queries a CPU s",
        "of bare faiss",
        "1 % pass: times the CPU",
    ]
    print(table(head, rows))
    write_figures(args.out, figures)


if __name__ == "__main__":
    main()
