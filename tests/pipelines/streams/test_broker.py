"""The embedded broker: it keeps what it took, over a stop and a kill."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from headwater.feature_store.errors import InputError
from headwater.pipelines.streams.broker import SERVERS_VARIABLE, Broker, running_broker
from headwater.pipelines.streams.kafka_python import KafkaAdminClient, KafkaConsumer, KafkaProducer

pytestmark = pytest.mark.usefixtures("servers")  # which skips where Kafka's jars cannot be had


def read(servers: str, topic: str, count: int) -> list[bytes]:
    """Return the values of the first `count` messages."""
    with KafkaConsumer(
        topic, bootstrap_servers=servers, auto_offset_reset="earliest", consumer_timeout_ms=30_000
    ) as consumer:
        return [message.value for message, _ in zip(consumer, range(count), strict=False)]


def test_acknowledged_messages_outlive_a_kill_and_a_stop(tmp_path: Path) -> None:
    values = [b"%d" % number for number in range(100)]
    broker = Broker(tmp_path / "kafka")
    broker.start()
    try:
        with KafkaAdminClient(bootstrap_servers=broker.servers) as admin:
            admin.create_topics({"kept": {"num_partitions": 1, "replication_factor": 1}})
        with KafkaProducer(bootstrap_servers=broker.servers) as producer:
            sent = [producer.send("kept", value) for value in values]
            for each in sent:
                each.get(timeout=30)
        broker.kill()
        assert not broker.is_running()
        broker.start()
        assert read(broker.servers, "kept", 100) == values
        broker.stop()
        broker.start()
        assert read(broker.servers, "kept", 100) == values
    finally:
        broker.stop()


def test_a_taken_port_is_refused_by_number(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} is taken"):
            Broker(tmp_path, port=port).start()


def test_a_running_cluster_stands_for_the_embedded_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SERVERS_VARIABLE, "kafka-1:9092,kafka-2:9092")
    with running_broker(tmp_path / "kafka") as servers:
        assert servers == "kafka-1:9092,kafka-2:9092"
    assert not (tmp_path / "kafka").exists()


def test_command_runs_until_it_is_told_to_stop(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "headwater.pipelines.cli", "broker", str(tmp_path / "kafka")]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with subprocess.Popen(
        [*command, "--port", str(port), "--json"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        assert told["bootstrap_servers"] == f"127.0.0.1:{port}"
        with KafkaAdminClient(bootstrap_servers=told["bootstrap_servers"]) as admin:
            assert admin.list_topics() == []
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
