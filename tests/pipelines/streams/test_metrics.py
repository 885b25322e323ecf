"""Metrics and health of a consumer that runs."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from prometheus_client.parser import text_string_to_metric_families

HANGS_S = 60.0


@pytest.fixture
def stream(streams: Any, tmp_path: Path) -> tuple[str, Path]:
    """Give a topic with fifty events, and the file of a job that reads it."""
    topic = streams.topic(2)
    streams.send(topic, [*map(streams.event, range(49)), b"no json"])
    path = tmp_path / "stream.toml"
    path.write_text(tomli_w.dumps(streams.values(topic)))
    return topic, path


def call(*arguments: object) -> Any:
    command = [sys.executable, "-m", "headwater.pipelines.cli", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def get(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", path)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANGS_S
    while not done():
        assert time.monotonic() < deadline, "hangs"
        time.sleep(0.1)


def test_a_consumer_tells_what_it_does_and_ends_in_order(stream: tuple[str, Path]) -> None:
    topic, path = stream
    command = [sys.executable, "-m", "headwater.pipelines.cli", "stream", "features", str(path)]
    with subprocess.Popen(
        [*command, "--metrics-port", "0", "--json"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        port = json.loads(process.stdout.readline())["metrics_port"]

        def value(name: str, **labels: str) -> float | None:
            for family in text_string_to_metric_families(get(port, "/metrics")[1]):
                for sample in family.samples:
                    if sample.name == name and labels.items() <= sample.labels.items():
                        return sample.value
            return None

        until(lambda: value("headwater_stream_events_total", topic=topic) == 50)
        assert value("headwater_stream_dead_letters_total", topic=topic, reason="malformed") == 1
        assert (value("headwater_stream_commit_seconds_count") or 0) >= 1
        assert (value("headwater_store_bytes") or 0) > 0
        assert (value("headwater_stream_watermark_delay_seconds") or 0) > 0
        until(lambda: value("headwater_stream_lag_messages", topic=topic, partition="0") == 0)
        assert get(port, "/health/live") == (200, "live\n")
        assert get(port, "/health/ready") == (200, "ready\n")
        assert get(port, "/other")[0] == 404
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANGS_S) == 0
    status = call("stream", "status", path)
    assert {row["lag"] for row in status["partitions"]} == {0}
    assert (status["rows"], status["outbox"]) == (7 + 5 + 2, 0)
    assert call("stream", "forget", path, "u3")["tables"] == ["users"]
    assert call("stream", "forget", path, "3", "--only", "items")["tables"] == ["items"]
    assert call("stream", "status", path)["rows"] == 12
    assert call("stream", "replay-dead-letters", path)["letters"] == {"malformed": 1}
    assert {each["different"] for each in call("skew", path)["features"]} == {0}
    assert call("stream", "reset", path)["rows"] == 12
