"""Small schemas, batches and placed networks for the tests of models."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

from headwater.feature_store.schema import EncodedColumn, Schema
from headwater.models.base import ModelConfig
from headwater.models.batch import Batch
from headwater.models.ctr.base import CTRModel
from headwater.models.network import build_network
from headwater.models.placement.place import place
from headwater.models.placement.settings import LearnSettings
from headwater.models.registry import load_model
from headwater.models.strategy import OneLoss

importlib.import_module("headwater.models._torchrec")  # takes seconds, which no test should count


def _make_column(
    name: str, cardinality: int, length: int = 1, pooling: Any = "sum"
) -> EncodedColumn:
    return EncodedColumn(
        name=name,
        encoder="test",
        inputs=(name,),
        steps=(),
        cardinality=cardinality,
        length=length,
        pooling=pooling,
    )


def _make_schema(*columns: EncodedColumn) -> Schema:
    return Schema(raw=(), columns=columns)


MIXED = _make_schema(
    _make_column("user.id", 23),
    _make_column("price", 0),
    _make_column("tags", 9, length=3, pooling="mean"),
    _make_column("city", 7),
    _make_column("age", 0),
    _make_column("history", 11, length=4),
)


def _make_batch(schema: Schema, size: int, seed: int = 0, *, missing: float = 0.3) -> Batch:
    """Return random examples; `missing` is the share of codes that are 0, none where it is 0."""
    generator = torch.Generator().manual_seed(seed)
    codes = [
        torch.randint(1, column.cardinality, (size, column.length), generator=generator)
        for column in schema.codes
    ]
    codes_BW = torch.cat(codes, 1) if codes else torch.zeros(size, 0)
    codes_BW = codes_BW * (torch.rand(codes_BW.shape, generator=generator) >= missing)
    return Batch(
        codes_BW=codes_BW.int(),
        dense_BD=torch.randn(size, len(schema.dense), generator=generator),
        label_B=(torch.rand(size, generator=generator) > 0.5).float(),
    )


def _make_strategy(
    model: str | type[CTRModel],
    schema: Schema = MIXED,
    *,
    config: ModelConfig | None = None,
    mode: Any = "dense",
    seed: int = 1,
    sparse_lr: float = 0.02,
    sparse_l2: float = 0.0,
    dense_lr: float = 1e-3,
    dense_l2: float = 0.0,
) -> OneLoss:
    model_class = load_model(model) if isinstance(model, str) else model
    network = build_network(schema, model_class, config or model_class.config_class(), mode, seed)
    learn = LearnSettings(
        sparse_lr=sparse_lr,
        sparse_l2=sparse_l2,
        dense_lr=dense_lr,
        dense_l2=dense_l2,
        clip_norm=1e9,
    )
    return OneLoss(place(network, torch.device("cpu"), learn), learn)


def _train_step(strategy: OneLoss, batch: Batch) -> float:
    return strategy.step(batch, len(batch), lambda _: None).mean.item()


@pytest.fixture
def mixed() -> Schema:
    """Every kind of column, code and dense ones mixed."""
    return MIXED


@pytest.fixture
def make_column() -> Callable[..., EncodedColumn]:
    return _make_column


@pytest.fixture
def make_schema() -> Callable[..., Schema]:
    return _make_schema


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    return _make_batch


@pytest.fixture
def make_strategy() -> Callable[..., OneLoss]:
    return _make_strategy


@pytest.fixture
def train_step() -> Callable[[OneLoss, Batch], float]:
    return _train_step
