"""The kinds of stream jobs, told apart by their sections."""

from __future__ import annotations

from pathlib import Path

from headwater.pipelines.streams.declared import FeatureSettings
from headwater.pipelines.streams.log import LogSettings
from headwater.pipelines.streams.settings import StreamSettings, parse_settings, read_toml


def load_stream(path: Path) -> StreamSettings:
    """Return the job in a TOML file, of whichever kind; JobError has a line for each thing that is wrong."""
    values = read_toml(path)
    return parse_settings(values, LogSettings if "log" in values else FeatureSettings, str(path))
