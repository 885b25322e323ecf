"""The Open Inference Protocol, asked by the standard client in every form that it sends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as aio
from tritonclient.utils import InferenceServerException

from headwater.feature_store.schema import INT64_MIN

N = 5


@pytest.fixture
def client(server: Any) -> Iterator[Any]:
    client = triton.InferenceServerClient(server.address)
    yield client
    client.close()


@pytest.fixture
def arrays(make_rows: Callable[..., Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Return the tensors of five rows, as a client makes them."""
    rows = make_rows(N)
    tags = [[*row, *[""] * (3 - len(row))] for row in rows["tags"]]
    return {
        "user": np.array([[u if u is not None else INT64_MIN] for u in rows["user"]], np.int64),
        "country": np.array([[c or ""] for c in rows["country"]], object),
        "item": np.array(rows["item"], np.int64).reshape(-1, 1),
        "price": np.array(rows["price"], np.float64).reshape(-1, 1),
        "brand": np.array([[b or ""] for b in rows["brand"]], object),
        "tags": np.array(tags, object),
        "tags.length": np.array([[len(row)] for row in rows["tags"]], np.int64),
    }


@pytest.fixture
def expected(
    shop: Path, make_rows: Callable[..., Any], offline: Callable[..., Any]
) -> Callable[[int], Any]:
    """Give the offline scores of the same rows, without the list `recent`, by version."""
    rows = make_rows(N)
    del rows["recent"]
    return lambda version: offline(shop / "shop" / str(version), rows)


def _inputs(arrays: dict[str, Any], *, binary: bool) -> list[Any]:
    types = {"i": "INT64", "f": "FP64", "O": "BYTES"}
    inputs: list[Any] = []
    for name, array in arrays.items():
        tensor = triton.InferInput(name, list(array.shape), types[array.dtype.kind])
        tensor.set_data_from_numpy(array, binary_data=binary)
        inputs.append(tensor)
    return inputs


def test_client_sees_server_and_model_live_and_ready(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("shop")
    assert client.is_model_ready("shop", "2")
    assert not client.is_model_ready("shop", "77")
    assert not client.is_model_ready("nothing")


def test_client_reads_metadata(client: Any) -> None:
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    metadata = client.get_model_metadata("shop")
    assert metadata["versions"] == ["3", "2"]
    by_name = {tensor["name"]: tensor for tensor in metadata["inputs"]}
    assert by_name["price"] == {"name": "price", "datatype": "FP64", "shape": [-1, 1]}
    assert by_name["tags"] == {"name": "tags", "datatype": "BYTES", "shape": [-1, -1]}
    assert by_name["tags.length"]["datatype"] == "INT64"
    assert metadata["outputs"] == [{"name": "prob", "datatype": "FP32", "shape": [-1]}]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("version", ["", "2"])
def test_client_infers_what_offline_gives(
    client: Any,
    arrays: dict[str, Any],
    expected: Callable[[int], Any],
    binary_in: bool,
    binary_out: bool,
    compression: str | None,
    version: str,
) -> None:
    # In JSON, the client writes it as NaN.
    assert np.isnan(arrays["price"]).any()
    answer = client.infer(
        "shop",
        _inputs(arrays, binary=binary_in),
        model_version=version,
        outputs=[triton.InferRequestedOutput("prob", binary_data=binary_out)],
        request_id="r1",
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
    )
    scores = answer.as_numpy("prob")
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected(int(version or 3)), atol=1e-7)
    reply = answer.get_response()
    assert reply["model_version"] == version or reply["model_version"] == "3"
    assert reply["id"] == "r1"
    assert ("data" in reply["outputs"][0]) is not binary_out


def test_client_that_names_no_output_gets_binary(
    client: Any, arrays: dict[str, Any], expected: Callable[[int], Any]
) -> None:
    answer = client.infer("shop", _inputs(arrays, binary=True))
    np.testing.assert_allclose(answer.as_numpy("prob"), expected(3), atol=1e-7)


def test_client_gets_the_message_of_an_error(client: Any, arrays: dict[str, Any]) -> None:
    arrays["user"] = arrays["user"].astype(np.float64)
    with pytest.raises(
        InferenceServerException, match=r"\$\.inputs\[0\]\.datatype: expected INT64"
    ) as caught:
        client.infer("shop", _inputs(arrays, binary=True))
    assert caught.value.status() == "400"


def test_client_infers_asynchronously(
    client: Any, arrays: dict[str, Any], expected: Callable[[int], Any]
) -> None:
    waiting = [client.async_infer("shop", _inputs(arrays, binary=True)) for _ in range(4)]
    for request in waiting:
        np.testing.assert_allclose(request.get_result().as_numpy("prob"), expected(3), atol=1e-7)


@pytest.mark.parametrize("binary", [True, False])
def test_client_sends_infinities_in_either_form(client: Any, binary: bool) -> None:
    price = np.array([[np.inf], [-np.inf], [np.nan], [1e300]])
    scores = client.infer("shop", _inputs({"price": price}, binary=binary)).as_numpy("prob")
    np.testing.assert_array_equal(scores[[0, 1]], [1, 0])
    assert 0 < scores[2] < 1


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"sequence_id": 5, "sequence_start": True},
        {"sequence_id": "five", "sequence_end": True},
        {"priority": 1, "timeout": 1_000_000},
        {"parameters": {"text": "a", "number": 1, "fraction": 0.5, "flag": True, "none": None}},
        {"query_params": {"trace": "a", "of": ["b", "c d"]}},
        {"headers": {"X-Trace": "a"}},
        {"request_id": "r\u00fc 1"},
        {"outputs": []},
    ],
)
def test_client_gives_what_is_of_no_use_here_and_is_answered(
    client: Any,
    arrays: dict[str, Any],
    expected: Callable[[int], Any],
    binary: bool,
    options: dict[str, Any],
) -> None:
    # A copy: the client adds to the headers that it is given.
    answer = client.infer("shop", _inputs(arrays, binary=binary), **deepcopy(options))
    np.testing.assert_allclose(answer.as_numpy("prob"), expected(3), atol=1e-7)
    assert answer.get_response().get("id", "") == options.get("request_id", "")


def test_client_learns_what_is_not_supported(client: Any, arrays: dict[str, Any]) -> None:
    def error(inputs: list[Any], *outputs: Any) -> str:
        with pytest.raises(InferenceServerException) as caught:
            client.infer("shop", inputs, outputs=outputs)
        assert caught.value.status() == "400"
        return caught.value.message()

    inputs = _inputs(arrays, binary=True)
    classes = triton.InferRequestedOutput("prob", class_count=1)
    assert error(inputs, classes) == "$.outputs[0].parameters.classification: not supported"
    shared = triton.InferRequestedOutput("prob")
    shared.set_shared_memory("region", 20)
    assert "$.outputs[0].parameters.shared_memory_region: not" in error(inputs, shared)
    inputs[0].set_shared_memory("region", 40)
    assert "$.inputs[0]: expected data or parameters.binary_data_size, found shared" in error(
        inputs
    )


def test_asynchronous_client_infers_in_either_form(
    server: Any, arrays: dict[str, Any], expected: Callable[[int], Any]
) -> None:
    async def infer() -> list[Any]:
        async with aio.InferenceServerClient(server.address) as client:
            return [
                await client.infer("shop", _inputs(arrays, binary=binary), request_id="r")
                for binary in (True, False)
            ]

    for answer in asyncio.run(infer()):
        np.testing.assert_allclose(answer.as_numpy("prob"), expected(3), atol=1e-7)
