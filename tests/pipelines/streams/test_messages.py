"""Messages become events or dead letters, whatever they hold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from headwater.feature_store.online.store import Partition
from headwater.pipelines.streams.arrow import RecordBatch
from headwater.pipelines.streams.messages import Reader
from headwater.pipelines.streams.settings import Source

PLACE = Partition("clicks", 1)
COLUMNS = [
    {"name": "user.id", "dtype": "string"},
    {"name": "score", "dtype": "double", "optional": True},
    {"name": "time", "dtype": "int64"},
]


@dataclass
class Message:
    value: bytes | None
    offset: int
    timestamp: int = 5
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()


def read(values: Sequence[bytes | None], **source: Any) -> tuple[RecordBatch, list[Any]]:
    declared = Source.model_validate(
        {"topics": ["clicks"], "columns": COLUMNS, "time": "time"} | source
    )
    messages = [Message(value, 10 + number) for number, value in enumerate(values)]
    return Reader(declared).read({PLACE: messages})


def message(**more: Any) -> bytes:
    return json.dumps({"user.id": "u", "time": 7} | more).encode()


def test_events_carry_their_columns_and_their_places() -> None:
    events, rejects = read([message(score=1.5), b"{", message(extra=[1, {"a": 2}])])
    assert events.to_pylist() == [
        {"user.id": "u", "score": score, "time": 7, "_ts_ms": 7, "_arrival_ts_ms": 5,
         "_topic": "clicks", "_partition": 1, "_offset": offset, "_row": 0}
        for score, offset in ((1.5, 10), (None, 12))
    ]  # fmt: skip
    assert [reject.place.offset for reject in rejects] == [11]


def test_times_in_seconds_become_milliseconds() -> None:
    events, _ = read([message(time=1_700_000_000), message(time=2**62)], time_unit="s")
    assert events.column("_ts_ms").to_pylist() == [1_700_000_000_000, -1]


def test_missing_values_are_null_and_integers_fit_64_bits() -> None:
    events, rejects = read([message(**{"user.id": ""}), message(time=2**63), message(time=1.5)])
    assert events.column("user.id").to_pylist() == [None]
    assert [(reject.reason, reject.field) for reject in rejects] == [("malformed", "time")] * 2


def test_a_consumer_reads_newer_messages_and_sets_other_versions_aside() -> None:
    newer = [message(v=1, country="de"), message(v=1, country="de", device="x"), message(v=2)]
    events, rejects = read(newer)
    assert events.num_rows == 2
    assert [(reject.reason, reject.field) for reject in rejects] == [("version", "v")]
    events, rejects = read(newer, version=2)
    assert (events.num_rows, len(rejects)) == (1, 2)


def test_a_column_named_v_is_no_version() -> None:
    columns = [*COLUMNS, {"name": "v", "dtype": "int64"}]
    events, rejects = read([message(v=9)], columns=columns)
    assert (events.column("v").to_pylist(), rejects) == ([9], [])


def test_no_events_have_the_columns_too() -> None:
    events, _ = read([])
    assert events.schema.names == ["user.id", "score", "time", "_ts_ms", "_arrival_ts_ms",
                                   "_topic", "_partition", "_offset", "_row"]  # fmt: skip


@given(st.lists(st.binary(max_size=40) | st.text(max_size=20).map(str.encode)))
def test_no_message_ends_the_consumer(values: list[bytes]) -> None:
    for form in ("json", "arrow"):
        events, rejects = read(list(values), format=form)
        assert events.num_rows + len({reject.place.offset for reject in rejects}) == len(values)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
)
JSON = (
    SCALARS
    | st.lists(SCALARS, max_size=2)
    | st.dictionaries(st.text(max_size=3), SCALARS, max_size=2)
)


@given(
    st.lists(
        st.fixed_dictionaries({"user.id": JSON, "time": JSON}, optional={"score": JSON, "v": JSON}),
        max_size=4,
    )
)
def test_any_json_is_an_event_or_a_letter_with_its_field(values: list[dict[str, Any]]) -> None:
    events, rejects = read([json.dumps(value).encode() for value in values])
    assert events.num_rows + len(rejects) == len(values)
    assert all(reject.field in ("user.id", "time", "score", "v") for reject in rejects)
