"""Genuine releases of several kinds behind a real server, and what every answer must be."""

from __future__ import annotations

import http.client
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from headwater.pipelines.job import Job, parse_job
from headwater.pipelines.preparing.prepare import prepare
from headwater.pipelines.release.export import export
from headwater.pipelines.training.train import train
from headwater.serving.kinds.scorer import Scorer
from headwater.serving.release import load_release
from headwater.serving.signature import columns_to_arrays

SAME = 1e-6
"""Difference that a row may show between a batch and alone: the order of the sums differs.

It is relative to the largest number that enters the sums as it is, where that is above 1.
"""

Rows = list[dict[str, Any]]


@dataclass
class Target:
    """A server under fire: counts its answers, watches its memory, and knows the right scores."""

    ROUNDS: ClassVar = 100
    """Rounds of the long runs."""
    WARM: ClassVar = 20
    """Rounds after which memory may grow no more."""
    GROWTH_MIB: ClassVar = 4.0

    server: Any
    scorers: dict[str, Scorer]
    """By model and version, as `texts/1`, and the newest also by model; opened in this process."""
    page: dict[str, Any]
    """The OpenAPI page."""
    statuses: Counter[int] = field(default_factory=Counter[int])
    """How many answers had each status."""
    compared: int = 0
    """Rows whose scores were compared with the row scored alone."""
    memory_mib: list[float] = field(default_factory=list[float])
    """Resident memory of the server after each round."""

    def end_round(self) -> None:
        """Note the resident memory of the server."""
        status = Path(f"/proc/{self.server.process.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
        self.memory_mib.append(int(line.split()[1]) / 1024)

    def check_memory(self) -> None:
        """Assert that the last rounds take no more memory than those after the warm-up.

        Each round sends requests of all kinds, so that rounds can be compared.
        """
        early = median(self.memory_mib[self.WARM : 2 * self.WARM])
        late = median(self.memory_mib[-self.WARM :])
        assert late <= early + self.GROWTH_MIB, self.memory_mib

    def check(self, model: str, rows: Rows, scores: Any) -> None:
        """Assert that there is a probability for each row, that of the row when it is scored alone."""
        scores = np.asarray(scores, np.float64)
        assert scores.shape == (len(rows),), (model, rows, scores)
        assert np.all((scores >= 0) & (scores <= 1))
        scorer = self.scorers[model]
        inputs = scorer.graph.inputs
        dense = [f.inputs[0] for f in scorer.manifest.features if f.cardinality == 0]
        for row, score in zip(rows, scores, strict=True):
            columns = {column.name: [row.get(column.name)] for column in inputs}
            alone = scorer.score(columns_to_arrays(inputs, columns))[0]
            limit = SAME * max([1.0, *(abs(row.get(name) or 0.0) for name in dense)])
            assert abs(alone - score) <= limit, (model, row, score, alone)
        self.compared += len(rows)

    def report(self) -> str:
        """Return what was done, for the record of a long run."""
        shown = [f"{self.memory_mib[i]:.1f}" for i in range(0, len(self.memory_mib), 10)]
        return (
            f"{sum(self.statuses.values())} requests {dict(sorted(self.statuses.items()))}, "
            f"{self.compared} rows compared one by one, MiB after every tenth round: {shown}"
        )


class _Neighbour(threading.Thread):
    """Another client, whose valid request must get the same answer all the while."""

    BODY = json.dumps(
        {
            "model": "texts",
            "context": {"user": 3, "ts": 1_700_000_000_000, "recent": [1, 2]},
            "candidates": [{"item": i, "word": "beta", "tags": ["new"]} for i in range(8)],
        }
    )

    def __init__(self, server: Any) -> None:
        super().__init__(daemon=True)
        self.connection: http.client.HTTPConnection = server.connect()
        self.first = self.ask()
        self.others: list[Any] = []
        self.stopping = threading.Event()

    def ask(self) -> NDArray[np.float64]:
        self.connection.request("POST", "/v1/rank", self.BODY)
        answer = json.loads(self.connection.getresponse().read())
        return np.array(answer["scores"])

    def run(self) -> None:
        """Ask until told to stop; keep what differs."""
        while not self.stopping.wait(0.01):
            try:
                found = self.ask()
            except Exception as error:
                self.others.append(error)
                return
            if np.abs(found - self.first).max() > SAME:
                self.others.append(found)


def _jobs(source: Path) -> list[Job]:
    """Return jobs that use every encoder, every raw type, and a context."""
    data = {"source": str(source), "split": {"by": "ratio", "valid": 0.2, "test": 0.1}}
    fitting = {"batch_size": 128, "epochs": 1, "device": "cpu", "sparse": {"lr": 0.1}}
    numbers = [
        {"name": "count", "encoder": "log_buckets"},
        {"name": "count_q", "column": "count", "encoder": "quantiles", "num_buckets": 200},
        {"name": "count_z", "column": "count", "encoder": "standardized"},
        {"name": "price", "encoder": "quantiles", "num_buckets": 8},
        {"name": "price_z", "column": "price", "encoder": "standardized"},
        {"name": "price_i", "column": "price", "encoder": "identity"},
        {"name": "price_log", "column": "price", "encoder": "log_buckets"},
        {"name": "item", "encoder": "vocabulary"},
        {"name": "item_hash", "column": "item", "encoder": "hashed", "num_buckets": 30},
    ]
    texts = [
        {"name": "user", "encoder": "vocabulary"},
        {"name": "ts", "encoder": "calendar", "part": "hour_of_week", "utc_offset_minutes": 90},
        {"name": "day", "column": "ts", "encoder": "calendar", "part": "weekday"},
        {"name": "recent", "encoder": "vocabulary", "length": 4, "pooling": "mean"},
        {"name": "word", "encoder": "vocabulary"},
        {"name": "word_hash", "column": "word", "encoder": "hashed", "num_buckets": 20},
        {"name": "tags", "encoder": "vocabulary", "length": 3, "keep": "head"},
        {"name": "tag_hash", "column": "tags", "encoder": "hashed", "num_buckets": 9, "length": 2},
        {"name": "prices", "encoder": "quantiles", "num_buckets": 9, "length": 3},
        {"name": "item", "encoder": "vocabulary"},
        {"name": "user_x_item", "encoder": "crossed", "columns": ["user", "item"]},
    ]
    models: list[tuple[str, list[dict[str, Any]], dict[str, Any], list[str]]] = [
        (
            "numbers",
            numbers,
            {"type": "finalmlp", "hidden_1": [16], "hidden_2": [8], "num_heads": 2},
            [],
        ),
        ("texts", texts, {"type": "deepfm", "hidden": [16]}, ["user", "ts", "recent"]),
    ]
    return [
        parse_job(
            {
                "name": name,
                "data": data,
                "features": {"label": "label", "columns": columns},
                "model": {"embedding_dim": 4, **model},
                "train": fitting,
                "export": {"context": context},
            }
        )
        for name, columns, model, context in models
    ]


def _write_rows(path: Path) -> None:
    random = np.random.default_rng(5)
    num_rows = 900
    words = ["alpha", "beta", "gamma", "\u00fc\u4e2d", "a b", "x" * 40]
    tags = ["new", "sale", "used", "\u20ac"]

    def lists(values: list[Any], longest: int) -> list[Any]:
        return [
            [values[i] for i in random.integers(0, len(values), random.integers(0, longest))]
            for _ in range(num_rows)
        ]

    user, item = random.integers(0, 30, num_rows), random.integers(0, 50, num_rows)
    price = random.lognormal(2, 1, num_rows)
    pl.DataFrame(
        {
            "user": user,
            "item": item,
            "count": random.geometric(0.02, num_rows) - 2,
            "price": [None if i % 9 == 0 else float(p) for i, p in enumerate(price)],
            "prices": lists([0.5, 1.5, 8.0, 100.0], 5),
            "ts": 1_700_000_000_000 + random.integers(0, 10**10, num_rows),
            "recent": lists([*range(20)], 7),
            "word": [None if i % 7 == 0 else words[i % len(words)] for i in range(num_rows)],
            "tags": lists(tags, 5),
            "label": ((user + item + random.integers(0, 20, num_rows)) % 3 == 0).astype(np.int8),
        }
    ).write_parquet(path)


@pytest.fixture(scope="session")
def fuzzed(tmp_path_factory: pytest.TempPathFactory, write_release: Callable[..., Path]) -> Path:
    """Return a folder of releases: all encoders, and the graph that the other tests ask."""
    folder = tmp_path_factory.mktemp("fuzzed")
    _write_rows(folder / "rows.parquet")
    releases = folder / "releases"
    for job in _jobs(folder / "rows.parquet"):
        run = train(job, prepare(job, folder / "prepared"), runs=folder / "runs")
        export(run, releases)
    for version in (1, 2):
        write_release(releases, "shop", version)
    return releases


@pytest.fixture(scope="module")
def target(fuzzed: Path, start_server: Callable[..., Any]) -> Iterator[Target]:
    """Give a server of its own for each module, so that its memory tells of these requests alone.

    Its other client must not notice them.
    """
    # No refusals for a machine that is busy with other things.
    server = start_server(fuzzed, max_wait_ms=10_000.0)
    status, page = server.get("/openapi.json")
    assert status == 200
    scorers: dict[str, Scorer] = {}
    for folder in sorted(fuzzed.glob("*/[0-9]*"), key=lambda path: int(path.name)):
        scorer = load_release(folder, Scorer)
        scorers[folder.parent.name] = scorers[f"{folder.parent.name}/{folder.name}"] = scorer
    neighbour = _Neighbour(server)
    neighbour.start()
    yield Target(server, scorers, page)
    neighbour.stopping.set()
    neighbour.join()
    assert neighbour.others == []
    assert not server.events("request failed")
    assert not server.events("batch failed")
