"""`headwater broker`: a local Kafka for development, in the foreground."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

from headwater.feature_store.errors import HeadwaterError
from headwater.pipelines.console import emit, note
from headwater.pipelines.options import AsJson

DEFAULT_PORT = 9092
_LOOK_EVERY_S = 0.5


def broker(folder: Path = Path("kafka"), *, port: int = DEFAULT_PORT, json: AsJson = False) -> None:
    """Start Apache Kafka on a folder, for development: one node, on this machine alone, no password.

    It runs until Ctrl-C or SIGTERM, and started again on the same folder it has its topics and offsets. The
    first start fetches Kafka's jars; neither Java nor Docker is needed.

    Parameters
    ----------
    folder
        Folder of the broker's data; made where it is absent.
    port
        Port on 127.0.0.1 that clients connect to.
    """
    from headwater.pipelines.streams.broker import Broker

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    note(f"starting Kafka on {folder}")
    with Broker(folder, port=port) as running:
        emit(
            {"bootstrap_servers": running.servers, "folder": folder},
            as_json=json,
            text=f"Kafka answers on {running.servers}; Ctrl-C stops it",
        )
        while not stop.wait(_LOOK_EVERY_S):
            if not running.is_running():
                raise HeadwaterError(f"{folder}: the broker ended by itself. See broker.log there.")
    note("stopped")
