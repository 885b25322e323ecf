"""Metrics and health of a consumer, declared once and recorded by named methods, and their port."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from headwater.feature_store.errors import InputError
from headwater.feature_store.online.store import OnlineStore, Partition
from headwater.pipelines.streams.runtime import Batch

SILENT_S = 30.0
"""A consumer that asked for no messages for so long is not ready."""
STUCK_S = 120.0
"""Nor is one that has messages before it, and committed none of them for so long."""
LOOK_AT_STORE_S = 10.0
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class StreamMetrics:
    """The metrics of one consumer; told by the runtime what it does."""

    def __init__(self, store: OnlineStore) -> None:
        self._store = store
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._events = Counter(
            "headwater_stream_events", "Events consumed.", ("topic",), registry=registry
        )
        self._lag = Gauge(
            "headwater_stream_lag_messages",
            "Messages that wait in a partition of this consumer.",
            ("topic", "partition"),
            registry=registry,
        )
        self._dead_letters = Counter(
            "headwater_stream_dead_letters",
            "Events set aside, by why.",
            ("topic", "reason"),
            registry=registry,
        )
        self._late = Counter(
            "headwater_stream_late_events",
            "Events set aside because they were later than allowed.",
            registry=registry,
        )
        self._repeated = Counter(
            "headwater_stream_repeated_events",
            "Events that a producer had sent before, by their id.",
            registry=registry,
        )
        self._commit = Histogram(
            "headwater_stream_commit_seconds",
            "Time to handle a batch and put it into the store.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._outbox = Gauge(
            "headwater_stream_outbox_messages", "Entries of the outbox.", registry=registry
        )
        self._delay = Gauge(
            "headwater_stream_watermark_delay_seconds",
            "Time now less the newest event time of the partition that is furthest behind.",
            registry=registry,
        )
        self._bytes = Gauge(
            "headwater_store_bytes", "Bytes that the online store takes.", registry=registry
        )
        self._newest_ms: dict[Partition, int] = {}
        self._delay.set_function(self._delay_s)
        self._lags: Mapping[Partition, int] = {}
        self._polled_s = self._progress_s = time.monotonic()
        self._looked_s = 0.0
        self._is_waiting = False

    def polled(self, lags: Mapping[Partition, int]) -> None:
        """Take note that messages were asked for, and how many wait in each partition."""
        now_s = time.monotonic()
        self._polled_s = now_s
        self._is_waiting = False
        if not any(lags.values()):
            self._progress_s = now_s
        for partition in set(self._lags) - set(lags):
            self._lag.remove(*map(str, partition))
            self._newest_ms.pop(partition, None)
        for partition, lag in lags.items():
            self._lag.labels(*map(str, partition)).set(lag)
        self._lags = lags

    def committed(self, batch: Batch, seconds: float) -> None:
        """Take note of a batch that is in the store."""
        now_s = time.monotonic()
        self._progress_s = now_s
        self._commit.observe(seconds)
        for topic, count in batch.num_events.items():
            self._events.labels(topic).inc(count)
        for letter in batch.rejects:
            self._dead_letters.labels(letter.place.topic, letter.reason).inc()
            if letter.reason == "late":
                self._late.inc()
        self._repeated.inc(batch.timely.num_duplicates)
        self._newest_ms |= batch.timely.newest_ms
        if now_s - self._looked_s > LOOK_AT_STORE_S:
            self._looked_s = now_s
            self._outbox.set(self._store.num_outbox())
            self._bytes.set(self._store.num_bytes())

    def waiting(self) -> None:
        """Take note that cluster or store do not answer."""
        self._is_waiting = True

    def not_ready(self) -> str:
        """Return why the consumer is not ready; '' where it is."""
        now_s = time.monotonic()
        if self._is_waiting:
            return "waiting for the cluster or the store"
        if now_s - self._polled_s > SILENT_S:
            return f"asked for no messages for {now_s - self._polled_s:.0f} s"
        if now_s - self._progress_s > STUCK_S:
            return f"committed nothing for {now_s - self._progress_s:.0f} s, and messages wait"
        return ""

    def _delay_s(self) -> float:
        oldest_ms = min(list(self._newest_ms.values()), default=None)
        return 0.0 if oldest_ms is None else time.time() - oldest_ms / 1000


@contextmanager
def served(metrics: StreamMetrics, host: str, port: int) -> Generator[int, None, None]:
    """Answer `/metrics`, `/health/live` and `/health/ready` on a port, 0 for a free one; gives the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            reason = metrics.not_ready()
            match self.path:
                case "/metrics":
                    self._answer(200, generate_latest(metrics.registry), CONTENT_TYPE_LATEST)
                case "/health/live":
                    self._answer(200, b"live\n")
                case "/health/ready":
                    self._answer(503 if reason else 200, f"{reason or 'ready'}\n".encode())
                case _:
                    self._answer(404, b"/metrics, /health/live or /health/ready\n")

        def _answer(self, code: int, body: bytes, kind: str = "text/plain") -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Write no line for a request."""

    try:
        server = ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        raise InputError(f"--metrics-port {port}: {error.strerror}. Choose another.") from error
    with server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()
