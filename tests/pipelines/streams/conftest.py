"""One broker for the tests of streams; each test has topics, groups and a store of its own."""

from __future__ import annotations

import itertools
import json
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from headwater.feature_store.errors import HeadwaterError
from headwater.feature_store.online.store import OnlineStore, Partition
from headwater.pipelines.streams.broker import running_broker
from headwater.pipelines.streams.bus import At
from headwater.pipelines.streams.declared import FeatureSettings
from headwater.pipelines.streams.effects import StreamJob
from headwater.pipelines.streams.features import FeaturesJob
from headwater.pipelines.streams.kafka_bus import KafkaBus
from headwater.pipelines.streams.kafka_python import (
    KafkaAdminClient,
    KafkaConsumer,
    KafkaProducer,
    TopicPartition,
)
from headwater.pipelines.streams.recovery import check_wiring
from headwater.pipelines.streams.runtime import Runtime
from headwater.pipelines.streams.settings import StreamSettings, parse_settings
from headwater.pipelines.streams.upkeep import bind

START_MS = 1_700_000_000_000
COLUMNS = [
    {"name": "user", "dtype": "string"},
    {"name": "item", "dtype": "int64"},
    {"name": "type", "dtype": "string"},
    {"name": "ts_ms", "dtype": "int64"},
    {"name": "id", "dtype": "string", "optional": True},
]
TABLES = [
    {
        "name": "users",
        "key": "user",
        "features": [
            {"kind": "count", "name": "clicks", "where": {"type": "click"}},
            {"kind": "count", "name": "recent", "window_s": 60, "grain_s": 10},
            {"kind": "history", "name": "items", "column": "item", "length": 5},
            {"kind": "last", "name": "last_type", "column": "type", "ttl_s": 100},
        ],
    },
    {
        "name": "items",
        "key": "item",
        "features": [
            {
                "kind": "rate",
                "name": "ctr",
                "of": {"type": "click"},
                "over": {"type": ["click", "view"]},
                "prior": 0.1,
                "strength": 10,
            }
        ],
    },
]


HANGS_S = 120.0
"""Seconds after which a member hangs; the busiest machine needs fewer."""
_numbers = itertools.count()


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give the address of a broker; the one that KAFKA_BOOTSTRAP_SERVERS names, if it is set.

    Without a way to Kafka's jars, which are no Python packages, tests of streams are skipped by name.
    """
    with ExitStack() as stack:
        try:
            address = stack.enter_context(running_broker(tmp_path_factory.mktemp("kafka")))
        except HeadwaterError as error:
            if "jars cannot be fetched" in str(error):
                pytest.skip(str(error))
            raise
        yield address


@pytest.fixture(scope="session")
def admin(servers: str) -> Iterator[Any]:
    with KafkaAdminClient(bootstrap_servers=servers) as client:
        yield client


@pytest.fixture
def streams(servers: str, admin: Any, tmp_path: Path) -> Streams:
    return Streams(servers, admin, tmp_path / "store")


@dataclass(frozen=True)
class Streams:
    """A job, its events, and members that run until they have caught up."""

    servers: str
    admin: Any
    store: Path

    def topic(self, partitions: int = 1) -> str:
        """Make a topic of a name that none had before, and return the name."""
        name = f"t{next(_numbers)}-{uuid.uuid4().hex[:8]}"
        self.admin.create_topics({name: {"num_partitions": partitions, "replication_factor": 1}})
        return name

    def settings(
        self, topic: str, *, source: Mapping[str, Any] | None = None, **more: Any
    ) -> FeatureSettings:
        """Return a job for a topic, with a session that ends soon and batches that do not wait."""
        return parse_settings(self.values(topic, source=source, **more), FeatureSettings)

    def values(
        self, topic: str, *, source: Mapping[str, Any] | None = None, **more: Any
    ) -> dict[str, Any]:
        """Return the job as it stands in a file."""
        values: dict[str, Any] = {
            "name": f"job-{topic}",
            "store": f"lmdb:{self.store}",
            "source": {"topics": [topic], "columns": COLUMNS, "time": "ts_ms"} | dict(source or {}),
            "kafka": {
                "servers": self.servers,
                "session_timeout_ms": 2000,
                "transaction_timeout_ms": 2000,
            },
            "batches": {"commit_interval_ms": 1},
            "tables": TABLES,
        }
        return values | more

    def event(self, number: int, **more: Any) -> bytes:
        """Return an event as JSON; the clock goes on by a second an event."""
        values = {
            "user": f"u{number % 7}",
            "item": number % 5,
            "type": "click" if number % 3 == 0 else "view",
            "ts_ms": START_MS + number * 1000,
        }
        return json.dumps(values | more).encode()

    def send(self, topic: str, values: Iterable[bytes], partition: int | None = None) -> None:
        """Send messages, and wait until the broker has them."""
        with KafkaProducer(bootstrap_servers=self.servers) as producer:
            for sent in [producer.send(topic, value, partition=partition) for value in values]:
                sent.get(timeout=30)

    def received(self, topic: str) -> list[Any]:
        """Return all committed messages of a topic."""
        with KafkaConsumer(
            bootstrap_servers=self.servers, isolation_level="read_committed"
        ) as consumer:
            numbers = consumer.partitions_for_topic(topic) or ()
            parts = [TopicPartition(topic, each) for each in numbers]
            consumer.assign(parts)
            consumer.seek_to_beginning()
            ends = consumer.end_offsets(parts)
            messages: list[Any] = []
            while any(consumer.position(part) < end for part, end in ends.items()):
                for found in consumer.poll(200).values():
                    messages += found
            return messages

    def ends(self, topics: Iterable[str]) -> dict[tuple[str, int], int]:
        """Return the ends of all partitions of topics."""
        with KafkaConsumer(bootstrap_servers=self.servers) as consumer:
            parts = [
                TopicPartition(topic, each)
                for topic in topics
                for each in consumer.partitions_for_topic(topic) or ()
            ]
            return dict(consumer.end_offsets(parts))

    def start(self, settings: StreamSettings, store: OnlineStore) -> KafkaBus:
        """Do what the command does before it reads."""
        bus = KafkaBus(settings.kafka)
        bind(store, settings.encoded(), settings)
        check_wiring(settings, store, bus)
        return bus

    def catch_up(
        self,
        settings: StreamSettings,
        store: OnlineStore,
        *,
        job: StreamJob | None = None,
        folder: Path | None = None,
        at: At = lambda _: None,
    ) -> None:
        """Run a member until the store stands at the ends of all topics, then stop it in order."""
        bus = self.start(settings, store)
        ends = self.ends(settings.topics)
        if job is None:
            assert isinstance(settings, FeatureSettings)
            job = FeaturesJob(settings.definition())
        runtime = Runtime(job, settings, store, bus, folder=folder, at=at)
        hangs = threading.Event()
        timer = threading.Timer(HANGS_S, hangs.set)
        timer.start()

        def stopping() -> bool:
            positions = store.positions()
            done = all(positions.get(Partition(*part), 0) >= end for part, end in ends.items())
            return done or hangs.is_set()

        try:
            runtime.run(stopping)
        finally:
            timer.cancel()
        assert not hangs.is_set(), "the member hangs"
