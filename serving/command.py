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
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NoReturn

import msgspec
import structlog
from cyclopts import Parameter

from headwater.feature_store.errors import HeadwaterError, InputError
from headwater.serving.options import ServeOptions

log = structlog.get_logger(__name__)

HEADER_TIMEOUT_S = 30
"""A connection without a complete request head for this long is closed, idle ones too."""

DRAIN_GRACE_S = 5.0
"""An open request ends within its own timeout; a client that does not read its answer gets this more."""

DEFAULTS = ServeOptions()


def serve(
    releases_dir: Path,
    *,
    options: Annotated[ServeOptions, Parameter(name="*")] = DEFAULTS,
    json: bool = False,
) -> None:
    """Serve the releases of a folder over HTTP until SIGTERM or Ctrl-C, which end the process.

    Parameters
    ----------
    releases_dir
        Folder of `<model>/<version>/`; watched, so that a new version is served as soon as it is there.
    options
        Address of the service, and the bounds of what it takes on.
    json
        Print the address as one JSON object.
    """
    if not releases_dir.is_dir():
        raise InputError(
            f"{releases_dir}: expected a folder of releases, <model>/<version>/, found "
            f"{'a file' if releases_dir.exists() else 'nothing'}; `headwater export` writes one"
        )
    options.check()
    # Late: `headwater serve --help` needs none of these.
    import uvloop

    _configure_logging()
    port = _free_port(options.host, options.port)
    uvloop.run(_serve(releases_dir, replace(options, port=port), as_json=json))
    _exit()


async def _serve(releases_dir: Path, options: ServeOptions, *, as_json: bool) -> None:
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
    registry = Registry(releases_dir, keep_versions=options.keep_versions, metrics=metrics)
    admission = Admission(
        num_runners=options.num_runners,
        max_queue_rows=options.max_queue_rows,
        metrics=metrics,
        max_wait_s=options.max_wait_s,
        timeout_s=options.timeout_s,
    )
    batcher = Batcher(num_runners=options.num_runners, admission=admission, metrics=metrics)
    service = Service(registry, admission, batcher, metrics)
    application = Application(
        service, max_body_bytes=options.max_body_bytes, timeout_s=options.timeout_s
    )
    server = Server(
        application,
        options.host,
        options.port,
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
        await _until_listening(options.host, options.port, serving)
        _collect_seldom()
        _announce(releases_dir, options.host, options.port, as_json)
        waiting = asyncio.create_task(stop.wait())
        await asyncio.wait((waiting, serving), return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            raise HeadwaterError(f"the HTTP server ended by itself: {serving.exception()}")
        service.draining = True
        log.info("draining")
        server.stop()
        after_s = options.timeout_s + DRAIN_GRACE_S
        done, _ = await asyncio.wait((serving,), timeout=after_s)
        if not done:
            log.warning("drain cut short", after_s=after_s)
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


def _free_port(host: str, port: int) -> int:
    """Return the port to listen at; raises `InputError` where the address cannot be had.

    granian would share a port that another server listens at, and lose half of the requests to it.
    """
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
