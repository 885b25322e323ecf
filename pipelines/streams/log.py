"""The job kind `log`: events to Parquet files by the hour of their event time, each event once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import model_validator

from headwater.feature_store.config import Config
from headwater.pipelines.streams.arrow import RecordBatch
from headwater.pipelines.streams.clock import place_of
from headwater.pipelines.streams.effects import Effects, File, StateView
from headwater.pipelines.streams.settings import StreamSettings

HOUR_MS = 3_600_000
ANY_LATENESS_S = 1e10
"""Late events are as good as others here, and come in files of their own."""


class LogSection(Config):
    """Where the files go."""

    path: str
    """Folder of the files, `hour=2026-12-01T03/..parquet`."""


class LogSettings(StreamSettings):
    """A stream job that writes events to files."""

    log: LogSection
    """The files."""

    @model_validator(mode="before")
    @classmethod
    def _late_events_count(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("source"), dict):
            source = {"allowed_lateness_s": ANY_LATENESS_S} | values["source"]
            return values | {"source": source}
        return values

    def encoded(self) -> bytes:
        """Return what the store's files follow, as JSON."""
        columns = [[column.name, column.dtype] for column in self.source.columns]
        return json.dumps({"log": str(Path(self.log.path)), "columns": columns}).encode()


class LogJob:
    """Writes each batch's events to a file a partition and hour; the order of columns is as declared."""

    def handle(self, events: RecordBatch, _: StateView) -> Effects:
        """Return the files; their names say which events they hold."""
        hours = np.asarray(events.column("_ts_ms")) // HOUR_MS
        partitions = np.asarray(events.column("_partition"))
        topics = events.column("_topic").to_pylist()
        rows_of: dict[tuple[str, int, int], list[int]] = {}
        for row, key in enumerate(zip(topics, partitions.tolist(), hours.tolist(), strict=True)):
            rows_of.setdefault(key, []).append(row)
        files: list[File] = []
        for (topic, partition, hour), rows in rows_of.items():
            first, last = place_of(events, rows[0]), place_of(events, rows[-1])
            name = np.datetime64(hour, "h").item().strftime("hour=%Y-%m-%dT%H")
            path = f"{name}/{topic}-{partition}-{first.offset}-{first.row}-{last.offset}.parquet"
            table = pa.Table.from_batches([events.take(pa.array(rows))])
            files.append(File(first, path, table))
        return Effects(files=files)
