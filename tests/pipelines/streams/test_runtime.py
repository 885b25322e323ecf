"""The runtime on a real broker: every event once, and what cannot be used set aside with its reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from headwater.feature_store.errors import HeadwaterError, InputError, JobError
from headwater.feature_store.online.lookup import Lookup
from headwater.feature_store.online.store import OnlineStore, Partition
from headwater.feature_store.online.stores import open_store
from headwater.pipelines.streams.arrow import RecordBatch
from headwater.pipelines.streams.clock import place_of
from headwater.pipelines.streams.dead_letters import replay
from headwater.pipelines.streams.effects import Effects, Output, StateView
from headwater.pipelines.streams.features import FeaturesJob
from headwater.pipelines.streams.kafka_bus import KafkaBus
from headwater.pipelines.streams.runtime import Runtime
from headwater.pipelines.streams.upkeep import reset, status


@pytest.fixture
def topic(streams: Any) -> str:
    return streams.topic()


@pytest.fixture
def store(streams: Any, topic: str) -> Iterator[OnlineStore]:
    opened = open_store(f"lmdb:{streams.store}", f"job-{topic}")
    yield opened
    opened.close()


class Echo:
    """Features, and for each event an output that names it."""

    def __init__(self, inner: FeaturesJob, topic: str) -> None:
        self._inner = inner
        self._topic = topic

    def handle(self, events: RecordBatch, state: StateView) -> Effects:
        places = [place_of(events, row) for row in range(events.num_rows)]
        outputs = [
            Output(place, self._topic, json.dumps(place).encode(), b"%d" % place.offset)
            for place in places
        ]
        return Effects(self._inner.handle(events, state).writes, outputs)


class Picky:
    """Features, but an exception for every event of one item."""

    def __init__(self, inner: FeaturesJob, item: int) -> None:
        self._inner = inner
        self._item = item

    def handle(self, events: RecordBatch, state: StateView) -> Effects:
        if self._item in events.column("item").to_pylist():
            raise ValueError(f"item {self._item} is not sold")
        return self._inner.handle(events, state)


def clicks(store: OnlineStore) -> list[Any]:
    found = Lookup(store, source="test").look_up({"users": [f"u{number}" for number in range(7)]})
    return found["users"].values["clicks"]


def letters(streams: Any, settings: Any) -> list[dict[str, str]]:
    return [
        {name.removeprefix("headwater."): value.decode() for name, value in message.headers}
        for message in streams.received(settings.dead_letter_topic)
    ]


def test_features_follow_the_events_and_go_on_after_a_stop(
    streams: Any, topic: str, store: OnlineStore
) -> None:
    settings = streams.settings(topic)
    streams.send(topic, map(streams.event, range(50)))
    streams.catch_up(settings, store)
    streams.send(topic, map(streams.event, range(50, 100)))
    streams.catch_up(settings, store)
    by_hand = [sum(n % 7 == user and n % 3 == 0 for n in range(100)) for user in range(7)]
    assert clicks(store) == by_hand
    (row,) = [
        each for each in status(settings, store, KafkaBus(settings.kafka)) if each.topic == topic
    ]
    assert (row.position, row.published, row.end, row.lag) == (100, 100, 100, 0)
    assert row.newest_ts_ms == 1_700_000_099_000


def test_a_member_without_partitions_joins_anew_until_it_has_some(
    streams: Any, topic: str, store: OnlineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headwater.pipelines.streams.runtime.REJOIN_S", 0.05)
    streams.send(topic, map(streams.event, range(20)))
    streams.catch_up(streams.settings(topic), store)
    assert sum(clicks(store)) == 7


def test_outputs_are_sent_once_and_leave_the_outbox(
    streams: Any, topic: str, store: OnlineStore
) -> None:
    settings, out = streams.settings(topic), streams.topic()
    echo = Echo(FeaturesJob(settings.definition()), out)
    streams.send(topic, map(streams.event, range(30)))
    streams.catch_up(settings, store, job=echo)
    streams.send(topic, map(streams.event, range(30, 40)))
    streams.catch_up(settings, store, job=echo)
    places = [json.loads(message.value) for message in streams.received(out)]
    assert sorted(places) == [[topic, 0, offset, 0] for offset in range(40)]
    assert store.num_outbox() == 0


def test_a_store_that_came_back_older_reads_again_and_sends_nothing_twice(
    streams: Any, topic: str, store: OnlineStore
) -> None:
    settings, out = streams.settings(topic), streams.topic()
    echo = Echo(FeaturesJob(settings.definition()), out)
    streams.send(topic, map(streams.event, range(10)))
    streams.catch_up(settings, store, job=echo)
    older = streams.store.with_name("older")
    shutil.copytree(streams.store, older)
    streams.send(topic, map(streams.event, range(10, 20)))
    streams.catch_up(settings, store, job=echo)
    streams.send(topic, map(streams.event, range(20, 30)))
    restored = open_store(f"lmdb:{older}", settings.name)
    streams.catch_up(settings, restored, job=echo)
    places = [json.loads(message.value) for message in streams.received(out)]
    assert sorted(places) == [[topic, 0, offset, 0] for offset in range(30)]
    assert sum(clicks(restored)) == 10
    restored.close()


def test_what_is_not_readable_is_set_aside_with_field_reason_and_place(
    streams: Any, topic: str, store: OnlineStore
) -> None:
    settings = streams.settings(topic, source={"max_message_bytes": 1000})
    bad = [
        b"no json",
        streams.event(1, item="seven"),
        json.dumps({"user": "u1", "type": "click", "ts_ms": 1}).encode(),
        streams.event(2, v=2, item=None),
        streams.event(3, comment="x" * 2000),
        streams.event(4, ts_ms=-5),
        streams.event(4, ts_ms=99_999_999_999_999),
    ]
    streams.send(topic, [streams.event(0), *bad, streams.event(0)])
    streams.catch_up(settings, store)
    assert [(letter["reason"], letter["field"]) for letter in letters(streams, settings)] == [
        ("malformed", ""),
        ("malformed", "item"),
        ("malformed", "item"),
        ("version", "v"),
        ("oversized", ""),
        ("malformed", "ts_ms"),
        ("future", "ts_ms"),
    ]
    found = letters(streams, settings)
    assert [int(letter["offset"]) for letter in found] == list(range(1, 8))
    assert {letter["topic"] for letter in found} == {topic}
    assert "expected version" not in found[1]["detail"]
    assert "version 2, expected 1" in found[3]["detail"]
    kept = [message.value for message in streams.received(settings.dead_letter_topic)]
    assert kept == [b"" if len(value) > 1000 else value for value in bad]
    assert clicks(store)[0] == 2


def test_later_events_than_allowed_are_set_aside_and_accepted_again_on_request(
    streams: Any, topic: str, store: OnlineStore
) -> None:
    settings = streams.settings(topic, source={"allowed_lateness_s": 50})
    streams.send(topic, [streams.event(number) for number in (0, 60, 30, 3, 9)])
    streams.catch_up(settings, store)
    assert [(each["reason"], each["offset"]) for each in letters(streams, settings)] == [
        ("late", "3"),
        ("late", "4"),
    ]
    bus = KafkaBus(settings.kafka)
    assert replay(settings, bus) == {"late": 2}
    assert replay(settings, bus) == {}
    streams.catch_up(settings, store)
    assert sum(clicks(store)) == 5
    assert len(streams.received(f"{topic}.retry.job-{topic}")) == 2


def test_an_event_that_was_sent_twice_counts_once(
    streams: Any, topic: str, store: OnlineStore
) -> None:
    settings = streams.settings(topic, source={"event_id": "id"})
    streams.send(topic, [streams.event(0, id="a"), streams.event(0, id="b")])
    streams.send(topic, [streams.event(0, id="a"), streams.event(0), streams.event(0)])
    streams.catch_up(settings, store)
    streams.send(topic, [streams.event(0, id="b"), streams.event(0, id="c")])
    streams.catch_up(settings, store)
    assert clicks(store)[0] == 5


def test_an_exception_is_narrowed_down_to_its_event(
    streams: Any, topic: str, store: OnlineStore
) -> None:
    streams.send(topic, map(streams.event, range(20)))
    settings = streams.settings(topic)
    job = Picky(FeaturesJob(settings.definition()), item=3)
    with pytest.raises(
        HeadwaterError, match=r"partition 0, offset 3, row 0: .* item 3 is not sold"
    ):
        streams.catch_up(settings, store, job=job)
    settings = streams.settings(topic, on_error="dead-letter")
    streams.catch_up(settings, store, job=job)
    assert [each["offset"] for each in letters(streams, settings)] == ["3", "8", "13", "18"]
    by_hand = [
        sum(n % 7 == user and n % 3 == 0 and n % 5 != 3 for n in range(20)) for user in range(7)
    ]
    assert clicks(store) == by_hand
    assert replay(settings, KafkaBus(settings.kafka)) == {"handler": 4}
    streams.catch_up(settings, store)
    assert sum(clicks(store)) == 7


def test_arrow_messages_are_read_row_by_row(streams: Any, topic: str, store: OnlineStore) -> None:
    settings = streams.settings(topic, source={"format": "arrow"})
    good = [json.loads(streams.event(number)) for number in range(4)]
    bad = [good[0] | {"user": None}, good[3]]
    extra = [each | {"new": 1.5} for each in good]
    streams.send(
        topic, [arrow(good), arrow(bad), b"no arrow", arrow(extra), arrow(good, version="2")]
    )
    streams.catch_up(settings, store)
    found = [
        {name: each[name] for name in ("offset", "row", "field", "reason")}
        for each in letters(streams, settings)
    ]
    assert found == [
        {"offset": "1", "row": "0", "field": "user", "reason": "malformed"},
        {"offset": "2", "row": "0", "field": "", "reason": "malformed"},
        {"offset": "4", "row": "0", "field": "", "reason": "version"},
    ]
    assert sum(clicks(store)) == 5


def arrow(rows: list[dict[str, Any]], version: str = "1") -> bytes:
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"headwater.version": version})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


class TestStarting:
    def test_a_topic_that_is_not_there_is_refused_by_name(
        self, streams: Any, store: OnlineStore
    ) -> None:
        with pytest.raises(InputError, match="topic 'nowhere': the cluster has none"):
            streams.start(streams.settings("nowhere"), store)

    def test_a_changed_definition_is_refused(
        self, streams: Any, topic: str, store: OnlineStore
    ) -> None:
        streams.start(streams.settings(topic), store)
        changed = streams.settings(topic, source={"allowed_lateness_s": 1})
        with pytest.raises(JobError, match="follows another definition"):
            streams.start(changed, store)

    def test_another_offset_is_refused_until_a_reset(
        self, streams: Any, topic: str, store: OnlineStore
    ) -> None:
        settings = streams.settings(topic)
        streams.send(topic, map(streams.event, range(10)))
        streams.catch_up(settings, store)
        latest = streams.settings(topic, source={"offset": "latest"})
        with pytest.raises(JobError, match="from 'earliest'"):
            streams.start(latest, store)
        reset(settings, store, KafkaBus(settings.kafka))
        assert (store.num_rows(), store.positions()) == (0, {})
        streams.start(latest, store)
        assert store.positions()[Partition(topic, 0)] == 10

    def test_a_store_that_does_not_know_what_the_group_has_read_is_refused(
        self, streams: Any, topic: str, store: OnlineStore
    ) -> None:
        settings = streams.settings(topic)
        streams.send(topic, map(streams.event, range(10)))
        streams.catch_up(settings, store)
        store.clear()
        with pytest.raises(InputError, match="the group has read up to 10, and the store knows"):
            streams.start(settings, store)

    def test_positions_outside_the_log_stop_with_both_numbers(
        self, streams: Any, topic: str, store: OnlineStore
    ) -> None:
        settings = streams.settings(topic)
        streams.send(topic, map(streams.event, range(10)))
        streams.catch_up(settings, store)
        streams.admin.delete_topics([topic])
        streams.admin.create_topics({topic: {"num_partitions": 1, "replication_factor": 1}})
        runtime = Runtime(
            FeaturesJob(settings.definition()), settings, store, streams.start(settings, store)
        )
        with pytest.raises(HeadwaterError, match="stands at 10, and the log reaches from 0 to 0"):
            runtime.run(lambda: False)
