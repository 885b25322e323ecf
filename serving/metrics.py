"""Every metric of the online service, declared once and recorded by named methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class Metrics:
    """The metrics of one process; each instance has its own registry, so tests do not share counts."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        self._request_seconds = Histogram(
            "headwater_serving_request_seconds",
            "Time from the first byte of a request to its answer; code 499: the client went away.",
            ("route", "code"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._open = Gauge(
            "headwater_serving_open_requests",
            "Requests whose head is there and that are not answered yet.",
            registry=registry,
        )
        self._rows = Counter(
            "headwater_serving_rows", "Rows scored.", ("model",), registry=registry
        )
        self._missing = Counter(
            "headwater_serving_missing_values",
            "Values of a feature that were missing: absent, null, NaN, '' or an empty list.",
            ("model", "feature"),
            registry=registry,
        )
        self._batch_rows = Histogram(
            "headwater_serving_batch_rows",
            "Rows of one call of onnxruntime.",
            ("model",),
            buckets=_ROWS,
            registry=registry,
        )
        self._batch_seconds = Histogram(
            "headwater_serving_batch_seconds",
            "Time of one call of onnxruntime.",
            ("model",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._queue_rows = Gauge(
            "headwater_serving_queue_rows", "Rows admitted and not yet scored.", registry=registry
        )
        self._wait = Gauge(
            "headwater_serving_wait_seconds",
            "Estimated wait of a request that came now.",
            registry=registry,
        )
        self._wait_limit = Gauge(
            "headwater_serving_wait_limit_seconds",
            "Estimated wait beyond which a request is refused; short in overload.",
            registry=registry,
        )
        self._loop_lag = Histogram(
            "headwater_serving_loop_lag_seconds",
            "How late the event loop was, which decodes requests and sends answers; 50 looks a second.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._refused = Counter(
            "headwater_serving_refused_requests",
            "Requests answered with 429: their wait would have been too long, or there were too many rows.",
            ("reason",),
            registry=registry,
        )
        for reason in ("wait", "rows"):
            self._refused.labels(reason)
        self._stage_seconds = Histogram(
            "headwater_serving_stage_seconds",
            "Time of a stage of a recommendation, its wait for a runner included: retrieve, rank, rerank.",
            ("stage",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._fallbacks = Counter(
            "headwater_serving_fallback_answers",
            "Answers by popularity, as nothing was known of the query.",
            ("model",),
            registry=registry,
        )
        self._model_info = Gauge(
            "headwater_serving_model_info",
            "1 for each version that is loaded.",
            ("model", "version"),
            registry=registry,
        )
        self._model_version = Gauge(
            "headwater_serving_model_version",
            "Version that answers requests which name none.",
            ("model",),
            registry=registry,
        )
        self._load_seconds = Histogram(
            "headwater_serving_release_load_seconds",
            "Time to check and open a release.",
            ("model",),
            buckets=(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
            registry=registry,
        )
        self._load_failures = Counter(
            "headwater_serving_release_failures",
            "Releases that were refused: corrupt, incomplete, or missing their golden rows.",
            ("model",),
            registry=registry,
        )

    def request_answered(self, route: str, code: int, seconds: float) -> None:
        """Record a request; `route` is the template, never the path."""
        self._request_seconds.labels(route, str(code)).observe(seconds)

    def batch_scored(
        self, model: str, num_rows: int, seconds: float, missing: Mapping[str, int]
    ) -> None:
        """Record one call of onnxruntime and the missing values in it."""
        self._rows.labels(model).inc(num_rows)
        self._batch_rows.labels(model).observe(num_rows)
        self._batch_seconds.labels(model).observe(seconds)
        for feature, count in missing.items():
            self._missing.labels(model, feature).inc(count)

    def watch_open(self, num_open: Callable[[], int]) -> None:
        """Let the gauge of open requests read `num_open` when it is scraped."""
        self._open.set_function(num_open)

    def watch_admission(
        self,
        *,
        rows: Callable[[], int],
        wait_s: Callable[[], float],
        limit_s: Callable[[], float],
    ) -> None:
        """Let the gauges of the queue read what they show when they are scraped."""
        self._queue_rows.set_function(rows)
        self._wait.set_function(wait_s)
        self._wait_limit.set_function(limit_s)

    def loop_lagged(self, seconds: float) -> None:
        """Record how late the event loop was at a look."""
        self._loop_lag.observe(seconds)

    def stage_done(self, stage: str, seconds: float) -> None:
        """Record a stage of a recommendation."""
        self._stage_seconds.labels(stage).observe(seconds)

    def answered_by_popularity(self, model: str, queries: int) -> None:
        """Record queries of which nothing was known."""
        self._fallbacks.labels(model).inc(queries)

    def request_refused(self, reason: str) -> None:
        """Record a 429; `reason` is `wait` or `rows`."""
        self._refused.labels(reason).inc()

    def release_loaded(self, model: str, version: int, seconds: float) -> None:
        """Record that a version is ready."""
        self._model_info.labels(model, str(version)).set(1)
        self._load_seconds.labels(model).observe(seconds)

    def release_refused(self, model: str) -> None:
        """Record that a version did not become ready."""
        self._load_failures.labels(model).inc()

    def release_dropped(self, model: str, version: int) -> None:
        """Record that a version is no longer loaded."""
        self._model_info.remove(model, str(version))

    def version_served(self, model: str, version: int | None) -> None:
        """Record which version answers by default; None: the model is gone."""
        if version is not None:
            self._model_version.labels(model).set(version)
        else:
            self._model_version.remove(model)

    def text(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self._registry)
