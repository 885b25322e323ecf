"""Kill consumers and the broker at random while events flow, and count what is lost or doubled.

    python tests/benchmarks/stream_faults.py --events 1000000 --kills 200 --zombies 20 --broker-kills 10

Three members share four partitions. A zombie is a member that is stopped for longer than its session lasts
and then goes on. At the end each event must have one committed output, and each user its count of clicks.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from kafka.errors import KafkaError

from headwater.feature_store.online.lookup import Lookup
from headwater.feature_store.online.stores import open_store
from headwater.pipelines.streams.broker import Broker
from headwater.pipelines.streams.kafka_python import (
    KafkaAdminClient,
    KafkaConsumer,
    KafkaProducer,
    TopicPartition,
)

MEMBER = Path(__file__).resolve().parents[1] / "pipelines" / "streams" / "member.py"
PARTITIONS = 4
MEMBERS = 3
USERS = 1000
SESSION_S = 2.0
JOB: dict[str, Any] = {
    "name": "faults",
    "source": {
        "topics": ["events"],
        "time": "ts_ms",
        "columns": [
            {"name": "user", "dtype": "int64"},
            {"name": "type", "dtype": "string"},
            {"name": "ts_ms", "dtype": "int64"},
        ],
    },
    "batches": {"commit_interval_ms": 200, "max_events": 5000},
    "tables": [
        {
            "name": "users",
            "key": "user",
            "features": [
                {"kind": "count", "name": "clicks", "where": {"type": "click"}},
                {"kind": "history", "name": "times", "column": "ts_ms", "length": 10},
            ],
        }
    ],
}


def event(number: int) -> dict[str, Any]:
    return {
        "user": number * 7919 % USERS,
        "type": "click" if number % 3 == 0 else "view",
        "ts_ms": 1_700_000_000_000 + number,
    }


class Members:
    """Three members, each started again when it ends."""

    def __init__(self, folder: Path, plan: dict[str, Any]) -> None:
        self._path = folder / "plan.json"
        self._path.write_text(json.dumps(plan))
        self._log = (folder / "members.log").open("ab")
        self.processes = [self._start() for _ in range(MEMBERS)]

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(MEMBER), str(self._path)]
        return subprocess.Popen(command, stdout=self._log, stderr=self._log)

    def kill(self, place: int) -> None:
        self.processes[place].kill()
        self.processes[place].wait()
        self.processes[place] = self._start()

    def stop_for(self, place: int, seconds: float) -> None:
        self.processes[place].send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        self.processes[place].send_signal(signal.SIGCONT)

    def restart_ended(self) -> int:
        """Start again what ended by itself, which none should; returns how many."""
        ended = [place for place, each in enumerate(self.processes) if each.poll() is not None]
        for place in ended:
            self.processes[place] = self._start()
        return len(ended)

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def produce(servers: str, count: int, seconds: float) -> None:
    """Send the events evenly over the time of the kills, through outages of the broker."""
    with KafkaProducer(
        bootstrap_servers=servers, delivery_timeout_ms=300_000, request_timeout_ms=20_000
    ) as producer:
        begin_s = time.monotonic()
        for number in range(count):
            value = json.dumps(event(number)).encode()
            producer.send("events", value, partition=number % PARTITIONS)
            if number % 500 == 0:
                wait_s = begin_s + seconds * number / count - time.monotonic()
                time.sleep(max(0.0, wait_s))
        producer.flush()


def ends(servers: str, topic: str) -> dict[Any, int]:
    with KafkaConsumer(bootstrap_servers=servers) as consumer:
        parts = [TopicPartition(topic, each) for each in consumer.partitions_for_topic(topic) or ()]
        return consumer.end_offsets(parts)


def outputs(servers: str) -> Counter[tuple[int, int]]:
    """Return how often each event has a committed output."""
    with KafkaConsumer(
        bootstrap_servers=servers, isolation_level="read_committed", max_poll_records=5000
    ) as consumer:
        parts = [TopicPartition("out", each) for each in consumer.partitions_for_topic("out") or ()]
        consumer.assign(parts)
        consumer.seek_to_beginning()
        last = consumer.end_offsets(parts)
        found: Counter[tuple[int, int]] = Counter()
        while any(consumer.position(part) < end for part, end in last.items()):
            for messages in consumer.poll(500).values():
                for message in messages:
                    _, partition, offset, _ = json.loads(message.value)
                    found[partition, offset] += 1
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--zombies", type=int, default=20)
    parser.add_argument("--broker-kills", type=int, default=10)
    parser.add_argument("--every-s", type=float, default=4.0, help="mean time between two faults")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="keep the folder of store and broker")
    args = parser.parse_args()
    chance = random.Random(args.seed)
    folder = Path(tempfile.mkdtemp(prefix="stream-faults-"))
    broker = Broker(folder / "kafka")
    broker.start()
    with KafkaAdminClient(bootstrap_servers=broker.servers) as admin:
        admin.create_topics(
            {
                "events": {"num_partitions": PARTITIONS, "replication_factor": 1},
                "out": {"num_partitions": 2, "replication_factor": 1},
            }
        )
    kafka = {
        "servers": broker.servers,
        "session_timeout_ms": round(SESSION_S * 1000),
        "transaction_timeout_ms": 2000,
    }
    settings: dict[str, Any] = JOB | {"store": f"lmdb:{folder / 'store'}", "kafka": kafka}
    faults = ["kill"] * args.kills + ["zombie"] * args.zombies + ["broker"] * args.broker_kills
    chance.shuffle(faults)
    begin_s = time.monotonic()
    members = Members(folder, {"settings": settings, "out": "out"})
    seconds = args.every_s * len(faults)
    producer = threading.Thread(target=produce, args=(broker.servers, args.events, seconds))
    producer.start()
    ended = 0
    for number, fault in enumerate(faults):
        time.sleep(chance.expovariate(1 / args.every_s))
        place = chance.randrange(MEMBERS)
        if fault == "kill":
            members.kill(place)
        elif fault == "zombie":
            members.stop_for(place, SESSION_S * 1.5)
        else:
            broker.kill()
            broker.start()
        ended += members.restart_ended()
        if number % 20 == 19:
            print(f"{number + 1} faults in {time.monotonic() - begin_s:.0f} s", flush=True)
    producer.join()
    members.end()
    last = ends(broker.servers, "events")
    plan = {
        "settings": settings,
        "out": "out",
        "ends": [[*part, end] for part, end in last.items()],
    }
    (folder / "last.json").write_text(json.dumps(plan))
    subprocess.run([sys.executable, str(MEMBER), str(folder / "last.json")], check=True)
    found = outputs(broker.servers)
    expected = [(part.partition, offset) for part, end in last.items() for offset in range(end)]
    lost = sum(each not in found for each in expected)
    doubled = sum(count - 1 for count in found.values())
    clicks: Counter[int] = Counter()
    for number in range(args.events):
        clicks[event(number)["user"]] += number % 3 == 0
    store = open_store(settings["store"], "faults", create=False)
    looked = (
        Lookup(store, source="store").look_up({"users": range(USERS)})["users"].values["clicks"]
    )
    wrong = sum(looked[user] != clicks[user] for user in range(USERS))
    result = {
        "events": args.events,
        "sent": len(expected),
        "kills": args.kills,
        "zombies": args.zombies,
        "broker_kills": args.broker_kills,
        "ended_by_themselves": ended,
        "seconds": round(time.monotonic() - begin_s),
        "lost": lost,
        "doubled": doubled,
        "wrong_counts": wrong,
        "outbox": store.num_outbox(),
    }
    print(json.dumps(result))
    store.close()
    broker.stop()
    if ended:
        print("\n".join((folder / "members.log").read_text().splitlines()[-60:]))
    if not args.keep:
        shutil.rmtree(folder)
    if lost or doubled or wrong or ended:
        sys.exit(1)


if __name__ == "__main__":
    try:
        main()
    except KafkaError as error:
        sys.exit(f"{type(error).__name__}: {error}")
