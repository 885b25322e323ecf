"""One broker for the tests of streams; each test has topics and groups of its own."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterator

import pytest
from kafka import KafkaAdminClient

from headwater.pipelines.streams.broker import running_broker


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give the address of a broker; the one that KAFKA_BOOTSTRAP_SERVERS names, if it is set."""
    with running_broker(tmp_path_factory.mktemp("kafka")) as address:
        yield address


@pytest.fixture(scope="session")
def admin(servers: str) -> Iterator[KafkaAdminClient]:
    with KafkaAdminClient(bootstrap_servers=servers) as client:
        yield client


_numbers = itertools.count()


@pytest.fixture
def new_topic(admin: KafkaAdminClient) -> Callable[..., str]:
    """Give a function: make a topic of a name that none had before, and return the name."""

    def make(partitions: int = 1) -> str:
        name = f"t{next(_numbers)}-{uuid.uuid4().hex[:8]}"
        admin.create_topics({name: {"num_partitions": partitions, "replication_factor": 1}})
        return name

    return make
