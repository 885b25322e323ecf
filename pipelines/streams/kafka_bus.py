"""Kafka through kafka-python: the bus of `bus.py`."""

from __future__ import annotations

import logging
import os
import threading
import uuid
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal

from kafka.errors import (
    AuthorizationError,
    GroupIdNotFoundError,
    KafkaConfigurationError,
    KafkaError,
    MessageSizeTooLargeError,
    NonEmptyGroupError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    SaslAuthenticationFailedError,
    TopicAlreadyExistsError,
    UnsupportedVersionError,
)

from headwater.feature_store.config import Config
from headwater.feature_store.errors import HeadwaterError, InputError
from headwater.feature_store.online.store import Partition
from headwater.pipelines.streams.broker import SERVERS_VARIABLE
from headwater.pipelines.streams.bus import At, BusError, Changes, Committed
from headwater.pipelines.streams.effects import Output
from headwater.pipelines.streams.kafka_python import (
    ConsumerRebalanceListener,
    CooperativeStickyAssignor,
    KafkaAdminClient,
    KafkaConsumer,
    KafkaProducer,
    OffsetAndMetadata,
    TopicPartition,
)

PASSWORD_VARIABLE = "KAFKA_SASL_PASSWORD"
_FATAL = (
    AuthorizationError,
    KafkaConfigurationError,
    SaslAuthenticationFailedError,
    UnsupportedVersionError,
)
"""Errors that no later try mends."""


class KafkaSettings(Config):
    """The cluster, and how long it waits for a consumer that is silent."""

    servers: str = "127.0.0.1:9092"
    """Addresses as `host:port,host:port`; the variable KAFKA_BOOTSTRAP_SERVERS overrules them."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """How clients connect."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    """How they say who they are; the password is in the variable KAFKA_SASL_PASSWORD."""
    sasl_username: str | None = None
    """Who they are."""
    ssl_cafile: str | None = None
    """File of the authority that signed the brokers' certificates."""
    ssl_certfile: str | None = None
    """File of this client's certificate."""
    ssl_keyfile: str | None = None
    """File of its private key."""
    session_timeout_ms: int = 45_000
    """A member that is silent for so long loses its partitions."""
    max_poll_interval_ms: int = 300_000
    """A member that takes longer for a batch loses its partitions."""
    transaction_timeout_ms: int = 10_000
    """The transaction of a member that died is aborted after so long; readers wait for that."""

    def options(self) -> dict[str, Any]:
        """Return the options of kafka-python that every client takes."""
        options: dict[str, Any] = {
            "bootstrap_servers": (os.environ.get(SERVERS_VARIABLE) or self.servers).split(","),
            "security_protocol": self.security_protocol,
            "ssl_cafile": self.ssl_cafile,
            "ssl_certfile": self.ssl_certfile,
            "ssl_keyfile": self.ssl_keyfile,
        }
        if self.sasl_mechanism is not None:
            options |= {
                "sasl_mechanism": self.sasl_mechanism,
                "sasl_plain_username": self.sasl_username,
                "sasl_plain_password": os.environ.get(PASSWORD_VARIABLE),
            }
        return options


class KafkaBus:
    """Consumers and producers of one Kafka cluster."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        # While a broker is away its clients write thousands of lines; the runtime writes one.
        logging.getLogger("kafka").setLevel(logging.CRITICAL)

    def consumer(self, group: str, topics: Sequence[str]) -> KafkaMember:
        """Return a new member of a group."""
        with _bus_errors():
            return KafkaMember(self._settings, group, topics)

    def reader(self, topics: Sequence[str]) -> KafkaMember:
        """Return a consumer of all partitions of topics that is in no group."""
        with _bus_errors():
            return KafkaMember(self._settings, None, topics)

    def producer(self, group: str, at: At) -> KafkaTransactions:
        """Return a producer of transactions for a group."""
        with _bus_errors():
            return KafkaTransactions(self._settings, group, at)

    def make_topics(self, names: Sequence[str]) -> None:
        """Make the topics that do not exist yet, with one partition each."""
        with _bus_errors(), KafkaAdminClient(**self._settings.options()) as admin:
            for name in set(names) - set(admin.list_topics()):
                # Another process of the job may be making it too.
                with suppress(TopicAlreadyExistsError):
                    admin.create_topics({name: {"num_partitions": 1, "replication_factor": -1}})

    def forget_group(self, group: str) -> None:
        """Remove the positions of a group; InputError while it has members."""
        with _bus_errors(), KafkaAdminClient(**self._settings.options()) as admin:
            answer = admin.delete_groups([group])[group]
        if answer == NonEmptyGroupError.__name__:
            raise InputError(f"group {group!r}: consumers of the job are running. Stop them first.")
        if answer not in ("OK", GroupIdNotFoundError.__name__):
            raise HeadwaterError(f"group {group!r}: the cluster keeps its positions: {answer}.")


class _Listener(ConsumerRebalanceListener):
    """Notes changes; it runs on the client's own thread, so that it must not wait."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self._lock = threading.Lock()
        self._revoked: set[Partition] = set()
        self._assigned: set[Partition] = set()

    def on_partitions_revoked(self, revoked: Sequence[tuple[str, int]]) -> None:
        with self._lock:
            gone = {Partition(*each) for each in revoked}
            self._revoked |= gone
            self._assigned -= gone

    def on_partitions_lost(self, lost: Sequence[tuple[str, int]]) -> None:
        self.on_partitions_revoked(lost)

    def on_partitions_assigned(self, assigned: Sequence[tuple[str, int]]) -> None:
        for each in assigned:
            # With any position the client does not look for the group's by itself, which could overrule at
            # some later moment the one that recovery gives; nor does it fetch before.
            self._consumer.pause(each)
            self._consumer.seek(each, 0)
        self.note_assigned(assigned)

    def note_assigned(self, assigned: Iterable[tuple[str, int]]) -> None:
        with self._lock:
            self._assigned |= {Partition(*each) for each in assigned}

    def take(self) -> Changes:
        with self._lock:
            changes = Changes(frozenset(self._revoked), frozenset(self._assigned))
            self._revoked, self._assigned = set(), set()
        return changes


class KafkaMember:
    """A member of a consumer group, or of none, that reads what was committed alone."""

    def __init__(self, settings: KafkaSettings, group: str | None, topics: Sequence[str]) -> None:
        self._consumer: Any = KafkaConsumer(
            **settings.options(),
            group_id=group,
            enable_auto_commit=False,
            # Never a silent jump: where no position holds, the runtime decides.
            auto_offset_reset="none",
            isolation_level="read_committed",
            allow_auto_create_topics=False,
            partition_assignment_strategy=[CooperativeStickyAssignor],
            session_timeout_ms=settings.session_timeout_ms,
            heartbeat_interval_ms=settings.session_timeout_ms // 5,
            max_poll_interval_ms=settings.max_poll_interval_ms,
            max_partition_fetch_bytes=4 << 20,
            reconnect_backoff_max_ms=1000,
            metadata_max_age_ms=10_000,
            metrics_enabled=False,
        )
        self._listener = _Listener(self._consumer)
        if group is None:
            self._consumer.assign(
                [TopicPartition(*each) for topic in topics for each in self.partitions(topic)]
            )
        elif topics:
            # Known before the group is joined: a leader that does not know a topic's partitions yet assigns
            # none, and may not notice when it learns of them.
            for topic in topics:
                self.partitions(topic)
            self._consumer.subscribe(list(topics), listener=self._listener)

    def partitions(self, topic: str) -> frozenset[Partition]:
        """Return the partitions of a topic; none where it does not exist."""
        with _bus_errors():
            return frozenset(
                Partition(topic, each) for each in self._consumer.partitions_for_topic(topic) or ()
            )

    def poll(self, timeout_ms: int, max_messages: int) -> Mapping[Partition, Sequence[Any]]:
        """Return new messages by partition; none after the timeout."""
        with _bus_errors():
            try:
                return self._consumer.poll(timeout_ms, max_records=max_messages)
            except NoOffsetForPartitionError as error:
                # Recovery, which comes next, gives them a position.
                self._listener.note_assigned(error.args[0])
                return {}

    def membership(self) -> object:
        """Return what proves that this member is in the group now; asked for before `changes`."""
        return self._consumer.group_metadata()

    def changes(self) -> Changes:
        """Return how the partitions changed since the last call."""
        return self._listener.take()

    def committed(self, partition: Partition) -> Committed | None:
        """Return the group's position, once no open transaction can change it; None where it has none."""
        with _bus_errors():
            found = self._consumer.committed(TopicPartition(*partition), metadata=True)
        return None if found is None else Committed(found.offset, found.metadata or "")

    def bounds(self, partitions: Sequence[Partition]) -> dict[Partition, tuple[int, int]]:
        """Return the first offset of each partition, and the one after its last."""
        wanted = [TopicPartition(*each) for each in partitions]
        with _bus_errors():
            first = self._consumer.beginning_offsets(wanted)
            end = self._consumer.end_offsets(wanted)
        return {Partition(*each): (first[each], end[each]) for each in wanted}

    def offsets_at(self, partitions: Sequence[Partition], ts_ms: int) -> dict[Partition, int]:
        """Return for each partition the first offset that arrived at `ts_ms` or later, or its end."""
        wanted = [TopicPartition(*each) for each in partitions]
        with _bus_errors():
            found = self._consumer.offsets_for_times(dict.fromkeys(wanted, ts_ms))
            end = self._consumer.end_offsets(wanted)
        return {
            Partition(*each): end[each] if found.get(each) is None else found[each].offset
            for each in wanted
        }

    def position(self, partition: Partition) -> int | None:
        """Return the offset that is read next, past what is no message; None for one of another member."""
        # Not by `position()`, which may wait for the network and starts work of its own there.
        state = self._consumer._subscription.assignment.get(TopicPartition(*partition))
        return None if state is None or state.position is None else state.position.offset

    def lag(self, partition: Partition) -> int:
        """Return how many messages wait, as far as was seen."""
        position, end = self.position(partition), None
        with suppress(KafkaError, KeyError):
            end = self._consumer.highwater(TopicPartition(*partition))
        return 0 if position is None or end is None else max(0, end - position)

    def seek(self, partition: Partition, offset: int) -> None:
        """Go on from `offset`, and drop what was fetched before."""
        place = TopicPartition(*partition)
        # A partition that was taken away meanwhile is told by `changes`.
        with _bus_errors(), suppress(ValueError, KeyError):
            self._consumer.seek(place, offset)
            self._consumer.resume(place)

    def close(self) -> None:
        """Leave the group."""
        with suppress(KafkaError):
            self._consumer.close(autocommit=False, timeout_ms=5000)


class KafkaTransactions:
    """Sends messages and the group's positions in transactions."""

    def __init__(self, settings: KafkaSettings, group: str, at: At) -> None:
        self._at = at
        self._producer: Any = KafkaProducer(
            **settings.options(),
            # What fences a zombie is the group's generation, so that members need no names of their own.
            transactional_id=f"{group}-{uuid.uuid4().hex}",
            transaction_timeout_ms=settings.transaction_timeout_ms,
            # With the default of 100 ms a transaction takes as long.
            retry_backoff_ms=5,
            max_block_ms=10_000,
            request_timeout_ms=10_000,
            reconnect_backoff_max_ms=1000,
            linger_ms=0,
            allow_auto_create_topics=False,
            metrics_enabled=False,
        )
        self._ready = False

    def publish(
        self,
        outputs: Sequence[Output],
        positions: Mapping[Partition, Committed],
        membership: object,
    ) -> None:
        """Send all and move the group's positions, or neither; BusError also where the member is out."""
        generation: int = getattr(membership, "generation_id", -1)
        if generation < 0:
            # Kafka takes positions without a generation from anybody: nothing would fence this member.
            raise BusError("this member is out of the group")
        producer, at = self._producer, self._at
        with _bus_errors():
            if not self._ready:
                producer.init_transactions()
                self._ready = True
            at("before transaction")
            producer.begin_transaction()
            sent = []
            for output in outputs:
                future = producer.send(
                    output.topic,
                    key=output.key,
                    value=output.value,
                    headers=list(output.headers),
                )
                sent.append((output, future))
            at("after send")
            offsets = {
                TopicPartition(*partition): OffsetAndMetadata(offset, note, -1)
                for partition, (offset, note) in positions.items()
            }
            producer.send_offsets_to_transaction(offsets, membership)
            at("after offsets")
            producer.flush()
            for output, future in sent:
                _require_sent(output, future)
            at("before Kafka commit")
            producer.commit_transaction()
            at("after Kafka commit")

    def close(self) -> None:
        """Close at once; an open transaction is aborted."""
        with suppress(KafkaError):
            if self._ready:
                with suppress(KafkaError):
                    self._producer.abort_transaction()
            self._producer.close(timeout=1)


def _require_sent(output: Output, future: Any) -> None:
    try:
        future.get(timeout=10)
    except MessageSizeTooLargeError:
        topic, partition, offset, row = output.place
        raise HeadwaterError(
            f"topic {topic!r}, partition {partition}, offset {offset}, row {row}: the output of "
            f"{len(output.value or b''):,} bytes is larger than topic {output.topic!r} takes. Raise its "
            "max.message.bytes, then start again: nothing is lost."
        ) from None


@contextmanager
def _bus_errors() -> Generator[None, None, None]:
    """Turn the client's errors into those of the bus, and what no later try mends into the user's."""
    try:
        yield
    except OffsetOutOfRangeError as error:
        raise HeadwaterError(
            f"positions outside the log: {error}. Messages were removed before they were read, or the topic "
            "was made again. `headwater stream reset STREAM.toml` starts anew."
        ) from error
    except _FATAL as error:
        raise InputError(f"the Kafka cluster refuses: {type(error).__name__}: {error}.") from error
    except KafkaError as error:
        raise BusError(f"{type(error).__name__}: {error}") from error
