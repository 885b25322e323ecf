"""`headwater serve`: one process, one event loop, and as many runner threads as cores.

granian runs embedded in this process's event loop, so that SIGTERM is ours to handle: readiness goes before
the drain, and registry and runners end after it. Its `stop()` closes the listening socket and idle
connections at once, and its `serve()` returns when the last open request is answered. A multi-process server
with one worker costs the same CPU a request, 30 MB for a parent that only waits, and keeps the signal to
itself. Scale beyond one process with replicas: a process holds every model once, however many cores it uses.

The loop is uvloop's: runners and granian wake it from other threads at each request, which costs less there.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import msgspec
import structlog

from headwater.feature_store.errors import HeadwaterError, InputError

log = structlog.get_logger(__name__)

HEADER_TIMEOUT_S = 30
"""A connection without a complete request head for this long is closed, idle ones too."""

DRAIN_GRACE_S = 5.0
"""An open request ends within its own timeout; a client that does not read its answer gets this more."""


def serve(
    releases_dir: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    runners: int | None = None,
    keep_versions: int = 2,
    max_body_bytes: int = 4 * 1024 * 1024,
    max_wait_ms: float | None = None,
    max_queue_rows: int = 8192,
    timeout_s: float = 10.0,
    json: bool = False,
) -> None:
    """Serve the releases of a folder over HTTP until SIGTERM or Ctrl-C, which end the process.

    Parameters
    ----------
    releases_dir
        Folder of `<model>/<version>/`; watched, so that a new version is served as soon as it is there.
    host
        Address to listen at; 0.0.0.0 for all.
    port
        Port to listen at; 0 takes a free one and prints it.
    runners
        Threads that score; default: one for each core this process may use.
    keep_versions
        Versions of a model that stay loaded, the newest first.
    max_body_bytes
        Largest body, as sent and inflated; a larger one gets 413.
    max_wait_ms
        A request that would wait longer for a runner, by estimate, gets 429; default: as long as 64
        requests of the usual size take, between 50 ms and a tenth of --timeout-s.
    max_queue_rows
        Rows of one request, and rows in hand beyond which requests get 429: a bound on memory.
    timeout_s
        A request that is not answered by then gets 504, or 408 where its body is not there.
    json
        Print the address as one JSON object.
    """
    _check(
        releases_dir,
        {
            "--runners": runners,
            "--keep-versions": keep_versions,
            "--max-body-bytes": max_body_bytes,
            "--max-wait-ms": max_wait_ms,
            "--max-queue-rows": max_queue_rows,
            "--timeout-s": timeout_s,
        },
    )
    # Late: `headwater serve --help` needs none of these.
    import uvloop

    _configure_logging()
    port = _free_port(host, port)
    uvloop.run(
        _serve(
            releases_dir,
            host=host,
            port=port,
            num_runners=runners or len(os.sched_getaffinity(0)),
            keep_versions=keep_versions,
            max_body_bytes=max_body_bytes,
            max_wait_s=None if max_wait_ms is None else max_wait_ms / 1000,
            max_queue_rows=max_queue_rows,
            timeout_s=timeout_s,
            as_json=json,
        )
    )
    _exit()


async def _serve(
    releases_dir: Path,
    *,
    host: str,
    port: int,
    num_runners: int,
    keep_versions: int,
    max_body_bytes: int,
    max_wait_s: float | None,
    max_queue_rows: int,
    timeout_s: float,
    as_json: bool,
) -> None:
    from granian.constants import HTTPModes
    from granian.http import HTTP1Settings
    from granian.server.embed import Server

    from headwater.serving.admission import Admission
    from headwater.serving.batching import Batcher
    from headwater.serving.metrics import Metrics
    from headwater.serving.protocols.http import Application
    from headwater.serving.registry import Registry
    from headwater.serving.service import Service

    metrics = Metrics()
    registry = Registry(releases_dir, keep_versions=keep_versions, metrics=metrics)
    admission = Admission(
        num_runners=num_runners,
        max_queue_rows=max_queue_rows,
        metrics=metrics,
        max_wait_s=max_wait_s,
        timeout_s=timeout_s,
    )
    batcher = Batcher(num_runners=num_runners, admission=admission, metrics=metrics)
    service = Service(registry, admission, batcher, metrics)
    application = Application(service, max_body_bytes=max_body_bytes, timeout_s=timeout_s)
    server = Server(
        application,
        host,
        port,
        log_enabled=False,
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(header_read_timeout=HEADER_TIMEOUT_S * 1000),
        websockets=False,
        backlog=1024,
    )
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def on_signal(number: int) -> None:
        # A second signal ends the process at once, as it does by default.
        loop.remove_signal_handler(number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    registry.start()
    watchers = [
        asyncio.create_task(application.sweep()),
        asyncio.create_task(admission.watch_lag()),
    ]
    serving = asyncio.create_task(server.serve())
    try:
        await _until_listening(host, port, serving)
        _collect_seldom()
        _announce(releases_dir, host, port, as_json)
        waiting = asyncio.create_task(stop.wait())
        await asyncio.wait((waiting, serving), return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            raise HeadwaterError(f"the HTTP server ended by itself: {serving.exception()}")
        service.draining = True
        log.info("draining")
        server.stop()
        done, _ = await asyncio.wait((serving,), timeout=timeout_s + DRAIN_GRACE_S)
        if not done:
            log.warning("drain cut short", after_s=timeout_s + DRAIN_GRACE_S)
            _exit()
    finally:
        for watcher in watchers:
            watcher.cancel()
        registry.close()
        batcher.close()
    log.info("stopped")


def _collect_seldom() -> None:
    """Let the garbage collector pass over what stays, and run once in some hundred requests.

    By default it runs in each request of tens of inputs, whose lists and dicts are no cycles: a sixth of the
    event loop's time. What is in a cycle after all waits a little longer.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def _exit() -> NoReturn:
    """End the process with status 0, whatever threads are left.

    granian's own threads go on for a moment after the last answer (for a client that does not read
    it, longer). One that calls into an interpreter that is being taken down aborts the process (SIGABRT),
    though the drain was complete.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _check(releases_dir: Path, options: Mapping[str, float | None]) -> None:
    if not releases_dir.is_dir():
        raise InputError(
            f"{releases_dir}: expected a folder of releases, <model>/<version>/, found "
            f"{'a file' if releases_dir.exists() else 'nothing'}; `headwater export` writes one"
        )
    for name, value in options.items():
        if value is not None and not value > 0:
            raise InputError(f"{name}: expected more than 0, found {value}")


def _free_port(host: str, port: int) -> int:
    """Return the port to listen at; raises `InputError` where the address cannot be had.

    granian would share a port that another server listens at, and lose half of the requests to it.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"--port: expected 0 to 65535, found {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return probe.getsockname()[1]
    except OSError as error:
        raise InputError(
            f"--host {host} --port {port}: cannot listen there: {error}; choose another, or 0 for "
            "a free port"
        ) from error


async def _until_listening(host: str, port: int, serving: asyncio.Task[None]) -> None:
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    for _ in range(500):
        with suppress(OSError):
            _, writer = await asyncio.open_connection(address, port)
            writer.close()
            return
        if serving.done():
            break
        await asyncio.sleep(0.01)
    raise HeadwaterError(f"the HTTP server does not listen at {host}:{port}")


def _announce(releases_dir: Path, host: str, port: int, as_json: bool) -> None:
    bracketed = f"[{host}]" if ":" in host else host
    url = f"http://{bracketed}:{port}"
    log.info("listening", url=url, releases=str(releases_dir), pid=os.getpid())
    if as_json:
        line = {"url": url, "host": host, "port": port, "pid": os.getpid()}
        text = msgspec.json.encode(line).decode()
    else:
        text = f"serving {releases_dir} at {url}; OpenAPI at {url}/openapi.json; Ctrl-C drains and stops"
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _configure_logging() -> None:
    """Send structlog's events to standard error as JSON lines."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.dict_tracebacks,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
