"""`headwater stream`: jobs that live on Kafka topics, and what is done with them beside running them."""

from __future__ import annotations

import signal
import threading
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import App

from headwater.feature_store.errors import HeadwaterError, InputError
from headwater.pipelines.console import emit, note, table
from headwater.pipelines.options import AsJson

if TYPE_CHECKING:
    from headwater.pipelines.streams.effects import StreamJob
    from headwater.pipelines.streams.settings import StreamSettings

LOOKED_AT = 2000
"""Messages of a topic that `init` looks at."""

app = App(name="stream", help="Keep online features up from Kafka topics, each event once.")


@app.command(name="features")
def run_features(
    stream: Path,
    *,
    metrics_port: int | None = None,
    metrics_host: str = "127.0.0.1",
    json: AsJson = False,
) -> None:
    """Keep the features of a stream job up until SIGTERM or Ctrl-C, which end it in order.

    Start it several times, on as many hosts as the store serves, and they share the partitions.

    Parameters
    ----------
    stream
        The job, as STREAM.toml: docs/streams.md describes it.
    metrics_port
        Port that answers /metrics, /health/live and /health/ready; 0 takes a free one.
    metrics_host
        Address of that port.
    """
    from headwater.pipelines.streams.declared import FeatureSettings
    from headwater.pipelines.streams.features import FeaturesJob
    from headwater.pipelines.streams.settings import load_settings

    settings = load_settings(stream, FeatureSettings)
    job = FeaturesJob(settings.definition())
    _run(settings, job, None, metrics_port, metrics_host, as_json=json)


@app.command(name="log")
def run_log(
    stream: Path,
    *,
    metrics_port: int | None = None,
    metrics_host: str = "127.0.0.1",
    json: AsJson = False,
) -> None:
    """Write the events of a stream job to Parquet files by the hour, until SIGTERM or Ctrl-C.

    Parameters
    ----------
    stream
        The job, as STREAM.toml with a section [log].
    metrics_port
        Port that answers /metrics, /health/live and /health/ready; 0 takes a free one.
    metrics_host
        Address of that port.
    """
    from headwater.pipelines.streams.log import LogJob, LogSettings
    from headwater.pipelines.streams.settings import load_settings

    settings = load_settings(stream, LogSettings)
    _run(settings, LogJob(), Path(settings.log.path), metrics_port, metrics_host, as_json=json)


def _run(
    settings: StreamSettings,
    job: StreamJob,
    folder: Path | None,
    metrics_port: int | None,
    metrics_host: str,
    *,
    as_json: bool,
) -> None:
    """Run a job until a signal ends it in order; a second one ends the process at once."""
    from headwater.feature_store.online.stores import open_store
    from headwater.pipelines.streams.bus import BusError
    from headwater.pipelines.streams.kafka_bus import KafkaBus
    from headwater.pipelines.streams.metrics import StreamMetrics, served
    from headwater.pipelines.streams.recovery import check_wiring
    from headwater.pipelines.streams.runtime import Runtime
    from headwater.pipelines.streams.upkeep import bind

    stop = threading.Event()

    def on_signal(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    bus = KafkaBus(settings.kafka)
    store = open_store(settings.store, settings.name)
    try:
        bind(store, settings.encoded(), settings)
        try:
            check_wiring(settings, store, bus)
        except BusError as error:
            raise HeadwaterError(f"the cluster does not answer: {error}") from error
        metrics = StreamMetrics(store)
        with ExitStack() as stack:
            port = None
            if metrics_port is not None:
                port = stack.enter_context(served(metrics, metrics_host, metrics_port))
            emit(
                {"job": settings.name, "topics": settings.topics, "metrics_port": port},
                as_json=as_json,
                text=f"{settings.name}: reading {', '.join(settings.source.topics)}"
                + ("" if port is None else f"; http://{metrics_host}:{port}/metrics"),
            )
            Runtime(job, settings, store, bus, folder=folder, watch=metrics).run(stop.is_set)
    finally:
        store.close()
    note("stopped")


@app.command
def init(
    topic: str, *, out: Path = Path("stream.toml"), servers: str | None = None, json: AsJson = False
) -> None:
    """Look at messages of a topic and write a first job for it, with comments.

    Parameters
    ----------
    topic
        Topic of JSON messages.
    out
        File to write; one that exists is refused.
    servers
        Kafka cluster; the local one, or what KAFKA_BOOTSTRAP_SERVERS names, when absent.
    """
    from headwater.pipelines.streams.first_stream import first_stream
    from headwater.pipelines.streams.kafka_bus import KafkaBus, KafkaSettings
    from headwater.pipelines.streams.past_events import newest_messages

    if out.exists():
        raise InputError(f"{out}: exists; name another file by --out.")
    settings = KafkaSettings() if servers is None else KafkaSettings(servers=servers)
    found = newest_messages([topic], KafkaBus(settings), LOOKED_AT)
    values = [message.value or b"" for messages in found.values() for message in messages]
    text = first_stream(topic, values)
    if servers is not None:
        text += f'\n[kafka]\nservers = "{servers}"\n'
    out.write_text(text)
    emit(
        {"job": out, "messages": len(values)},
        as_json=json,
        text=f"wrote {out} from {len(values):,} messages\n"
        f"next: read it, then headwater stream features {out}",
    )


@app.command
def status(stream: Path, *, json: AsJson = False) -> None:
    """Show where a job stands: positions, lag, rows and outbox.

    Parameters
    ----------
    stream
        The job.
    """
    from headwater.feature_store.online.stores import open_store
    from headwater.pipelines.streams import upkeep
    from headwater.pipelines.streams.kafka_bus import KafkaBus
    from headwater.pipelines.streams.kinds import load_stream

    settings = load_stream(stream)
    store = open_store(settings.store, settings.name, create=False)
    try:
        rows = [asdict(row) for row in upkeep.status(settings, store, KafkaBus(settings.kafka))]
        result = {
            "job": settings.name,
            "definition": settings.fingerprint(),
            "rows": store.num_rows(),
            "outbox": store.num_outbox(),
            "store_bytes": store.num_bytes(),
            "partitions": rows,
        }
    finally:
        store.close()
    title = (
        f"{settings.name}: {result['rows']:,} rows, {result['store_bytes']:,} bytes, "
        f"{result['outbox']:,} outputs in the outbox"
    )
    shown = [{key: "" if value is None else value for key, value in row.items()} for row in rows]
    emit(result, as_json=json, text=table(title, shown))


@app.command
def reset(stream: Path, *, json: AsJson = False) -> None:
    """Remove a job's rows and positions, so that it starts anew; its consumers must be stopped.

    Parameters
    ----------
    stream
        The job.
    """
    from headwater.feature_store.online.stores import open_store
    from headwater.pipelines.streams import upkeep
    from headwater.pipelines.streams.kafka_bus import KafkaBus
    from headwater.pipelines.streams.kinds import load_stream

    settings = load_stream(stream)
    store = open_store(settings.store, settings.name)
    try:
        num_rows = store.num_rows()
        upkeep.reset(settings, store, KafkaBus(settings.kafka))
    finally:
        store.close()
    emit(
        {"job": settings.name, "rows": num_rows},
        as_json=json,
        text=f"{settings.name}: {num_rows:,} rows removed; it starts anew from {settings.source.offset}",
    )


@app.command
def forget(stream: Path, key: str, *, only: str | None = None, json: AsJson = False) -> None:
    """Remove what the store holds about a key, as a user; while consumers run, too.

    Its events are still in the topics, and a job that starts anew reads them again.

    Parameters
    ----------
    stream
        The job.
    key
        The key, as `u17`.
    only
        Table to remove it from; all when absent.
    """
    from headwater.feature_store.online.stores import open_store
    from headwater.pipelines.streams import upkeep
    from headwater.pipelines.streams.declared import FeatureSettings
    from headwater.pipelines.streams.settings import load_settings

    settings = load_settings(stream, FeatureSettings)
    store = open_store(settings.store, settings.name, create=False)
    try:
        removed = upkeep.forget(store, key, only)
    finally:
        store.close()
    where = ", ".join(removed) or "no table held it"
    emit({"key": key, "tables": removed}, as_json=json, text=f"{key}: removed from {where}")


@app.command
def load(stream: Path, feature: str, file: Path, *, json: AsJson = False) -> None:
    """Write the vectors of a Parquet file to the store, over what it had; while consumers run, too.

    Parameters
    ----------
    stream
        The job, which declares the vector.
    feature
        Table and feature, as `items.taste`.
    file
        Parquet file with the table's key as a column, and lists of numbers in one of the feature's name.
    """
    from headwater.feature_store.online.stores import open_store
    from headwater.pipelines.streams.declared import FeatureSettings
    from headwater.pipelines.streams.settings import load_settings
    from headwater.pipelines.streams.upkeep import bind
    from headwater.pipelines.streams.vectors import load_vectors

    settings = load_settings(stream, FeatureSettings)
    definition = settings.definition()
    store = open_store(settings.store, settings.name)
    try:
        bind(store, settings.encoded(), settings)
        count = load_vectors(store, definition, feature, file)
    finally:
        store.close()
    emit(
        {"feature": feature, "vectors": count},
        as_json=json,
        text=f"{feature}: {count:,} vectors from {file}",
    )


@app.command
def replay_dead_letters(stream: Path, *, json: AsJson = False) -> None:
    """Send rejected messages again, once each, to topics that only this job reads.

    Parameters
    ----------
    stream
        The job, mended.
    """
    from headwater.pipelines.streams.dead_letters import replay
    from headwater.pipelines.streams.kafka_bus import KafkaBus
    from headwater.pipelines.streams.kinds import load_stream

    settings = load_stream(stream)
    counts = replay(settings, KafkaBus(settings.kafka))
    told = ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items()))
    emit(
        {"job": settings.name, "letters": dict(counts)},
        as_json=json,
        text=f"{settings.name}: {told or 'no letters since the last time'}",
    )
