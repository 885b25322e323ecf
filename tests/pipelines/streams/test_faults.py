"""A kill at each named step in turn: nothing is lost, and nothing counted or sent twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from headwater.feature_store.online.lookup import Lookup
from headwater.feature_store.online.stores import open_store

MEMBER = Path(__file__).parent / "member.py"
STEPS = (
    ("before recovery", 1),
    ("after recovery", 1),
    ("before store commit", 2),
    ("after store commit", 2),
    ("before transaction", 2),
    ("after send", 2),
    ("after offsets", 2),
    ("before Kafka commit", 2),
    ("after Kafka commit", 2),
)
EVENTS_A_STEP = 40


class Harness:
    """A job whose members are killed, and the check of what they leave."""

    def __init__(self, streams: Any, folder: Path) -> None:
        self._streams = streams
        self._folder = folder
        self._topic, self._out = streams.topic(2), streams.topic()
        self._settings = streams.values(
            self._topic,
            kafka={
                "servers": streams.servers,
                "session_timeout_ms": 1000,
                "transaction_timeout_ms": 1000,
            },
            batches={"commit_interval_ms": 1, "max_events": 10},
        )
        self._files = folder / "files"
        self._sent = 0

    def member(self, **plan: Any) -> int:
        """Send more events, run a member on them, and return its exit status."""
        numbers = range(self._sent, self._sent + EVENTS_A_STEP)
        for partition in (0, 1):
            mine = [self._streams.event(number) for number in numbers if number % 2 == partition]
            self._streams.send(self._topic, mine, partition)
        self._sent += EVENTS_A_STEP
        ends = [[*part, end] for part, end in self._streams.ends([self._topic]).items()]
        path = self._folder / "plan.json"
        plan |= {"settings": self._settings, "out": self._out, "ends": ends}
        plan["folder"] = str(self._files)
        path.write_text(json.dumps(plan))
        return subprocess.run([sys.executable, str(MEMBER), str(path)], check=False).returncode

    def wrong(self) -> list[str]:
        """Return what differs from each event once: outputs and rows lost and doubled, and counts."""
        sent = Counter(message.value for message in self._streams.received(self._out))
        ends = self._streams.ends([self._topic])
        expected = Counter(
            json.dumps([topic, number, offset, 0]).encode()
            for (topic, number), end in ends.items()
            for offset in range(end)
        )
        found = [f"lost {each!r}" for each in expected - sent]
        found += [f"doubled {each!r}" for each in sent - expected]
        rows = Counter(
            json.dumps([row["_topic"], row["_partition"], row["_offset"], row["_row"]]).encode()
            for path in self._files.glob("hour=*/*.parquet")
            for row in pq.ParquetFile(path).read().to_pylist()
        )
        found += [f"row lost {each!r}" for each in expected - rows]
        found += [f"row doubled {each!r}" for each in rows - expected]
        store = open_store(self._settings["store"], self._settings["name"], create=False)
        users = [f"u{user}" for user in range(7)]
        clicks = Lookup(store, source="test").look_up({"users": users})["users"].values["clicks"]
        store.close()
        by_hand = [
            sum(n % 7 == user and n % 3 == 0 for n in range(self._sent)) for user in range(7)
        ]
        if clicks != by_hand:
            found.append(f"clicks {clicks}, expected {by_hand}")
        return found


@pytest.fixture
def harness(streams: Any, tmp_path: Path) -> Harness:
    return Harness(streams, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_kill_at_each_step_loses_nothing_and_doubles_nothing(harness: Harness) -> None:
    for step, times in STEPS:
        assert harness.member(step=step, times=times) == -signal.SIGKILL, step
    assert harness.member() == 0
    assert harness.wrong() == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_check_finds_what_is_lost_without_republishing(harness: Harness) -> None:
    assert harness.member() == 0
    assert harness.member(step="after store commit") == -signal.SIGKILL
    assert harness.member(republish=False) == 0
    assert {each.split()[0] for each in harness.wrong()} == {"lost", "row"}
