"""Rate of a features job as a share of what one kafka-python process polls.

    python tests/benchmarks/stream_speed.py --events 300000 --rounds 5

Events of 170 bytes, 100,000 users by Zipf 0.8 and 20,000 items by Zipf 1.0. An event changes a user's row
(two counts, a window, the last 20 items) and an item's (a rate in a window). Rounds are interleaved, and the
medians count.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from headwater.feature_store.online.stores import open_store
from headwater.pipelines.streams.broker import running_broker
from headwater.pipelines.streams.declared import FeatureSettings
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
from headwater.pipelines.streams.settings import parse_settings
from headwater.pipelines.streams.upkeep import bind

PARTITIONS = 4
BYTES = 170
JOB: dict[str, Any] = {
    "source": {
        "topics": ["events"],
        "time": "ts_ms",
        "columns": [
            {"name": "user", "dtype": "int64"},
            {"name": "item", "dtype": "int64"},
            {"name": "type", "dtype": "string"},
            {"name": "ts_ms", "dtype": "int64"},
        ],
    },
    "tables": [
        {
            "name": "users",
            "key": "user",
            "features": [
                {"kind": "count", "name": "clicks", "where": {"type": "click"}},
                {"kind": "count", "name": "views", "where": {"type": "view"}},
                {"kind": "count", "name": "hour", "window_s": 3600, "grain_s": 300},
                {"kind": "history", "name": "items", "column": "item", "length": 20},
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
                    "over": {"type": "view"},
                    "window_s": 3600,
                    "grain_s": 300,
                }
            ],
        },
    ],
}


def zipf(count: int, exponent: float, size: int, random: np.random.Generator) -> list[int]:
    weights = np.arange(1, count + 1) ** -exponent
    return random.choice(count, size, p=weights / weights.sum()).tolist()


def produce(servers: str, count: int) -> None:
    random = np.random.default_rng(1)
    users, items = zipf(100_000, 0.8, count, random), zipf(20_000, 1.0, count, random)
    with KafkaProducer(bootstrap_servers=servers, linger_ms=50) as producer:
        for number, (user, item) in enumerate(zip(users, items, strict=True)):
            event = {
                "user": user,
                "item": item,
                "type": "click" if number % 10 == 0 else "view",
                "ts_ms": 1_700_000_000_000 + number * 5,
                "filler": "",
            }
            event["filler"] = "x" * (BYTES - len(json.dumps(event)))
            producer.send("events", json.dumps(event).encode(), partition=user % PARTITIONS)


def poll_rate(servers: str, count: int) -> float:
    with KafkaConsumer(bootstrap_servers=servers, max_poll_records=5000) as consumer:
        consumer.assign([TopicPartition("events", each) for each in range(PARTITIONS)])
        consumer.seek_to_beginning()
        begin_s, seen = time.perf_counter(), 0
        while seen < count:
            seen += sum(map(len, consumer.poll(500).values()))
        return count / (time.perf_counter() - begin_s)


class Clock:
    """Times from the first assignment to the last commit."""

    def __init__(self, count: int) -> None:
        self._left = count
        self.begin_s = self.end_s = 0.0

    def waiting(self) -> None:
        raise AssertionError("the broker is away")

    def polled(self, lags: Any) -> None:
        if lags and not self.begin_s:
            self.begin_s = time.perf_counter()

    def committed(self, batch: Any, seconds: float) -> None:
        self._left -= sum(batch.num_events.values())
        self.end_s = time.perf_counter()

    def done(self) -> bool:
        return self._left <= 0


def job_rate(servers: str, count: int, folder: Path, name: str) -> float:
    values = JOB | {"name": name, "store": f"lmdb:{folder / name}", "kafka": {"servers": servers}}
    settings = parse_settings(values, FeatureSettings)
    definition = settings.definition()
    store, bus = open_store(settings.store, name), KafkaBus(settings.kafka)
    bind(store, definition.encoded(), settings)
    check_wiring(settings, store, bus)
    clock = Clock(count)
    Runtime(FeaturesJob(definition), settings, store, bus, watch=clock).run(clock.done)
    store.close()
    shutil.rmtree(folder / name)
    return count / (clock.end_s - clock.begin_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="stream-speed-"))
    with running_broker(folder / "kafka") as servers:
        with KafkaAdminClient(bootstrap_servers=servers) as admin:
            admin.create_topics({"events": {"num_partitions": PARTITIONS, "replication_factor": 1}})
        produce(servers, args.events)
        polls, jobs = list[float](), list[float]()
        for number in range(args.rounds):
            polls.append(poll_rate(servers, args.events))
            jobs.append(job_rate(servers, args.events, folder, f"job-{number}"))
            print(f"poll {polls[-1]:,.0f}/s, job {jobs[-1]:,.0f}/s", flush=True)
    poll, job = statistics.median(polls), statistics.median(jobs)
    print(json.dumps({"poll": round(poll), "job": round(job), "share": round(job / poll, 3)}))
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
