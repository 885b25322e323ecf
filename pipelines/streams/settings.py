"""What every stream job declares: source, cluster, store, and how it deals with what it cannot use."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from headwater.feature_store.config import Config
from headwater.feature_store.errors import JobError
from headwater.feature_store.schema import Dtype
from headwater.pipelines.job_errors import explain
from headwater.pipelines.streams.kafka_bus import KafkaSettings

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""A name that may be part of a topic's and of a key's."""
COLUMN = r"^[A-Za-z][A-Za-z0-9_.-]*$"
"""Columns that start with an underscore are the runtime's own."""


class Column(Config):
    """A field of the messages."""

    name: str = Field(pattern=COLUMN)
    """Name of the field."""
    dtype: Dtype
    """Its type."""
    optional: bool = False
    """Whether it may be null or absent; a message that lacks another is rejected."""


class Source(Config):
    """The topics to read, and the form of their messages."""

    topics: list[str] = Field(min_length=1)
    """Names of the topics, which exist."""
    format: Literal["json", "arrow"] = "json"
    """JSON objects, or Arrow IPC streams of record batches."""
    version: int = Field(default=1, ge=1)
    """Version of the messages, in the field `v` or the Arrow metadata `headwater.version`; one that lacks it
    has version 1. New optional fields do not change it."""
    columns: list[Column] = Field(min_length=1)
    """The fields that the job reads; others are passed over."""
    time: str
    """Column of the event time, an integer."""
    time_unit: Literal["ms", "s"] = "ms"
    """Unit of the event time, since 1970 UTC."""
    event_id: str | None = None
    """Column that names an event, so that one that a producer sent twice counts once."""
    allowed_lateness_s: float = Field(default=600, ge=0)
    """How much older than the newest event of its partition an event may be; later ones are rejected."""
    max_ahead_s: float = Field(default=300, ge=0)
    """How far an event's time may be ahead of its arrival; beyond, a clock is wrong, and it is rejected."""
    max_message_bytes: int = Field(default=512 * 1024, gt=0)
    """Larger messages are rejected unread."""
    offset: str = Field(default="earliest", pattern=r"^(earliest|latest|ts=\d+)$")
    """Where a job begins that has no positions yet; ts=.. is arrival time in milliseconds."""

    @model_validator(mode="after")
    def _known_columns(self) -> Source:
        known = {column.name: column for column in self.columns}
        if len(known) < len(self.columns):
            raise ValueError("columns: `name` must be unique")
        if self.time not in known or known[self.time].dtype != "int64":
            raise ValueError(f"time: {self.time!r} is no int64 column of `columns`")
        if known[self.time].optional:
            raise ValueError(f"time: the column {self.time!r} may not be optional")
        if self.event_id is not None and self.event_id not in known:
            raise ValueError(f"event_id: {self.event_id!r} is no column of `columns`")
        return self

    @property
    def dtypes(self) -> dict[str, Dtype]:
        """The type of each column."""
        return {column.name: column.dtype for column in self.columns}

    @property
    def lateness_ms(self) -> int:
        """The allowed lateness in milliseconds."""
        return round(self.allowed_lateness_s * 1000)


class Batches(Config):
    """How many events are taken together."""

    max_events: int = Field(default=50_000, gt=0)
    """Events of a batch at most."""
    commit_interval_ms: int = Field(default=1000, gt=0)
    """A batch is committed after so long, or when it is full."""


class StreamSettings(Config):
    """The declaration of a stream job, but for what its kind adds."""

    name: str = Field(pattern=NAME)
    """Name of the job, of its consumer group and of its part of the store."""
    store: str = "lmdb:online"
    """URL of the online store, as lmdb:PATH."""
    source: Source
    """What is read."""
    kafka: KafkaSettings = KafkaSettings()
    """The cluster."""
    batches: Batches = Batches()
    """How many events are taken together."""
    on_error: Literal["stop", "dead-letter"] = "stop"
    """What is done with an event that the job's own code refuses by an exception."""

    def encoded(self) -> bytes:
        """Return what the job's rows follow, the same bytes for the same rows; its kind says what that is."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Return the first 16 hex digits of the SHA-256 of what the job's rows follow."""
        return hashlib.sha256(self.encoded()).hexdigest()[:16]

    @property
    def dead_letter_topic(self) -> str:
        """The topic of what was rejected."""
        return f"{self.name}.dead-letters"

    @property
    def retry_topics(self) -> list[str]:
        """The topics that carry rejected messages again, to this job alone."""
        return [f"{topic}.retry.{self.name}" for topic in self.source.topics]

    @property
    def topics(self) -> list[str]:
        """All topics that are read, in order; the order breaks ties of event time."""
        return sorted([*self.source.topics, *self.retry_topics])


S = TypeVar("S", bound=StreamSettings)


def load_settings(path: Path, kind: type[S]) -> S:
    """Return the job in a TOML file; JobError has a line for each thing that is wrong."""
    return parse_settings(read_toml(path), kind, str(path))


def read_toml(path: Path) -> dict[str, Any]:
    """Return what a TOML file holds; JobError where it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise JobError(f"{path}: no such file.") from None
    except (UnicodeDecodeError, OSError) as error:
        raise JobError(f"{path}: cannot be read as text: {error}.") from error
    except tomllib.TOMLDecodeError as error:
        raise JobError(f"{path}: not valid TOML: {error}.") from error


def parse_settings(values: Mapping[str, Any], kind: type[S], source: str = "stream") -> S:
    """Return the job in a nested dict, as read from TOML; `source` names it in errors."""
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        lines = explain(error, kind, values)
        raise JobError("\n".join(f"{source}: {line}" for line in lines)) from None
