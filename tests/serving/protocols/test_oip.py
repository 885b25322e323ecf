"""The Open Inference Protocol, asked by hand; `test_triton_client.py` asks it by the standard client."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headwater.feature_store.schema import INT64_MIN


def _post(server: Any, inputs: list[dict[str, Any]], **more: Any) -> tuple[int, Any]:
    return server.post("/v2/models/shop/infer", {"inputs": inputs, **more})


def _scores(answer: tuple[int, Any]) -> list[float]:
    status, body = answer
    assert status == 200, body
    return body["outputs"][0]["data"]


def test_null_is_missing_in_every_dtype(server: Any) -> None:
    def ask(user: Any, price: Any, brand: Any) -> list[float]:
        return _scores(
            _post(
                server,
                [
                    {"name": "user", "datatype": "INT64", "shape": [2, 1], "data": [user, 5]},
                    {"name": "price", "datatype": "FP64", "shape": [2, 1], "data": [[price], [2]]},
                    {"name": "brand", "datatype": "BYTES", "shape": [2, 1], "data": [brand, "x"]},
                ],
            )
        )

    nothing = _scores(
        _post(server, [{"name": "item", "datatype": "INT64", "shape": [1, 1], "data": [None]}])
    )
    assert ask(None, None, None)[0] == pytest.approx(nothing[0])
    assert ask(INT64_MIN, None, "") == ask(None, None, None)
    assert ask(5, 2, "x")[0] == ask(5, 2, "x")[1]


@pytest.mark.parametrize("value", [None, {}])
def test_what_may_be_left_out_may_be_null(server: Any, value: Any) -> None:
    item = {"name": "item", "datatype": "INT64", "shape": [2, 1], "data": [1, 2]}
    price = {"name": "price", "datatype": "FP64", "shape": [2, 1], "data": [1, 2]}
    expected = _scores(_post(server, [item, price]))
    assert expected == _scores(_post(server, [item, price], id=None, parameters=value))
    assert expected == _scores(_post(server, [item, price], outputs=None))
    assert expected == _scores(_post(server, [{**item, "parameters": value}, price]))
    outputs = [{"name": "prob", "parameters": value}]
    assert expected == _scores(_post(server, [item, price], outputs=outputs))


def test_null_asks_for_neither_form(server: Any) -> None:
    def ask(asked: Any, **more: Any) -> Any:
        outputs = [{"name": "prob", "parameters": asked}]
        head, _ = _binary({"inputs": [_ITEM], "outputs": outputs, **more}, b"")
        connection = server.connect()
        connection.request("POST", "/v2/models/shop/infer", head)
        answer = connection.getresponse()
        answer.read()
        return answer.headers["content-type"]

    for_all = {"parameters": {"binary_data_output": True}}
    for asked in (None, {}, {"binary_data": None}):
        assert ask(asked) == "application/json"
        assert ask(asked, **for_all) == "application/octet-stream"
    assert ask({"binary_data": False}, **for_all) == "application/json"


def test_null_data_leave_place_to_binary_ones(server: Any) -> None:
    item = {"name": "item", "datatype": "INT64", "shape": [1, 1], "data": None}
    head = {"inputs": [{**item, "parameters": {"binary_data_size": 8}}], "outputs": None}
    body, headers = _binary(head, (7).to_bytes(8, "little"))
    answer = server.request("POST", "/v2/models/shop/infer", body, headers)
    assert _scores(answer) == _scores(_post(server, [{**item, "data": [7]}]))


def test_nested_data_equals_flat_data(server: Any) -> None:
    def ask(data: Any) -> list[float]:
        return _scores(
            _post(server, [{"name": "tags", "datatype": "BYTES", "shape": [2, 2], "data": data}])
        )

    flat = ask(["new", "used", "sale", "used"])
    assert flat == ask([["new", "used"], ["sale", "used"]])
    assert flat == ask([[["new"], "used"], [["sale", "used"]]])


def test_list_without_lengths_is_as_long_as_its_tensor(server: Any) -> None:
    tags = {"name": "tags", "datatype": "BYTES", "shape": [1, 2], "data": ["new", "used"]}
    lengths = {"name": "tags.length", "datatype": "INT64", "shape": [1, 1], "data": [2]}
    assert _scores(_post(server, [tags])) == _scores(_post(server, [tags, lengths]))


def test_context_given_once_equals_context_in_each_row(server: Any) -> None:
    item = {"name": "item", "datatype": "INT64", "shape": [3, 1], "data": [1, 2, 3]}
    once = {"name": "user", "datatype": "INT64", "shape": [1, 1], "data": [9]}
    each = {"name": "user", "datatype": "INT64", "shape": [3, 1], "data": [9, 9, 9]}
    country = {"name": "country", "datatype": "BYTES", "shape": [1, 1], "data": ["fr"]}
    assert _scores(_post(server, [item, once, country])) == _scores(
        _post(server, [item, each, country])
    )


@pytest.mark.parametrize(
    "strings",
    [
        ["acme", "acme", "nope"],
        ["acme", "globex", ""],
        ["acme", "ünicode", "globex"],
        ["ünicode", "ünicode", "ünicode"],
        ["a" * 127, "a" * 128, "a" * 300],
        ["", "", ""],
        ["a\0b", "\0\0\0", "acm"],
    ],
)
def test_binary_strings_equal_json_strings(server: Any, strings: list[str]) -> None:
    tensor = {"name": "brand", "datatype": "BYTES", "shape": [3, 1]}
    encoded = [string.encode() for string in strings]
    tail = b"".join(len(each).to_bytes(4, "little") + each for each in encoded)
    sized = {**tensor, "parameters": {"binary_data_size": len(tail)}}
    body, headers = _binary({"inputs": [sized]}, tail)
    answer = server.request("POST", "/v2/models/shop/infer", body, headers)
    assert _scores(answer) == _scores(_post(server, [{**tensor, "data": strings}]))


def test_no_rows_give_no_scores(server: Any) -> None:
    item = {"name": "item", "datatype": "INT64", "shape": [0, 1], "data": []}
    assert _scores(_post(server, [item])) == []
    tags = {"name": "tags", "datatype": "BYTES", "shape": [2, 0], "data": []}
    assert len(_scores(_post(server, [tags]))) == 2


_ITEM_1 = {"name": "item", "datatype": "INT64", "shape": [1, 1], "data": [1]}
_USERS = {"name": "user", "datatype": "INT64", "shape": [8000, 1], "data": [1] * 8000}
_NOTHING = {"name": "recent", "datatype": "INT64", "shape": [2**31, 0], "data": []}
_LONG = {"name": "recent", "datatype": "INT64", "shape": [1, 400_000], "data": [1] * 400_000}


@pytest.mark.parametrize(
    ("inputs", "status", "message"),
    [
        (
            [_ITEM_1, _NOTHING],
            400,
            "input 'recent': expected 1 row (as 'item' has 1), found 2147483648",
        ),
        (
            [_USERS, _NOTHING, {**_ITEM_1, "shape": [2, 1], "data": [1, 2]}],
            400,
            "input 'user': expected 2 rows or 1 (as 'item' has 2), found 8000",
        ),
        (
            [_USERS, _LONG],
            413,
            "input 'recent': a list of 400000 values for each of 8000 rows: expected at most 16777216",
        ),
    ],
)
def test_context_that_would_be_made_too_large_is_refused(
    server: Any, inputs: list[dict[str, Any]], status: int, message: str
) -> None:
    answer = _post(server, inputs)
    assert answer[0] == status, answer
    assert message in answer[1]["error"]


def test_integer_beyond_2_to_53_is_exact(server: Any) -> None:
    def ask(lengths: int) -> tuple[int, Any]:
        recent = {"name": "recent", "datatype": "INT64", "shape": [1, 2], "data": [lengths, 0]}
        return _post(server, [recent])

    assert ask(2**63 - 1)[0] == 200
    assert ask(-(2**63))[0] == 200
    status, body = ask(2**63)
    assert (status, body["error"].split(":")[0]) == (400, "$.inputs[0].data[0]")


_ITEM = {"name": "item", "datatype": "INT64", "shape": [2, 1], "data": [1, 2]}


def _item(**changes: Any) -> dict[str, Any]:
    return {"inputs": [{**_ITEM, **changes}]}


_BAD: dict[str, tuple[Any, str]] = {
    "not JSON": (b"{", "body: expected valid JSON"),
    "empty": (b"", "body: expected valid JSON"),
    "not UTF-8": (b'{"inputs": [], "id": "\xff"}', "body: expected valid JSON"),
    "lone surrogate": (b'{"inputs": [], "id": "\\ud800"}', "body: expected valid JSON"),
    "not an object": ([], "$: Expected `object`, got `array`"),
    "no inputs": ({}, "$: Object missing required field `inputs`"),
    "inputs of a wrong type": ({"inputs": {}}, "$.inputs: Expected `array`, got `object`"),
    "inputs empty": ({"inputs": []}, "inputs: expected at least one input, found none"),
    "input without shape": (
        {"inputs": [{"name": "item", "datatype": "INT64"}]},
        "$.inputs[0]: Object missing required field `shape`",
    ),
    "unknown input": (
        _item(name="itme"),
        "$.inputs[0].name: unknown input 'itme'. Did you mean 'item'?",
    ),
    "given twice": ({"inputs": [_ITEM, _ITEM]}, "$.inputs[1].name: input 'item' is given twice"),
    "wrong datatype": (
        _item(datatype="INT32"),
        "$.inputs[0].datatype: expected INT64 for 'item', found INT32",
    ),
    "three dimensions": (_item(shape=[2, 1, 1]), "$.inputs[0].shape: expected two dimensions"),
    "no dimension": (_item(shape=[]), "$.inputs[0].shape: expected two dimensions"),
    "negative shape": (_item(shape=[-2, 1]), "$.inputs[0].shape[0]: Expected `int` >= 0"),
    "huge shape": (_item(shape=[2**31, 2**31]), "$.inputs[0].data: expected 4611686018427387904"),
    "rows of nothing": (
        {"inputs": [{"name": "tags", "datatype": "BYTES", "shape": [2**31, 0], "data": []}]},
        "2147483648 rows: expected at most",
    ),
    "two columns": (_item(shape=[1, 2]), "$.inputs[0].shape: expected shape [N, 1] of 'item'"),
    "too few values": (
        _item(shape=[3, 1]),
        "$.inputs[0].data: expected 3 values, as shape [3, 1] says, found 2",
    ),
    "no data": (
        {"inputs": [{"name": "item", "datatype": "INT64", "shape": [2, 1]}]},
        "$.inputs[0]: expected data or parameters.binary_data_size",
    ),
    "data is a number": (_item(data=5), "$.inputs[0].data: expected an array, found 5"),
    "data is an object": (_item(data={}), "$.inputs[0].data: expected an array, found {}"),
    "text for an integer": (
        _item(data=[1, "2"]),
        "$.inputs[0].data[1]: expected an integer of 64 bits or null, found '2'",
    ),
    "fraction for an integer": (_item(data=[1, 2.5]), "$.inputs[0].data[1]: expected an integer"),
    "deep nesting": (
        b'{"inputs":[{"name":"item","datatype":"INT64","shape":[2,1],"data":'
        + b"[" * 50_000
        + b"]" * 50_000
        + b"}]}",
        "nested too deeply",
    ),
    "number beyond double": (
        b'{"inputs":[{"name":"price","datatype":"FP64","shape":[1,1],"data":[1e999]}]}',
        "$.inputs[0].data: expected valid JSON, found Number out of range",
    ),
    "NaN for an integer": (
        _item(data=[1, float("nan")]),
        "$.inputs[0].data[1]: expected an integer of 64 bits or null, found nan",
    ),
    "infinity for a string": (
        _item(name="brand", datatype="BYTES", data=[["a"], [float("-inf")]]),
        "$.inputs[0].data[1]: expected a string or null, found -inf",
    ),
    "NaN for an array": (
        _item(name="price", datatype="FP64", data=float("nan")),
        "$.inputs[0].data: expected an array, found nan",
    ),
    "NaN in a shape": (
        _item(shape=[2, float("nan")]),
        "$.inputs[0].shape[1]: NaN and infinities are taken as values of inputs alone",
    ),
    "rows disagree": (
        {
            "inputs": [
                _ITEM,
                {"name": "price", "datatype": "FP64", "shape": [3, 1], "data": [1, 2, 3]},
            ]
        },
        "input 'price': expected 2 rows (as 'item' has 2), found 3",
    ),
    "context rows disagree": (
        {
            "inputs": [
                _ITEM,
                {"name": "user", "datatype": "INT64", "shape": [3, 1], "data": [1, 2, 3]},
            ]
        },
        "input 'user': expected 2 rows or 1 (as 'item' has 2), found 3",
    ),
    "rows of context for one candidate": (
        {
            "inputs": [
                {"name": "user", "datatype": "INT64", "shape": [2, 1], "data": [1, 2]},
                {"name": "item", "datatype": "INT64", "shape": [1, 1], "data": [1]},
            ]
        },
        "input 'user': expected 1 row (as 'item' has 1), found 2",
    ),
    "a computed feature": (
        _item(name="parity"),
        "$.inputs[0].name: 'parity' is computed from 'item'; send 'item' instead",
    ),
    "length beyond the list": (
        {
            "inputs": [
                {"name": "tags", "datatype": "BYTES", "shape": [1, 1], "data": ["new"]},
                {"name": "tags.length", "datatype": "INT64", "shape": [1, 1], "data": [2]},
            ]
        },
        "input 'tags.length': expected lengths from 0 to 1",
    ),
    "length without a list": (
        {
            "inputs": [{"name": "tags.length", "datatype": "INT64", "shape": [1, 1], "data": [0]}]
        },
        "input 'tags': expected beside 'tags.length'",
    ),
    "unknown output": (
        {"inputs": [_ITEM], "outputs": [{"name": "probe"}]},
        "$.outputs[0].name: unknown output 'probe'. Did you mean 'prob'?",
    ),
    "classification": (
        {"inputs": [_ITEM], "outputs": [{"name": "prob", "parameters": {"classification": 3}}]},
        "$.outputs[0].parameters.classification: not supported",
    ),
    "data is null": (_item(data=None), "$.inputs[0]: expected data or parameters.binary_data_size"),
    "data in both forms": (
        _item(parameters={"binary_data_size": 16}),
        "$.inputs[0].parameters.binary_data_size: expected either data or binary data",
    ),
    "binary data beyond the body": (
        _item(data=None, parameters={"binary_data_size": 16}),
        "$.inputs[0].parameters.binary_data_size: expected an integer up to the 0 bytes left",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("body", "message"), _BAD.values(), ids=_BAD.keys())
def test_bad_input_is_refused_with_its_path(server: Any, body: Any, message: str) -> None:
    status, answer = server.post("/v2/models/shop/infer", body)
    assert status in (400, 413)
    assert message in answer["error"]
    assert len(answer["error"]) < 500


def _binary(head: dict[str, Any], tail: bytes, *, length: str | None = None) -> Any:
    data = json.dumps(head).encode()
    return data + tail, {"Inference-Header-Content-Length": length or str(len(data))}


def _tensor(name: str, datatype: str, rows: int, size: Any) -> dict[str, Any]:
    return {
        "inputs": [
            {
                "name": name,
                "datatype": datatype,
                "shape": [rows, 1],
                "parameters": {"binary_data_size": size},
            }
        ]
    }


_BAD_BINARY: dict[str, tuple[Any, str]] = {
    "head beyond the body": (_binary({}, b"", length="99"), "expected an integer from 0 to 2"),
    "head of no number": (_binary({}, b"", length="x"), "expected an integer from 0 to 2"),
    "head of a negative number": (_binary({}, b"", length="-1"), "expected an integer from 0 to 2"),
    "size is text": (_binary(_tensor("item", "INT64", 1, "8"), b"1" * 8), "expected an integer"),
    "size is negative": (_binary(_tensor("item", "INT64", 1, -8), b"1" * 8), "expected an integer"),
    "size beyond the body": (_binary(_tensor("item", "INT64", 2, 16), b"1" * 8), "8 bytes left"),
    "size against the shape": (_binary(_tensor("item", "INT64", 2, 8), b"1" * 8), "16 bytes, as"),
    "bytes left over": (_binary(_tensor("item", "INT64", 1, 8), b"1" * 9), "body: expected"),
    "string cut short": (
        _binary(_tensor("brand", "BYTES", 1, 8), b"\x09\0\0\0abcd"),
        "$.inputs[0], binary data[0]: expected a length of 4 bytes",
    ),
    "string length cut short": (
        _binary(_tensor("brand", "BYTES", 1, 2), b"\x09\0"),
        "binary data[0]: expected a length of 4 bytes",
    ),
    "strings too many": (
        _binary(_tensor("brand", "BYTES", 1, 10), b"\x01\0\0\0a\x01\0\0\0b"),
        "expected 1 strings, as shape [1, 1] says, found 2",
    ),
    "string not UTF-8": (
        _binary(_tensor("brand", "BYTES", 1, 5), b"\x01\0\0\0\xff"),
        "binary data[0]: expected UTF-8",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("request_", "message"), _BAD_BINARY.values(), ids=_BAD_BINARY.keys())
def test_bad_binary_tensor_is_refused(server: Any, request_: Any, message: str) -> None:
    body, headers = request_
    status, answer = server.request("POST", "/v2/models/shop/infer", body, headers)
    assert status == 400
    assert message in answer["error"]
