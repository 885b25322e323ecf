"""One member of a job, in a process of its own: `member.py PLAN`, a JSON file.

The job is the features of the plan, an output for each event, and files of the events below `folder`. The
process is killed when the named step has come for the `times`-th time; without a step it runs until it has
caught up with `ends`, or for ever where the plan has none. With `republish` false it forgets what its
predecessor did not send, so that a check of the outputs can be seen to fail.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from headwater.feature_store.online.store import Partition
from headwater.feature_store.online.stores import open_store
from headwater.pipelines.streams import recovery
from headwater.pipelines.streams.arrow import RecordBatch
from headwater.pipelines.streams.bus import BusError, Committed
from headwater.pipelines.streams.declared import FeatureSettings
from headwater.pipelines.streams.effects import Effects, Output, Place, StateView
from headwater.pipelines.streams.features import FeaturesJob
from headwater.pipelines.streams.kafka_bus import KafkaBus
from headwater.pipelines.streams.log import LogJob
from headwater.pipelines.streams.recovery import check_wiring
from headwater.pipelines.streams.runtime import Runtime
from headwater.pipelines.streams.settings import parse_settings
from headwater.pipelines.streams.upkeep import bind


class Echo:
    """Features, for each event an output that names it, and files of the events."""

    def __init__(self, inner: FeaturesJob, topic: str, *, has_files: bool) -> None:
        self._has_files = has_files
        self._inner = inner
        self._topic = topic

    def handle(self, events: RecordBatch, state: StateView) -> Effects:
        names = ("_topic", "_partition", "_offset", "_row")
        places = zip(*(events.column(name).to_pylist() for name in names), strict=True)
        outputs = [
            Output(Place(*place), self._topic, json.dumps(place).encode()) for place in places
        ]
        files = LogJob().handle(events, state).files if self._has_files else ()
        return Effects(self._inner.handle(events, state).writes, outputs, files)


def main(plan: Mapping[str, Any]) -> None:
    settings = parse_settings(plan["settings"], FeatureSettings)
    definition = settings.definition()
    store = open_store(settings.store, settings.name)
    bus = KafkaBus(settings.kafka)
    bind(store, settings.encoded(), settings)
    while True:
        # Faults of the broker may come while a member starts.
        with suppress(BusError):
            check_wiring(settings, store, bus)
            break
    left = plan.get("times", 1)

    def at(step: str) -> None:
        nonlocal left
        if step == plan.get("step"):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    if not plan.get("republish", True):
        recovery.publish_rest = forget_rest
    ends = {Partition(topic, number): end for topic, number, end in plan.get("ends", ())}

    def stopping() -> bool:
        positions = store.positions()
        return bool(ends) and all(positions.get(part, 0) >= end for part, end in ends.items())

    folder = Path(plan["folder"]) if "folder" in plan else None
    job = Echo(FeaturesJob(definition), plan["out"], has_files=folder is not None)
    Runtime(job, settings, store, bus, folder=folder, at=at).run(stopping)
    store.close()


def forget_rest(
    _: Any, producer: Any, partition: Any, published: int, stored: int, membership: Any, *__: Any
) -> int:
    if published < stored:
        producer.publish((), {partition: Committed(stored, "")}, membership)
    return 0


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
