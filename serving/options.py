"""The options of `headwater serve`: each with its default, its meaning and its check, once."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields

from headwater.feature_store.errors import InputError


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Address of the service, and the bounds of what it takes on."""

    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 for all."""
    port: int = 8080
    """Port to listen at; 0 takes a free one and prints it."""
    runners: int | None = None
    """Threads that score; default: one for each core this process may use."""
    keep_versions: int = 2
    """Versions of a model that stay loaded, the newest first."""
    max_body_bytes: int = 4 * 1024 * 1024
    """Largest body, as sent and inflated; a larger one gets 413."""
    max_wait_ms: float | None = None
    """A request that would wait longer for a runner, by estimate, gets 429; default: as long as 64
    requests of the usual size take, between 50 ms and a tenth of --timeout-s."""
    max_queue_rows: int = 8192
    """Rows of one request, and rows in hand beyond which requests get 429: a bound on memory."""
    timeout_s: float = 10.0
    """A request that is not answered by then gets 504, or 408 where its body is not there."""

    def check(self) -> None:
        """Raise `InputError` for a value that is out of range, by the name of its option."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in ("host", "port") and value is not None and not value > 0:
                option = f"--{field.name.replace('_', '-')}"
                raise InputError(f"{option}: expected more than 0, found {value}")
        if not 0 <= self.port <= 65535:
            raise InputError(f"--port: expected 0 to 65535, found {self.port}")

    @property
    def num_runners(self) -> int:
        """Threads that score."""
        return self.runners or len(os.sched_getaffinity(0))

    @property
    def max_wait_s(self) -> float | None:
        """Longest estimated wait in seconds, None where admission sets it."""
        return None if self.max_wait_ms is None else self.max_wait_ms / 1000
