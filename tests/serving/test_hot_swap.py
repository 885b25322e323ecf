"""Versions come and go under load: no request fails, and each score is that of the version it names."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

NUM_SWAPS = 20
NUM_CLIENTS = 8


def test_20_swaps_under_8_busy_clients_fail_no_request(
    tmp_path: Path,
    start_server: Callable[..., Any],
    write_release: Callable[..., Path],
    make_rows: Callable[..., Any],
    offline: Callable[..., Any],
    wait_until: Callable[..., None],
) -> None:
    write_release(tmp_path, "shop", 1)
    server = start_server(tmp_path)
    rows = make_rows(12, seed=5)
    columns = {name: rows[name] for name in ("item", "price", "brand", "tags")}
    ranking = {"model": "shop", "context": {"user": 7, "country": "fr"}, "candidates": columns}
    as_rows = {**columns, "user": [7] * 12, "country": ["fr"] * 12}
    item = {"name": "item", "datatype": "INT64", "shape": [12, 1], "data": rows["item"]}
    inference = {"inputs": [item]}
    done = threading.Event()
    seen: list[tuple[str, int, int, list[float]]] = []
    failures: list[Any] = []

    def client(index: int) -> None:
        connection = server.connect()
        while not done.is_set():
            if index % 2:
                status, body = server.request("POST", "/v1/rank", ranking, connection=connection)
            else:
                path = "/v2/models/shop/infer"
                status, body = server.request("POST", path, inference, connection=connection)
            if status != 200:
                failures.append((status, body))
            elif index % 2:
                seen.append(("rank", status, body["version"], body["scores"]))
            else:
                scores = body["outputs"][0]["data"]
                seen.append(("infer", status, int(body["model_version"]), scores))

    threads = [threading.Thread(target=client, args=(index,)) for index in range(NUM_CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        served = 'headwater_serving_model_version{model="shop"}'
        for version in range(2, NUM_SWAPS + 2):
            write_release(tmp_path, "shop", version)
            wait_until(lambda version=version: server.metric(served) == version)
    finally:
        done.set()
        for thread in threads:
            thread.join()

    assert failures == []
    assert len(seen) > 50 * NUM_CLIENTS
    assert {version for _, _, version, _ in seen} >= set(range(2, NUM_SWAPS + 1))
    expected: dict[tuple[str, int], Any] = {}
    for version in {version for _, _, version, _ in seen}:
        release = tmp_path / "shop" / str(version)
        expected["rank", version] = offline(release, as_rows)
        expected["infer", version] = offline(release, {"item": rows["item"]})
    for kind, _, version, scores in seen:
        np.testing.assert_allclose(scores, expected[kind, version], atol=1e-6)
    assert server.get("/v2/models/shop")[1]["versions"] == ["21", "20"]


@pytest.fixture
def watched(
    tmp_path: Path, start_server: Callable[..., Any], write_release: Callable[..., Path]
) -> tuple[Path, Any]:
    """Return a folder with version 1 of `shop`, and the server that watches it."""
    write_release(tmp_path, "shop", 1)
    return tmp_path, start_server(tmp_path)


def _versions(server: Any, model: str = "shop") -> list[str]:
    return server.get(f"/v2/models/{model}")[1].get("versions", [])


def test_releases_come_and_go(
    watched: tuple[Path, Any], write_release: Callable[..., Path], wait_until: Callable[..., None]
) -> None:
    folder, server = watched
    write_release(folder, "shop", 3)
    wait_until(lambda: _versions(server) == ["3", "1"])
    # A version between is loaded too, and the oldest dropped; a late one does not take over.
    write_release(folder, "shop", 2)
    wait_until(lambda: _versions(server) == ["3", "2"])
    assert server.get("/v2/models/shop/versions/1/ready")[0] == 404
    # A rollback: the newest goes, the older ones serve.
    shutil.rmtree(folder / "shop" / "3")
    wait_until(lambda: _versions(server) == ["2", "1"])
    assert server.post("/v1/rank", {"model": "shop", "candidates": [{}]})[1]["version"] == 2
    # A second model appears, and disappears.
    write_release(folder, "other", 7)
    wait_until(lambda: _versions(server, "other") == ["7"])
    shutil.rmtree(folder / "other")
    wait_until(lambda: server.get("/v2/models/other")[0] == 404)
    assert server.metric('headwater_serving_model_info{model="other",version="7"}') == 0
    assert server.get("/v2/health/ready")[0] == 200


def test_corrupt_release_is_reported_and_the_old_one_serves(
    watched: tuple[Path, Any], write_release: Callable[..., Path], wait_until: Callable[..., None]
) -> None:
    folder, server = watched
    whole = write_release(folder, "draft", 2)
    bad = folder / "shop" / ".2.tmp"
    shutil.copytree(whole, bad)
    data = bytearray((bad / "model.onnx").read_bytes())
    data[50] ^= 1
    (bad / "model.onnx").write_bytes(data)
    bad.rename(folder / "shop" / "2")
    refused = 'headwater_serving_release_failures_total{model="shop"}'
    wait_until(lambda: server.metric(refused) == 1)
    assert _versions(server) == ["1"]
    status, answer = server.get("/v2/models/shop/versions/2/ready")
    assert (status, answer["error"]) == (
        503,
        "model 'shop': version 2 was refused, as the log explains",
    )
    event = server.events("release refused")[0]
    assert "model.onnx: corrupt" in event["error"]
    # It is not tried again until it changes.
    time.sleep(1.2)
    assert server.metric(refused) == 1
    # `draft/2` copied under another name is refused as well: the manifest says who it is.
    shutil.rmtree(folder / "shop" / "2")
    shutil.copytree(whole, bad)
    bad.rename(folder / "shop" / "2")
    wait_until(lambda: server.metric(refused) == 2)
    assert "found that of draft/2" in server.events("release refused")[1]["error"]
    # The right one in its place is taken.
    shutil.rmtree(folder / "shop" / "2")
    write_release(folder, "shop", 2)
    wait_until(lambda: _versions(server) == ["2", "1"])


def test_loaded_release_that_is_spoilt_is_tried_once(
    watched: tuple[Path, Any], write_release: Callable[..., Path], wait_until: Callable[..., None]
) -> None:
    folder, server = watched
    path = write_release(folder, "shop", 2)
    wait_until(lambda: _versions(server) == ["2", "1"])
    with (path / "model.onnx").open("ab") as stream:
        stream.write(b"x")
    wait_until(lambda: _versions(server) == ["1"])
    time.sleep(1.2)
    assert server.metric('headwater_serving_release_failures_total{model="shop"}') == 1


def test_unreadable_folder_or_odd_release_does_not_keep_others_from_being_served(
    tmp_path: Path,
    start_server: Callable[..., Any],
    write_release: Callable[..., Path],
    wait_until: Callable[..., None],
) -> None:
    # Links to themselves: unlike folders of mode 0, not even root reads them.
    (tmp_path / "lost+found").symlink_to("lost+found")
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "3").symlink_to("3")
    odd = write_release(tmp_path, "odd", 1)
    manifest = json.loads((odd / "manifest.json").read_text())
    manifest["files"]["a\0b"] = ""
    (odd / "manifest.json").write_text(json.dumps(manifest))
    write_release(tmp_path, "shop", 1)
    server = start_server(tmp_path)
    assert _versions(server) == ["1"]
    write_release(tmp_path, "shop", 2)
    wait_until(lambda: _versions(server) == ["2", "1"])
    unreadable = {event["folder"] for event in server.events("folder cannot be read")}
    assert unreadable == {str(tmp_path / "lost+found"), str(tmp_path / "shop" / "3")}
    assert len(server.events("folder cannot be read")) == 2
    (refused,) = server.events("release refused")
    assert (refused["model"], refused["error"]) == ("odd", "embedded null byte")


def test_slow_copy_is_taken_when_it_is_whole(
    watched: tuple[Path, Any], write_release: Callable[..., Path], wait_until: Callable[..., None]
) -> None:
    folder, server = watched
    source = write_release(folder.parent / f"{folder.name}-source", "shop", 2)
    target = folder / "shop" / "2"
    target.mkdir()
    shutil.copy(source / "manifest.json", target)
    refused = 'headwater_serving_release_failures_total{model="shop"}'
    wait_until(lambda: server.metric(refused) >= 1)
    shutil.copy(source / "model.onnx", target)
    wait_until(lambda: _versions(server) == ["2", "1"])


def test_names_that_are_no_release_are_ignored(watched: tuple[Path, Any]) -> None:
    folder, server = watched
    for name in (".hidden/1", "draft.tmp/1", "shop/2.tmp", "shop/.3", "shop/04", "shop/latest"):
        (folder / name).mkdir(parents=True)
    (folder / "README").write_text("a file")
    (folder / "shop" / "5").write_text("a file")
    (folder / "dangling").symlink_to(folder / "nowhere")
    time.sleep(1.2)
    assert _versions(server) == ["1"]
    assert server.get("/metrics")[1].count("headwater_serving_model_info{") == 1
    assert server.events("release refused") == []


def test_server_without_a_release_is_live_and_becomes_ready_with_the_first(
    tmp_path: Path,
    start_server: Callable[..., Any],
    write_release: Callable[..., Path],
    wait_until: Callable[..., None],
) -> None:
    server = start_server(tmp_path, ready=False)
    assert server.get("/v2/health/live")[0] == 200
    status, answer = server.get("/v2/health/ready")
    assert (status, answer) == (503, {"error": "no release is ready"})
    write_release(tmp_path, "shop", 1)
    wait_until(lambda: server.get("/v2/health/ready")[0] == 200)
    body = json.dumps({"model": "shop", "candidates": [{}]}).encode()
    assert server.post("/v1/rank", body)[0] == 200
