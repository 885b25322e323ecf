"""The runtime of a stream job: events in, effects applied, each once, whatever is killed when.

The store alone says what was consumed; the group's positions in Kafka say only what was published. A batch
goes: poll, decode, handle, one store transaction (rows, positions, outbox), one Kafka transaction (outputs,
the group's positions). Whatever goes wrong, the member forgets what is in hand and recovers its partitions
from store and group, which it does at every assignment too.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import structlog

from headwater.feature_store.errors import HeadwaterError
from headwater.feature_store.online.store import Moved, OnlineStore, Partition, Stale, Unavailable
from headwater.pipelines.streams.arrow import RecordBatch
from headwater.pipelines.streams.arrow import compute as pc
from headwater.pipelines.streams.bus import At, Bus, BusError, Committed, Producer
from headwater.pipelines.streams.clock import Clock, Timely, place_of
from headwater.pipelines.streams.effects import (
    DeadLetter,
    Effects,
    File,
    Output,
    Rename,
    StateView,
    StreamJob,
)
from headwater.pipelines.streams.files import stage
from headwater.pipelines.streams.messages import Messages, Reader
from headwater.pipelines.streams.outbox import (
    AnyOutput,
    carry_out,
    entries_of,
    letter_output,
    unsent,
)
from headwater.pipelines.streams.recovery import recover
from headwater.pipelines.streams.settings import StreamSettings

log = structlog.get_logger(__name__)

POLL_MS = 200
REJOIN_S = 15.0
"""A member without partitions for so long joins the group anew, then after twice as long, and so on."""
RETRY_S = 0.5
"""Pause after a step with the bus that did not succeed."""


class Watch(Protocol):
    """Is told what the runtime does, for metrics and health."""

    def committed(self, batch: Batch, seconds: float) -> None:
        """Take note of a batch that is in the store."""
        ...

    def polled(self, lags: Mapping[Partition, int]) -> None:
        """Take note that messages were asked for, and how many wait in each partition of this member."""
        ...

    def waiting(self) -> None:
        """Take note that cluster or store do not answer."""
        ...


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch and what it does."""

    positions: Mapping[Partition, tuple[int, int]]
    num_events: Mapping[str, int]
    """By topic, the events that it has, with those that are set aside."""
    timely: Timely
    rejects: Sequence[DeadLetter]
    outputs: Sequence[AnyOutput]


class Runtime:
    """One member of a job's group; `folder` is for its files. `at` is told each step by its name."""

    def __init__(
        self,
        job: StreamJob,
        settings: StreamSettings,
        store: OnlineStore,
        bus: Bus,
        *,
        folder: Path | None = None,
        watch: Watch | None = None,
        at: At = lambda _: None,
    ) -> None:
        self._job = job
        self._settings = settings
        self._store = store
        self._bus = bus
        self._folder = folder
        self._watch = watch
        self._at = at
        self._reader = Reader(settings.source)
        self._clock = Clock(settings.source, store)
        self._producer: Producer | None = None
        self._owned: dict[Partition, int] = {}
        """By partition of this member, the position of its next batch."""
        self._lost: set[Partition] = set()
        """Partitions that are to be recovered before they are read."""
        self._recovered: set[Partition] = set()
        self._published: dict[Partition, int] = {}
        self._pending: dict[Partition, list[Any]] = {}
        self._pending_since_s = 0.0
        self._num_pending = 0
        self._is_out = False
        self._owned_s = 0.0
        self._patience_s = REJOIN_S

    def run(self, stopping: Callable[[], bool]) -> None:
        """Read and handle until `stopping`, then finish what is in hand and leave the group."""
        self._join()
        try:
            while not stopping():
                self._attempt(self._turn)
            self._attempt(self._drain)
        finally:
            if self._producer is not None:
                self._producer.close()
            self._consumer.close()

    def _join(self) -> None:
        self._consumer = self._bus.consumer(self._settings.name, self._settings.topics)
        self._owned_s = time.monotonic()

    def _rejoin_if_idle(self) -> None:
        """Join the group anew after a while without partitions.

        There may be more members than partitions. But a client may also have missed that its group has
        partitions for it, when the cluster was slow to tell of a topic.
        """
        now_s = time.monotonic()
        if self._owned:
            self._owned_s, self._patience_s = now_s, REJOIN_S
        elif now_s - self._owned_s > self._patience_s:
            log.info("no partitions: joining the group anew", seconds=round(self._patience_s))
            self._patience_s *= 2
            before = self._consumer
            self._join()
            self._lost.clear()
            before.close()

    def _attempt(self, step: Callable[[], None]) -> None:
        try:
            step()
        except (BusError, Unavailable) as error:
            if not self._is_out:
                log.warning("waiting for the cluster or the store", error=str(error))
                self._is_out = True
            if self._watch is not None:
                self._watch.waiting()
            self._forget_all()
            time.sleep(RETRY_S)
        else:
            if self._is_out:
                log.info("cluster and store answer again")
                self._is_out = False

    def _forget_all(self) -> None:
        """Forget what is in hand, so that all is recovered from store and group."""
        for partition in list(self._owned):
            self._lose(partition)
        if self._producer is not None:
            self._producer.close()
            self._producer = None

    def _lose(self, partition: Partition) -> None:
        self._num_pending -= len(self._pending.pop(partition, ()))
        self._owned.pop(partition, None)
        self._clock.forget(partition)
        self._lost.add(partition)

    def _turn(self) -> None:
        """Poll once, and apply what has gathered if it is time."""
        self._recovered.clear()
        room = self._settings.batches.max_events - self._num_pending
        messages = self._consumer.poll(POLL_MS if not self._num_pending else 20, room)
        membership = self._assignment()
        self._rejoin_if_idle()
        for partition, found in messages.items():
            partition = Partition(*partition)
            # What was polled of a partition before it was recovered may be of another place.
            if partition in self._owned and partition not in self._recovered:
                self._take(partition, found)
        if self._watch is not None:
            self._watch.polled({each: self._consumer.lag(each) for each in self._owned})
        batches = self._settings.batches
        waited_s = time.monotonic() - self._pending_since_s
        if self._num_pending and (
            self._num_pending >= batches.max_events or waited_s * 1000 >= batches.commit_interval_ms
        ):
            self._apply(membership)
        elif not self._num_pending and not self._recovered:
            self._pass_marks(membership)

    def _take(self, partition: Partition, messages: Sequence[Any]) -> None:
        """Put messages to those that are pending; where they were read before, the position is set again."""
        pending = self._pending.get(partition)
        expected = pending[-1].offset + 1 if pending else self._owned[partition]
        if messages[0].offset < expected:
            log.warning("read from another position than was asked", at=messages[0].offset)
            self._lose(partition)
            return
        published = self._published[partition]
        first = pending[0].offset if pending else messages[0].offset
        if first < published <= messages[-1].offset:
            # The store came back older. A file of events that were published before holds no others, since
            # it is not written again: they come with the next batch.
            messages = [message for message in messages if message.offset < published]
            self._consumer.seek(partition, published)
            if not messages:
                return
        if not self._num_pending:
            self._pending_since_s = time.monotonic()
        self._pending.setdefault(partition, []).extend(messages)
        self._num_pending += len(messages)

    def _pass_marks(self, membership: object) -> None:
        """Move past what is no message, as the marks of transactions, so that no lag seems to be left."""
        passed: dict[Partition, tuple[int, int]] = {}
        for partition, at in self._owned.items():
            position = self._consumer.position(partition)
            if position is not None and position > at:
                passed[partition] = (at, position)
        if passed:
            self._advance({}, passed, membership)

    def _assignment(self) -> object:
        """Follow the group's changes; return the membership that they belong to.

        The membership is asked for first: if the group changes after that, it is refused on publishing.
        """
        membership = self._consumer.membership()
        changes = self._consumer.changes()
        for partition in changes.revoked:
            self._lose(partition)
            self._lost.discard(partition)
            self._published.pop(partition, None)
        for partition in changes.assigned:
            self._lose(partition)
        if self._lost:
            self._recover(membership)
        return membership

    def _recover(self, membership: object) -> None:
        """Bring partitions to the store's position, and send what their last owner did not."""
        for partition in sorted(self._lost):
            self._at("before recovery")
            place = recover(
                partition,
                self._store,
                self._consumer,
                self._transactions(),
                membership,
                self._folder,
            )
            self._at("after recovery")
            self._published[partition] = place.published
            self._owned[partition] = place.stored
            self._clock.load(partition)
            self._lost.discard(partition)
            self._recovered.add(partition)

    def _transactions(self) -> Producer:
        if self._producer is None:
            self._producer = self._bus.producer(self._settings.name, self._at)
        return self._producer

    def _apply(self, membership: object) -> None:
        """Handle and commit what is pending, then publish it."""
        pending, self._pending, self._num_pending = self._pending, {}, 0
        positions = {
            partition: (self._owned[partition], messages[-1].offset + 1)
            for partition, messages in pending.items()
        }
        self._advance(pending, positions, membership)

    def _advance(
        self,
        pending: Messages,
        positions: Mapping[Partition, tuple[int, int]],
        membership: object,
    ) -> None:
        started_s = time.monotonic()
        try:
            batch = self._commit(pending, positions)
        except Moved as moved:
            log.warning("positions moved by another member", partitions=str(moved))
            for partition in positions:
                self._lose(partition)
            self._recover(membership)
            return
        self._clock.advance(batch.timely.newest_ms)
        for partition, (_, end) in positions.items():
            self._owned[partition] = end
        if self._watch is not None:
            self._watch.committed(batch, time.monotonic() - started_s)
        ends = {
            partition: Committed(max(end, self._published[partition]), "")
            for partition, (_, end) in positions.items()
        }
        carry_out(batch.outputs, ends, self._transactions(), membership, self._folder)
        self._published |= {partition: end.offset for partition, end in ends.items()}

    def _commit(self, pending: Messages, positions: Mapping[Partition, tuple[int, int]]) -> Batch:
        """Handle a batch and put it into the store; from fresh rows as long as others change them."""
        read, unreadable = self._reader.read(pending)
        timely = self._clock.sift(read)
        counts = pc.value_counts(read.column("_topic")).to_pylist()
        num_events = Counter({each["values"]: each["counts"] for each in counts})
        num_events.update(letter.place.topic for letter in unreadable)
        while True:
            state = StateView(self._store)
            handled, outputs = list[DeadLetter](), list[AnyOutput]()
            for effects in self._handle(timely.events, state):
                outputs += effects.outputs
                outputs += self._staged(effects.files, positions)
                handled += effects.rejects
            rejects = [*unreadable, *timely.rejects, *handled]
            outputs = unsent([*outputs, *self._letters(rejects, pending)], self._published)
            self._at("before store commit")
            try:
                self._store.commit(
                    positions,
                    [*state.writes(), *timely.writes],
                    entries_of(outputs),
                    reads=state.reads(),
                    published={part: self._published[part] for part in positions},
                )
            except Stale:
                continue
            self._at("after store commit")
            return Batch(positions, num_events, timely, rejects, outputs)

    def _handle(self, events: RecordBatch, state: StateView) -> Iterator[Effects]:
        """Yield the effects of events, in order; an exception is narrowed down to its event."""
        if not events.num_rows:
            return
        try:
            effects = self._job.handle(events, state)
        except Exception as error:
            if events.num_rows > 1:
                half = events.num_rows // 2
                yield from self._handle(events.slice(0, half), state)
                yield from self._handle(events.slice(half), state)
                return
            yield self._refused(events, error)
            return
        state.write(effects.writes)
        yield effects

    def _refused(self, event: RecordBatch, error: Exception) -> Effects:
        place = place_of(event, 0)
        detail = f"{type(error).__name__}: {error}"
        if self._settings.on_error == "dead-letter":
            return Effects(rejects=[DeadLetter(place, "handler", "", detail)])
        topic, partition, offset, row = place
        raise HeadwaterError(
            f"topic {topic!r}, partition {partition}, offset {offset}, row {row}: the job refuses the event: "
            f'{detail}. Mend the job, or pass such events over by on_error = "dead-letter".'
        ) from error

    def _staged(
        self, files: Sequence[File], positions: Mapping[Partition, tuple[int, int]]
    ) -> Iterator[Rename]:
        for file in files:
            assert self._folder is not None, "a job with files has a folder for them"
            start, _ = positions[Partition(file.place.topic, file.place.partition)]
            yield stage(self._folder, file, start)

    def _letters(self, rejects: Sequence[DeadLetter], pending: Messages) -> Iterator[Output]:
        if not rejects:
            return
        messages = {
            (*partition, message.offset): message
            for partition, found in pending.items()
            for message in found
        }
        limit = self._settings.source.max_message_bytes
        for letter in rejects:
            yield letter_output(
                letter, self._settings.dead_letter_topic, messages[letter.place[:3]], limit
            )

    def _drain(self) -> None:
        """Finish what is in hand, and remove from the outbox what was published."""
        membership = self._assignment()
        if self._num_pending:
            self._apply(membership)
        if self._owned and self._store.num_outbox():
            # What another member has moved meanwhile is its to tidy up.
            with suppress(Moved):
                self._store.commit(
                    {partition: (at, at) for partition, at in self._owned.items()},
                    [],
                    [],
                    published={partition: self._published[partition] for partition in self._owned},
                )
