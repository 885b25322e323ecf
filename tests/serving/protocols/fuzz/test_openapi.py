"""Requests that schemathesis makes from the OpenAPI page of a running server, valid and invalid ones.

The page says what each release takes in: what is valid by it must be scored, and what is not must be refused.
Some things no JSON Schema says, and `_Fit` sees to them: columns are equally long, a shape counts the values,
an integer has no `.0`, and a head length belongs to the binary form.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode, Response
from schemathesis.specs.openapi.checks import positive_data_acceptance

from headwater.feature_store.schema import Dtype
from headwater.serving.kinds.scorer import Scorer
from headwater.serving.protocols.oip_schemas import HEAD_LENGTH
from headwater.serving.signature import LENGTH

JSON = "application/json"
EXAMPLES = 400
"""Requests of a round of the long run; the ordinary run sends a third."""
COMPARED = 4
"""Every so many valid requests have their rows scored again, one by one."""

HEALTH = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]

Kind = tuple[Any, GenerationMode, dict[str, Any]]


@pytest.fixture(scope="module")
def kinds(target: Any) -> list[Kind]:
    """Return what is asked: operation, valid or invalid, and path parameters where they are fixed."""
    page = schemathesis.openapi.from_url(f"http://{target.server.address}/openapi.json")
    positive, negative = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
    found: list[Kind] = []
    for path, operations in target.page["paths"].items():
        (method,) = operations
        operation = page[path][method.upper()]
        fixed = {"model": "texts", "version": 1} if "{version}" in path else {"model": "texts"}
        if path == "/v1/rank":
            found += [(operation, positive, {})] * 8 + [(operation, negative, {})] * 6
        elif "{model}" not in path and method == "post":
            found += [(operation, positive, {})] * 2 + [(operation, negative, {})]
        elif "{model}" in path:
            found += [(operation, positive, {}), (operation, positive, fixed)]
            if method == "post":
                found += [(operation, negative, {}), (operation, negative, fixed)]
            elif "{version}" in path:
                found.append((operation, negative, {}))
        else:
            found.append((operation, positive, {}))
    return found


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as opened:
        yield opened


def test_requests_made_from_the_page_are_answered_as_it_says(
    target: Any, kinds: list[Kind], session: requests.Session
) -> None:
    _round(target, kinds, session)


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_forty_thousand_requests_made_from_the_page(
    target: Any, kinds: list[Kind], session: requests.Session
) -> None:
    for number in range(target.ROUNDS):
        _round(target, kinds, session, number)
        if number % 10 == 9:
            print(target.report())
    target.check_memory()


def _round(
    target: Any, kinds: list[Kind], session: requests.Session, number: int | None = None
) -> None:
    strategies = [
        operation.as_strategy(generation_mode=mode, path_parameters=fixed or None)
        for operation, mode, fixed in kinds
    ]
    cases = st.sampled_from(range(len(kinds))).flatmap(lambda index: strategies[index])

    @settings(
        max_examples=EXAMPLES // 3 if number is None else EXAMPLES,
        suppress_health_check=HEALTH,
        phases=[Phase.generate, Phase.shrink],
    )
    @given(cases, st.integers(1, COMPARED))
    def fire(case: Case[Any], turn: int) -> None:
        _ask(target, case, session, is_compared=turn == COMPARED)

    (fire if number is None else seed(number)(fire))()
    target.end_round()


def _ask(target: Any, case: Case[Any], session: requests.Session, *, is_compared: bool) -> None:
    path = unquote(case.operation.path)
    assert case.meta is not None
    body: Any = case.body
    rows: list[dict[str, Any]] | None = None
    name = ""
    # Of the model that fills a template, the template says nothing; nor does a schema of binary data, nor
    # that of recommendations where no retriever is served.
    says_nothing = "{" in path or path in ("/v1/recommend", "/v1/similar")
    is_precise = case.method == "GET" or (not says_nothing and case.media_type == JSON)
    if case.meta.generation.mode.is_positive and is_precise and case.method == "POST":
        case.headers.pop(HEAD_LENGTH, None)
        if path == "/v1/rank":
            version = body.get("version")
            name = body["model"] if version is None else f"{body['model']}/{version}"
            rows = _fit_rank(body, target.scorers[name])
        else:
            name = path.split("/models/")[1].removesuffix("/infer").replace("/versions", "")
            rows = _fit_infer(body, target.scorers[name])
    response = case.call(session=session)
    target.statuses[response.status_code] += 1
    if rows is not None and response.status_code == 400:
        assert "no finite score" in response.json()["error"], response.json()
        return
    case.validate_response(
        response, excluded_checks=[] if is_precise else [positive_data_acceptance]
    )
    if rows is None:
        return
    assert response.status_code == 200
    if is_compared:
        target.check(name, rows, _scores(response))


def _fit_rank(body: dict[str, Any], scorer: Scorer) -> list[dict[str, Any]]:
    """Make columns equally long and integers whole; return what each candidate's row holds."""
    inputs = scorer.signature.inputs
    context: dict[str, Any] = body.get("context") or {}
    for name, value in context.items():
        context[name] = _whole(value, inputs[name].dtype)
    candidates = body["candidates"]
    if isinstance(candidates, list):
        for candidate in candidates:
            for name, value in candidate.items():
                candidate[name] = _whole(value, inputs[name].dtype)
        return [context | candidate for candidate in candidates]
    num_rows = min(map(len, candidates.values()))
    for name, values in candidates.items():
        candidates[name] = [_whole(value, inputs[name].dtype) for value in values[:num_rows]]
    return [
        context | {name: values[row] for name, values in candidates.items()}
        for row in range(num_rows)
    ]


def _fit_infer(body: dict[str, Any], scorer: Scorer) -> list[dict[str, Any]]:
    """Keep each tensor once, make shapes and data agree; return what each row holds."""
    signature = scorer.signature
    tensors = {tensor["name"]: tensor for tensor in body["inputs"]}
    for name in list(tensors):
        if name.endswith(LENGTH) and name.removesuffix(LENGTH) not in tensors:
            del tensors[name]
    if not tensors:
        (first, *_) = signature.inputs.values()
        tensors[first.name] = {"name": first.name, "data": []}
        tensors[first.name]["datatype"] = {"int64": "INT64", "double": "FP64"}.get(
            first.dtype, "BYTES"
        )
    body["inputs"] = list(tensors.values())
    flat: dict[str, list[Any]] = {}
    for name, tensor in tensors.items():
        dtype = signature.tensors[name].dtype
        values = [
            v for each in tensor["data"] for v in (each if isinstance(each, list) else [each])
        ]
        flat[name] = [_whole(value, dtype) for value in values]
    num_rows = min(map(len, flat.values()))
    has_candidates = any(signature.tensors[name].role == "candidate" for name in tensors)
    columns: dict[str, list[list[Any]]] = {}
    for name, values in flat.items():
        column = signature.tensors[name]
        width = len(values) // max(1, num_rows) if column.is_list else 1
        # Beside candidates, some context inputs are given once.
        once = has_candidates and column.role == "context" and len(name) % 2 == 0
        count = 1 if once and num_rows > 1 and not column.is_list else num_rows
        tensors[name]["shape"] = [count, width]
        flat[name] = values[: count * width]
        columns[name] = [flat[name][i * width : (i + 1) * width] for i in range(count)]
        columns[name] *= num_rows if count == 1 and num_rows > 1 else 1
    for name in tensors:
        if name.endswith(LENGTH):
            width = tensors[name.removesuffix(LENGTH)]["shape"][1]
            flat[name] = [abs(value or 0) % (width + 1) for value in flat[name]]
            columns[name] = [[value] for value in flat[name]]
            if len(flat[name]) == 1 and num_rows > 1:
                columns[name] *= num_rows
    for name, tensor in tensors.items():
        tensor["data"] = flat[name]
    return [_row(columns, row, scorer) for row in range(num_rows)]


def _row(columns: dict[str, list[list[Any]]], row: int, scorer: Scorer) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, values in columns.items():
        if scorer.signature.tensors[name].is_list:
            lengths = columns.get(name + LENGTH)
            found[name] = values[row][: None if lengths is None else lengths[row][0]]
        elif name in scorer.signature.inputs:
            found[name] = values[row][0]
    return found


def _whole(value: Any, dtype: Dtype) -> Any:
    """Return the value with the integers that JSON Schema takes for such, as 2.0, written as such."""
    if isinstance(value, list):
        return [_whole(each, dtype) for each in value]
    if dtype == "int64" and isinstance(value, float):
        return int(value)
    return value


def _scores(response: Response) -> Any:
    """Return the scores in an answer of either protocol, in either form."""
    if response.headers["content-type"] == ["application/octet-stream"]:
        head = int(response.headers[HEAD_LENGTH][0])
        return np.frombuffer(response.content[head:], "<f4")
    answer = response.json()
    return answer["scores"] if "scores" in answer else answer["outputs"][0]["data"]
