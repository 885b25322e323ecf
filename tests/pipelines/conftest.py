"""A small job with every kind of raw column, and a network of random weights for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from headwater.feature_store import schema as fs
from headwater.models.network import Network, build_network
from headwater.models.registry import load_model
from headwater.pipelines.family import Trained
from headwater.pipelines.job import Job, parse_job
from headwater.pipelines.preparing.prepare import Prepared, prepare
from headwater.pipelines.release.export import write_release

MISSING = fs.Missing()


@pytest.fixture(scope="session")
def click_schema() -> fs.Schema:
    """Return int64, double and string columns, two lists, a cross and a number, in mixed order."""
    return fs.Schema(
        raw=(
            fs.RawColumn(name="user", dtype="int64"),
            fs.RawColumn(name="tags", dtype="string", is_list=True),
            fs.RawColumn(name="city", dtype="string"),
            fs.RawColumn(name="price", dtype="double"),
            fs.RawColumn(name="seen", dtype="int64", is_list=True),
            fs.RawColumn(name="ts", dtype="int64"),
        ),
        columns=(
            encoded("user", fs.Lookup(keys=tuple(range(100, 140))), cardinality=42),
            encoded("tags", fs.Lookup(keys=("a", "b", "c", "\u00e9")), cardinality=6, length=3),
            encoded("city", fs.Hash(num_buckets=20), cardinality=22),
            fs.EncodedColumn(
                name="price_z",
                encoder="standardized",
                inputs=("price",),
                steps=(fs.Affine(scale=0.5, offset=-1.0), fs.Missing(fill=0.25)),
                cardinality=0,
            ),
            encoded("price", fs.Edges(values=(-1.0, 0.0, 0.5, 2.0)), cardinality=7),
            encoded("seen", fs.Lookup(keys=tuple(range(30))), cardinality=32, length=5, mean=True),
            encoded("hour", fs.Calendar(part="hour"), cardinality=26, source="ts"),
            fs.EncodedColumn(
                name="user_city",
                encoder="crossed",
                inputs=("user", "city"),
                steps=(
                    fs.Cross(cardinalities=(42, 22)),
                    fs.Hash(num_buckets=50, seed=3),
                    MISSING,
                ),
                cardinality=52,
            ),
        ),
    )


def encoded(
    name: str,
    step: fs.Step,
    *,
    cardinality: int,
    length: int = 1,
    mean: bool = False,
    source: str | None = None,
) -> fs.EncodedColumn:
    pad = (fs.Pad(length=length),) if length > 1 else ()
    return fs.EncodedColumn(
        name=name,
        encoder=type(step).__name__.lower(),
        inputs=(source or name,),
        steps=(step, MISSING, *pad),
        cardinality=cardinality,
        length=length,
        pooling="mean" if mean else "sum",
    )


@pytest.fixture(scope="session")
def click_rows() -> pl.DataFrame:
    """Return 300 normalised rows and a label; a tenth of the values is missing, some are unseen."""
    random = np.random.default_rng(0)
    num_rows = 300

    def some(values: list[Any]) -> list[Any]:
        return [None if random.random() < 0.1 else value for value in values]

    def lists(values: list[Any], longest: int) -> list[Any]:
        return some(
            [
                [values[i] for i in random.integers(0, len(values), random.integers(0, longest))]
                for _ in range(num_rows)
            ]
        )

    return pl.DataFrame(
        {
            "user": some(random.integers(95, 145, num_rows).tolist()),
            "tags": lists(["a", "b", "c", "d", None], 6),
            "city": some([f"city \u00e9{i}" for i in random.integers(0, 60, num_rows)]),
            "price": some(random.normal(0, 2, num_rows).tolist()),
            "seen": lists([*range(40), None, 2**60], 9),
            "ts": some(random.integers(0, 10**13, num_rows).tolist()),
            "label": random.integers(0, 2, num_rows).tolist(),
        },
        schema={
            "user": pl.Int64,
            "tags": pl.List(pl.String),
            "city": pl.String,
            "price": pl.Float64,
            "seen": pl.List(pl.Int64),
            "ts": pl.Int64,
            "label": pl.Int8,
        },
    )


MakeNetwork = Callable[..., Network]
MakeJob = Callable[..., Job]


@pytest.fixture(scope="session")
def make_network(click_schema: fs.Schema) -> MakeNetwork:
    """Return a function: a model's name, its settings, a schema if another, to a network."""

    def make(model: str, *, schema: fs.Schema = click_schema, **settings: Any) -> Network:
        model_class = load_model(model)
        config = model_class.config_class.model_validate(settings)
        network = build_network(schema, model_class, config, "dense", seed=1)
        randomise(network)
        return network.eval()

    return make


def randomise(network: Network) -> None:
    """Overwrite the first weights, under which all scores are nearly equal."""
    random = np.random.default_rng(1)
    tables = network.embeddings.tables()
    for slot in tables.values():
        for column, table in slot.items():
            slot[column] = random.normal(0, 0.3, table.shape).astype(np.float32)
            slot[column][0] = 0
    network.embeddings.load(tables, network.embeddings.numeric_weights())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in network.model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))


@pytest.fixture(scope="session")
def make_job() -> MakeJob:
    """Return a function: a model's name, and settings of the data and export sections, to a job."""

    def make(model: str, *, negative_rate: float = 1.0, **export: Any) -> Job:
        return parse_job(
            {
                "name": "clicks",
                "data": {
                    "train": "train.parquet",
                    "valid": "valid.parquet",
                    "negative_rate": negative_rate,
                },
                "features": {
                    "label": "label",
                    "columns": [{"name": "user", "encoder": "vocabulary"}],
                },
                "model": {"type": model},
                "export": export,
            }
        )

    return make


@pytest.fixture(scope="session")
def export_clicks(
    click_schema: fs.Schema,
    click_rows: pl.DataFrame,
    make_network: MakeNetwork,
    make_job: MakeJob,
) -> Callable[..., Path]:
    """Give a function that exports a model to a folder of releases, and returns the new one.

    It takes the model's name, its network or else its settings, the schema if another, and the
    settings of `make_job`.
    """

    def make(
        folder: Path,
        model: str,
        network: Network | None = None,
        *,
        schema: fs.Schema = click_schema,
        settings: Mapping[str, Any] | None = None,
        described: Mapping[str, Any] | None = None,
        **job: Any,
    ) -> Path:
        if network is None:
            network = make_network(model, schema=schema, **(settings or {}))
        trained = Trained(network, schema, make_job(model, **job), click_rows)
        return write_release(trained, folder, **(described or {}))

    return make


@pytest.fixture
def released(export_clicks: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Give `export_clicks` for `releases` in the test's folder."""
    return partial(export_clicks, tmp_path / "releases")


@pytest.fixture(scope="session")
def click_columns() -> list[dict[str, Any]]:
    """Return the columns that `job_of` declares by default."""
    return [
        {"name": "user", "encoder": "vocabulary"},
        {"name": "city", "encoder": "vocabulary"},
        {"name": "price", "encoder": "standardized"},
        {"name": "price_q", "encoder": "quantiles", "column": "price", "num_buckets": 4},
    ]


@pytest.fixture(scope="session")
def job_of(click_columns: list[dict[str, Any]]) -> Callable[..., Job]:
    """Return a function to a job over clicks.csv.

    It takes settings of `[data]`, the columns of features, and other settings of `[features]`.
    """

    def make(
        data: dict[str, Any] | None = None,
        columns: Sequence[dict[str, Any]] = click_columns,
        **features: Any,
    ) -> Job:
        return parse_job(
            {
                "name": "clicks",
                "data": {"source": "clicks.csv", "split": {"by": "time", "column": "ts"}}
                | (data or {}),
                "features": {"label": "click", "columns": list(columns), **features},
                "model": {"type": "fm"},
            }
        )

    return make


TinyJob = Callable[..., Job]


@pytest.fixture(scope="session")
def tiny_job(tmp_path_factory: pytest.TempPathFactory) -> TinyJob:
    """Return a function from settings of `[train]` and `[model]` to a job over planted clicks.

    Of five columns, user, item and price decide the label; colour and tags do not.
    """
    folder = tmp_path_factory.mktemp("clicks")
    random = np.random.default_rng(0)
    rows = 3000
    user, item = random.integers(0, 40, rows), random.integers(0, 60, rows)
    price = random.normal(size=rows)
    logit = random.normal(0, 1.2, 40)[user] + random.normal(0, 1.2, 60)[item] + price - 0.5
    pl.DataFrame(
        {
            "user": user,
            "item": item,
            "price": price,
            "colour": random.choice(["red", "green", "blue"], rows),
            "tags": [random.integers(0, 8, random.integers(0, 4)).tolist() for _ in range(rows)],
            "label": (random.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.int8),
        }
    ).write_parquet(folder / "clicks.parquet")

    def make(model: dict[str, Any] | None = None, **train: Any) -> Job:
        columns = [
            {"name": "user", "encoder": "vocabulary"},
            {"name": "item", "encoder": "vocabulary", "min_count": 2},
            {"name": "price", "encoder": "standardized"},
            {"name": "colour", "encoder": "vocabulary"},
            {"name": "tags", "encoder": "vocabulary", "length": 3},
        ]
        settings = {
            "type": "finalmlp",
            "embedding_dim": 8,
            "hidden_1": [16],
            "hidden_2": [8],
            "num_heads": 2,
            "gate_hidden": [8],
            "gate_1_context": ["user"],
        }
        return parse_job(
            {
                "name": "tiny",
                "data": {
                    "source": str(folder / "clicks.parquet"),
                    "split": {"by": "ratio", "valid": 0.2, "test": 0.2},
                },
                "features": {"label": "label", "user": "user", "columns": columns},
                "model": settings if model is None else model,
                "train": {"batch_size": 256, "epochs": 3, "device": "cpu", **train},
            }
        )

    return make


@pytest.fixture(scope="session")
def tiny_prepared(tiny_job: TinyJob, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Prepare the data of `tiny_job`, whatever its model."""
    return prepare(tiny_job(), tmp_path_factory.mktemp("prepared"))
