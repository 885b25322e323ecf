"""What a handler sees of the releases while they change."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, cast

import msgspec
import pytest

from headwater.feature_store.errors import ReleaseError
from headwater.serving import registry as registry_module
from headwater.serving.admission import Admission
from headwater.serving.batching import Batcher
from headwater.serving.errors import KindError
from headwater.serving.kinds import KINDS
from headwater.serving.kinds.scorer import Scorer
from headwater.serving.manifest import Manifest
from headwater.serving.metrics import Metrics
from headwater.serving.protocols.oip import model_metadata
from headwater.serving.protocols.oip_messages import ModelMetadata
from headwater.serving.protocols.routes import Request
from headwater.serving.registry import Model, R, Registry
from headwater.serving.release import load_release
from headwater.serving.service import Service


class _Vanishing(Registry):
    """Releases that are gone right after a handler has found one."""

    def get(self, name: str, version: int | None, kind: type[R]) -> tuple[Model, R]:
        found = super().get(name, version, kind)
        shutil.rmtree(self._folder / name)
        self.scan()
        assert not self.is_ready()
        return found


def test_metadata_of_a_model_that_is_being_removed_is_of_one_look(
    tmp_path: Path, write_release: Callable[..., Path]
) -> None:
    async def go() -> ModelMetadata:
        metrics = Metrics()
        registry = _Vanishing(tmp_path, keep_versions=2, metrics=metrics)
        registry.scan()
        admission = Admission(num_runners=1, max_queue_rows=10, metrics=metrics)
        batcher = Batcher(num_runners=1, admission=admission, metrics=metrics)
        service = Service(registry, admission, batcher, metrics)
        headers: Any = {}
        answer = await model_metadata(service, Request(b"", headers, {"model": "shop"}))
        batcher.close()
        return msgspec.json.decode(answer.body, type=ModelMetadata)

    write_release(tmp_path, "shop", 1)
    assert asyncio.run(go()).versions == ["1"]


def test_stamps_of_refused_releases_go_with_their_folders(tmp_path: Path) -> None:
    (tmp_path / "shop" / "1").mkdir(parents=True)
    (tmp_path / "shop" / "2").mkdir()
    registry = Registry(tmp_path, keep_versions=2, metrics=Metrics())
    registry.scan()
    assert set(registry._stamps) == {("shop", 1), ("shop", 2)}
    (tmp_path / "shop" / "2").rmdir()
    registry.scan()
    assert set(registry._stamps) == {("shop", 1)}
    shutil.rmtree(tmp_path / "shop")
    registry.scan()
    assert registry._stamps == {}


def test_a_dropped_version_gives_its_memory_back(
    tmp_path: Path, write_release: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    trimmed: list[int] = []
    monkeypatch.setattr(registry_module, "trim", lambda: trimmed.append(1))
    write_release(tmp_path, "shop", 1)
    registry = Registry(tmp_path, keep_versions=1, metrics=Metrics())
    registry.scan()
    registry.scan()
    assert len(trimmed) == 1
    held = registry.get("shop", None, Scorer)[1]
    write_release(tmp_path, "shop", 2)
    registry.scan()
    registry.scan()
    assert len(trimmed) == 2
    # As the last request that held version 1 ends.
    del held
    registry.scan()
    registry.scan()
    assert len(trimmed) == 3


def test_trimming_can_be_called() -> None:
    registry_module.trim()


class _Oracle:
    """A kind that no route asks for."""

    kind: ClassVar[str] = "oracle"

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest


def test_release_of_another_kind_is_refused_by_name(
    tmp_path: Path, write_release: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        cast("dict[str, Any]", KINDS), "oracle", lambda _, manifest: _Oracle(manifest)
    )
    path = write_release(tmp_path, "shop", 1, kind="oracle")
    registry = Registry(tmp_path, keep_versions=2, metrics=Metrics())
    registry.scan()
    _, oracle = registry.get("shop", None, _Oracle)
    assert oracle.manifest.kind == "oracle"
    with pytest.raises(KindError, match="model 'shop': expected the kind 'scorer', found 'oracle'"):
        registry.get("shop", 1, Scorer)
    with pytest.raises(ReleaseError, match="kind: expected 'scorer', found 'oracle'"):
        load_release(path, Scorer)
