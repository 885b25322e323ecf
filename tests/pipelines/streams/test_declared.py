"""STREAM.toml: what is wrong is told by its path, all at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headwater.feature_store.errors import JobError
from headwater.feature_store.online.definition import read_definition
from headwater.feature_store.online.kinds import Count, History
from headwater.pipelines.streams.declared import FeatureSettings
from headwater.pipelines.streams.settings import load_settings, parse_settings

TOML = """
name = "clicks"
[source]
topics = ["clicks"]
time = "ts_ms"
columns = [
  { name = "user", dtype = "string" },
  { name = "amount", dtype = "int64", optional = true },
  { name = "price", dtype = "double" },
  { name = "ts_ms", dtype = "int64" },
]
[[tables]]
name = "users"
key = "user"
features = [
  { kind = "count", name = "hour", window_s = 3600, where = { user = ["a", "b"], amount = 1 } },
  { kind = "history", name = "amounts", column = "amount", length = 3, ttl_s = 1.5 },
]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "stream.toml"
    file.write_text(TOML)
    return file


def test_a_file_becomes_a_definition_that_a_store_can_carry(path: Path) -> None:
    settings = load_settings(path, FeatureSettings)
    definition = settings.definition()
    assert definition.topics == ("clicks", "clicks.retry.clicks")
    (users,) = definition.tables
    assert users.features == (
        Count("hour", {"user": ("a", "b"), "amount": (1,)}, "", 3_600_000, 60_000),
        History("amounts", "amount", "int64", 3, {}, 1500),
    )
    assert read_definition(definition.encoded()) == definition
    assert settings.encoded() == definition.encoded()


def refused(path: Path, old: str, new: str) -> list[str]:
    """Return the lines that tell what is wrong after a change of the file."""
    assert old in TOML
    path.write_text(TOML.replace(old, new))
    with pytest.raises(JobError) as error:
        load_settings(path, FeatureSettings)
    return [line.removeprefix(f"{path}: ") for line in str(error.value).splitlines()]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "clicks"', 'name = "clicks"\nstores = "x"', "stores: unknown key. Did you mean 'store'?"),
        ('topics = ["clicks"]', "", "source.topics: required, but absent."),
        ('time = "ts_ms"', 'time = "price"', "time: 'price' is no int64 column of `columns`"),
        ('time = "ts_ms"', 'time = "ts_ms"\nevent_id = "id"', "event_id: 'id' is no column"),
        ('key = "user"', 'key = "price"', "table 'users': key 'price' is no int64 or string column"),
        ('= "amount", length', '= "amounts", length', "feature 'amounts': column 'amounts'"),
        ("window_s = 3600", "window_s = 3600, grain_s = 7", "window_s: 3600 is no multiple of grain_s, 7"),
        ("window_s = 3600", "grain_s = 7", "grain_s goes with window_s"),
        ("where = { user", "where = { usr", "feature 'hour': column 'usr' is no column of source.columns"),
        ("length = 3", "length = 0", "expected greater than 0, found 0"),
        ('kind = "count"', 'kind = "counts"', "unknown 'counts'. Did you mean 'count'?"),
        ('dtype = "double"', 'dtype = "float"', "columns[2] (price).dtype: expected 'int64'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_by_its_path(path: Path, old: str, new: str, message: str) -> None:
    lines = refused(path, old, new)
    assert any(message in line for line in lines), lines


def test_no_toml_is_told_as_such(path: Path) -> None:
    assert refused(path, "[source]", "[source")[0].startswith("not valid TOML")


def test_the_name_of_a_job_may_be_part_of_a_topic() -> None:
    values: dict[str, Any] = {"name": "a b", "source": {}, "tables": []}
    with pytest.raises(JobError, match="stream: name: "):
        parse_settings(values, FeatureSettings)
