"""Tensors of the Open Inference Protocol, binary and mixed: sound ones are scored, damaged ones refused.

A request is built from rows that are known, so its scores can be compared with those of the rows scored
one by one. A damaged one may happen to be sound still; what is answered is then checked as an answer,
not by its numbers.
"""

from __future__ import annotations

import gzip
import http.client
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from headwater.feature_store.schema import INT64_MIN, Dtype
from headwater.serving.manifest import Input
from headwater.serving.protocols.oip_alike import DATATYPES
from headwater.serving.protocols.oip_messages import InferResponse
from headwater.serving.protocols.oip_schemas import HEAD_LENGTH
from headwater.serving.protocols.routes import Failure

EXAMPLES = 600
"""Requests of a round of the long run; the ordinary run sends a third."""

HEALTH = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]

BOMB = gzip.compress(bytes(64 << 20))
LONG = 1 << 20
DEEP = b"[" * 20_000 + b"]" * 20_000

_VALUES: dict[Dtype, SearchStrategy[Any]] = {
    "int64": st.one_of(
        st.integers(-3, 60), st.integers(INT64_MIN, -INT64_MIN - 1), st.sampled_from([INT64_MIN])
    ),
    "double": st.one_of(st.floats(), st.floats(-100, 100), st.integers(-5, 5).map(float)),
    "string": st.one_of(
        st.sampled_from(["", "new", "beta", "a b", "\u00fc\u4e2d", "acme", "a\0", "\0", "x" * 300]),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    ),
}
_PLAIN = st.text(st.sampled_from("abc\0"), min_size=4, max_size=4)
"""Strings of one length in ASCII, which are read in another way."""
_SHORT = st.text(st.sampled_from("ab\u00fc\u4e2d"), max_size=5)
"""Strings without a zero byte, which are read in a third way."""


@dataclass
class Tensor:
    """An input as it is sent."""

    head: dict[str, Any]
    tail: bytes | None
    """None where the data are in the JSON."""
    shape: tuple[int, int]
    """Of what it was made from."""


@dataclass
class Sent:
    """A request before it is put together, and what its rows hold."""

    model: str
    path: str
    rows: list[dict[str, Any]]
    tensors: list[Tensor]
    more: dict[str, Any] = field(default_factory=dict[str, Any])
    """Fields of the JSON beside the inputs."""
    encoding: str | None = None

    def build(self) -> tuple[dict[str, str], bytes]:
        """Return headers and body."""
        head = {"inputs": [tensor.head for tensor in self.tensors], **self.more}
        text = json.dumps(head).encode()
        tails = [tensor.tail for tensor in self.tensors if tensor.tail is not None]
        headers = {HEAD_LENGTH: str(len(text))} if tails else {}
        return headers, b"".join([text, *tails])


def _binary(values: list[Any], dtype: Dtype) -> bytes:
    if dtype == "string":
        encoded = [value.encode() for value in values]
        return b"".join(struct.pack("<I", len(each)) + each for each in encoded)
    return np.array(values, "<i8" if dtype == "int64" else "<f8").tobytes()


@st.composite
def _tensor(
    draw: DrawFn, column: Input, num_rows: int, form: str
) -> tuple[list[Tensor], list[Any]]:
    """Draw the tensors of an input, and its value in each row."""
    once = column.role == "context" and num_rows > 0 and draw(st.booleans())
    count = 1 if once else num_rows
    width = draw(st.integers(0, 4)) if column.is_list else 1
    value = _VALUES[column.dtype]
    if column.dtype == "string":
        value = draw(st.sampled_from([value, _PLAIN, _SHORT]))
    values = draw(st.lists(value, min_size=count * width, max_size=count * width))
    in_json = form == "json" or (form == "mixed" and draw(st.booleans()))
    tensors = [_put(column.name, column.dtype, [count, width], values, in_json=in_json)]
    if not column.is_list:
        return tensors, values * (num_rows if once else 1)
    lengths = [width] * count
    if draw(st.booleans()):
        lengths = draw(st.lists(st.integers(0, width), min_size=count, max_size=count))
        tensors.append(
            _put(f"{column.name}.length", "int64", [count, 1], lengths, in_json=form == "json")
        )
    lists = [values[i * width : i * width + length] for i, length in enumerate(lengths)]
    return tensors, lists * (num_rows if once else 1)


def _put(name: str, dtype: Dtype, shape: list[int], values: list[Any], *, in_json: bool) -> Tensor:
    head: dict[str, Any] = {"name": name, "datatype": DATATYPES[dtype], "shape": shape}
    if in_json:
        # A missing number is null or NaN, which `json.dumps` writes as it is.
        data = [None if v != v and i % 2 else v for i, v in enumerate(values)]
        return Tensor({**head, "data": data}, None, (shape[0], shape[1]))
    tail = _binary(values, dtype)
    sized = {**head, "parameters": {"binary_data_size": len(tail)}}
    return Tensor(sized, tail, (shape[0], shape[1]))


@st.composite
def _sound(draw: DrawFn, scorers: dict[str, Any]) -> Sent:
    """Draw a request that must be scored."""
    model = draw(st.sampled_from(sorted(scorers)))
    columns = list(scorers[model].graph.inputs)
    chosen = draw(st.lists(st.sampled_from(columns), min_size=1, unique_by=lambda c: c.name))
    # Without candidates, a context given once stands for one row.
    has_candidates = any(column.role == "candidate" for column in chosen)
    num_rows = draw(st.integers(0, 5) | st.integers(0, 60)) if has_candidates else 1
    # Alike inputs that follow each other in one form are read together.
    form = draw(st.sampled_from(["binary", "json", "mixed"]))
    tensors: list[Tensor] = []
    rows: list[dict[str, Any]] = [{} for _ in range(num_rows)]
    for column in chosen:
        sent, values = draw(_tensor(column, num_rows, form))
        tensors += sent
        for row, value in zip(rows, values, strict=True):
            row[column.name] = value
    name, _, version = model.partition("/")
    path = f"/v2/models/{name}/versions/{version}/infer" if version else f"/v2/models/{name}/infer"
    more = draw(
        st.sampled_from(
            [
                {},
                {"id": "r"},
                {"parameters": {"binary_data_output": True}},
                {"outputs": [{"name": "prob", "parameters": {"binary_data": True}}]},
                {"outputs": [{"name": "prob"}]},
            ]
        )
    )
    encoding = draw(st.sampled_from([None, None, "gzip", "deflate"]))
    return Sent(model, path, rows, draw(st.permutations(tensors)), more, encoding)


def _wrong_head(draw: DrawFn, sent: Sent, tensor: Tensor) -> None:
    """Change a field of a tensor's head."""
    rows, width = tensor.shape
    size = len(tensor.tail or b"")
    key, value = draw(
        st.sampled_from(
            [
                *(("shape", each) for each in (
                    [rows + 1, width], [rows, width + 1], [width, rows], [rows * width], [], [rows],
                    [rows, width, 1], [2**31, 2**31], [2**31, 0], [0, 2**31], [2**63, 1], [-1, 1],
                    [1e3, 1], ["1", 1], [None, 1], None, 5, [rows, width - 1], [0, width], [1, width],
                )),
                *(("parameters", {"binary_data_size": each}) for each in (
                    size + 1, size - 1, size + 8, 0, -8, 2**63, 2**64, 1e300, 8.0, "8", None, True, [8],
                )),
                *(("parameters", each) for each in (
                    {}, None, 5, {"shared_memory_region": "r"}, {"classification": 3}, {"x": {"y": 1}},
                )),
                *(("datatype", each) for each in (
                    "INT64", "FP64", "BYTES", "FP32", "INT32", "BOOL", "", None, 5, "x" * 5000,
                )),
                *(("name", each) for each in (
                    "item", "price", "word", "tags", "tags.length", "user", "recent.length", "", None, 5,
                    "prob", "x" * 5000, "\0",
                )),
                *(("data", each) for each in (
                    [1], [None], None, 5, {}, "x", [[[]]], ["\ud800"], [10**400], [1e308 * 10], [{}],
                )),
            ]
        )
    )  # fmt: skip
    tensor.head[key] = value


def _wrong_tail(draw: DrawFn, sent: Sent, tensor: Tensor) -> None:
    """Change the bytes of a tensor, with or without its size."""
    if tensor.tail is None:
        tensor.tail = draw(st.binary(max_size=24))
    elif tensor.tail:
        data = bytearray(tensor.tail)
        place = draw(st.integers(0, len(data) - 1))
        how = draw(st.sampled_from(["byte", "cut", "length", "utf8", "add", "long"]))
        if how == "byte":
            data[place] = draw(st.integers(0, 255))
        elif how == "cut":
            del data[place:]
        elif how == "length" and len(data) >= 4:
            data[:4] = struct.pack("<I", draw(st.sampled_from([0, 1, 255, 2**31, 2**32 - 1])))
        elif how == "utf8":
            data[place] = draw(st.sampled_from([0x80, 0xC0, 0xED, 0xFF]))
        elif how == "long":
            data = bytearray(struct.pack("<I", LONG) + bytes(LONG))
        else:
            data += draw(st.binary(min_size=1, max_size=9))
        tensor.tail = bytes(data)
    if draw(st.booleans()):
        tensor.head["parameters"] = {"binary_data_size": len(tensor.tail)}


def _wrong_list(draw: DrawFn, sent: Sent, tensor: Tensor) -> None:
    """Give a tensor twice, leave it out, or give lengths that are none."""
    how = draw(st.sampled_from(["twice", "out", "lengths"]))
    if how == "twice":
        sent.tensors.append(tensor)
    elif how == "out":
        sent.tensors.remove(tensor)
    else:
        value = draw(st.sampled_from([-1, 5, 2**31, 2**62, INT64_MIN]))
        rows = len(sent.rows)
        sent.tensors.append(_put("tags.length", "int64", [rows, 1], [value] * rows, in_json=False))


_DAMAGES: tuple[Callable[[DrawFn, Sent, Tensor], None], ...] = (
    _wrong_head,
    _wrong_head,
    _wrong_tail,
    _wrong_list,
)


def _wrong_frame(draw: DrawFn, headers: dict[str, str], body: bytes) -> bytes:
    """Change the length of the JSON in the headers, or bytes of the body wherever they are."""
    how = draw(st.sampled_from(["head", "cut", "flip", "add", "any", "nest", "huge"]))
    if how == "head":
        length = int(headers.get(HEAD_LENGTH, len(body)))
        around = [length - 1, length + 1, 0, -1, len(body), len(body) + 1, 2**63, 10**400]
        others = ["", "x", "1.5", "1e2", "\xb2", f"+{length}", f"{length} "]
        headers[HEAD_LENGTH] = draw(st.sampled_from([*map(str, around), *others]))
    elif how == "cut":
        body = body[: draw(st.integers(0, len(body)))]
    elif how == "flip":
        changed = bytearray(body)
        for _ in range(draw(st.integers(1, 4))):
            changed[draw(st.integers(0, len(body) - 1))] = draw(st.integers(0, 255))
        body = bytes(changed)
    elif how == "add":
        body += draw(st.binary(min_size=1, max_size=20))
    elif how == "any":
        body = draw(st.binary(max_size=60))
    else:
        headers.clear()
        data = DEEP if how == "nest" else b"[" + b"9" * draw(st.integers(20, 5000)) + b"]"
        body = b'{"inputs":[{"name":"item","datatype":"INT64","shape":[1,1],"data":%s}]}' % data
    return body


@st.composite
def _damaged(draw: DrawFn, scorers: dict[str, Any]) -> tuple[str, dict[str, str], bytes]:
    """Draw a request with up to three faults in its tensors, and perhaps one in its frame."""
    sent = draw(_sound(scorers))
    for _ in range(draw(st.integers(0, 3))):
        if sent.tensors:
            damage = draw(st.sampled_from(_DAMAGES))
            damage(draw, sent, draw(st.sampled_from(sent.tensors)))
    headers, body = sent.build()
    if draw(st.booleans()):
        body = _wrong_frame(draw, headers, body)
    encoding = draw(
        st.sampled_from([None] * 9 + ["gzip", "deflate", "br", "bomb", "", "gzip, gzip"])
    )
    if encoding == "bomb":
        headers["content-encoding"], body = "gzip", BOMB
    elif encoding is not None:
        headers["content-encoding"] = encoding
        if draw(st.booleans()):
            body = gzip.compress(body, 1)
        if draw(st.booleans()):
            body = body[: draw(st.integers(0, len(body)))]
    return sent.path, headers, body


def test_sound_tensors_are_scored_and_damaged_ones_refused(target: Any) -> None:
    _round(target)


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_sixty_thousand_requests_of_tensors(target: Any) -> None:
    for number in range(target.ROUNDS):
        _round(target, number)
        if number % 10 == 9:
            print(target.report())
    target.check_memory()


def _round(target: Any, number: int | None = None) -> None:
    client = _Client(target)

    @settings(
        max_examples=EXAMPLES // 3 if number is None else EXAMPLES,
        suppress_health_check=HEALTH,
        phases=[Phase.generate, Phase.shrink],
    )
    @given(_sound(target.scorers) | _damaged(target.scorers))
    def fire(request: Sent | tuple[str, dict[str, str], bytes]) -> None:
        if isinstance(request, Sent):
            client.ask_sound(request)
        else:
            client.ask(*request)

    (fire if number is None else seed(number)(fire))()
    target.end_round()


class _Client:
    """Sends requests on one connection for as long as the server keeps it."""

    def __init__(self, target: Any) -> None:
        self._target = target
        self._connection: http.client.HTTPConnection = target.server.connect()
        operation = target.page["paths"]["/v2/models/{model}/infer"]["post"]
        self._documented = {int(status) for status in operation["responses"]}

    def ask_sound(self, sent: Sent) -> None:
        """Send a sound request; its rows must have the scores that they have alone."""
        headers, body = sent.build()
        if sent.encoding is not None:
            headers["content-encoding"] = sent.encoding
            body = (gzip if sent.encoding == "gzip" else zlib).compress(body, 1)
        status, found = self.ask(sent.path, headers, body)
        if status == 400:
            assert "no finite score" in found, (found, sent)
            return
        assert status == 200, (found, sent)
        self._target.check(sent.model, sent.rows, found)

    def ask(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        """Send a request; return the status, and the scores or the message of an answer as documented."""
        self._connection.request("POST", path, body, headers)
        answer = self._connection.getresponse()
        data = answer.read()
        self._target.statuses[answer.status] += 1
        assert answer.status in self._documented, (answer.status, data)
        if answer.status != 200:
            assert answer.headers["content-type"] == "application/json"
            message = msgspec.json.decode(data, type=Failure).error
            assert 0 < len(message) < 600, message
            return answer.status, message
        head = answer.headers[HEAD_LENGTH]
        found = msgspec.json.decode(data[: None if head is None else int(head)], type=InferResponse)
        (output,) = found.outputs
        scores: Any = output.data
        if head is not None:
            assert output.parameters == {"binary_data_size": len(data) - int(head)}
            scores = np.frombuffer(data, "<f4", offset=int(head))
        scores = np.asarray(scores, np.float64)
        assert output.shape == [len(scores)]
        assert np.all((scores >= 0) & (scores <= 1))
        return 200, scores
