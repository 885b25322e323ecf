"""Random architectures of OptInter that take as many bytes as a given one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import tomli_w

from headwater.feature_store.schema import Schema
from headwater.models.ctr.architecture import FoundPair, Method
from headwater.models.ctr.interaction_search import Sizes
from headwater.models.ctr.optinter_config import OptInterConfig
from headwater.pipelines.job import Job
from headwater.pipelines.job_model import job_model


def search_config(job: Job) -> OptInterConfig:
    """Return the settings of a search, with the features that it crosses."""
    _, config = job_model(job)
    assert isinstance(config, OptInterConfig)
    return config


def table_sizes(job: Job, schema: Schema, found: Sequence[FoundPair]) -> Sizes:
    """Return the bytes of the tables of a search."""
    config = search_config(job)
    sizes = {column.name: column.cardinality for column in schema.columns}
    width = 4 * config.interaction_dim
    return Sizes(
        main=4 * config.embedding_dim * sum(sizes[column.name] for column in job.features.columns),
        second={name: width * sizes[name] for name in config.cross},
        crossed={pair.name: width * pair.rows for pair in found},
        rows={pair.name: pair.rows for pair in found},
    )


def random_methods(
    methods: Sequence[Method], sizes: Sizes, config: OptInterConfig, seed: int
) -> list[Method]:
    """Return random methods of at most as many bytes: as many factorised pairs, then memorised ones."""
    rng, limit = random.Random(seed), sizes.total(config, methods)
    drawn: list[Method] = ["naive"] * len(methods)
    for place in rng.sample(range(len(methods)), len(methods)):
        wants_product = drawn.count("factorise") < methods.count("factorise")
        for method in ("factorise", "memorise") if wants_product else ("memorise",):
            drawn[place] = method
            if sizes.total(config, drawn) <= limit:
                break
            drawn[place] = "naive"
    return drawn


def write_methods(path: Path, found: Sequence[FoundPair], methods: Sequence[Method]) -> Path:
    """Write an architecture to train from: the pairs of a search, with other methods."""
    pairs = [
        {"columns": list(pair.columns), "method": method}
        for pair, method in zip(found, methods, strict=True)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tomli_w.dumps({"pairs": pairs}))
    return path
