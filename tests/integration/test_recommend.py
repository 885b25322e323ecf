"""Retrieval models from a log to lists: the service, `headwater recommend` and torch give the same."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from headwater.pipelines import export, prepare, recommend, train
from headwater.pipelines.cli import main
from headwater.pipelines.job import parse_job
from headwater.serving.kinds.retriever import Retriever
from headwater.serving.release import load_release

pytestmark = pytest.mark.timeout(600)

ITEMS = 40
MODELS: dict[str, dict[str, Any]] = {
    "sasrec": {"type": "sasrec", "embedding_dim": 8, "max_length": 5},
    "lightgcn": {"type": "lightgcn", "embedding_dim": 8},
    "ease": {"type": "ease", "l2": 10.0},
}
Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with releases of three retrieval models, and of a click model that ranks."""
    folder = tmp_path_factory.mktemp("recommend")
    random = np.random.default_rng(5)
    rows = [
        (f"user {user}", int(random.integers(0, ITEMS // 4)) * 4 + user % 4, at)
        for user in range(60)
        for at in range(random.integers(6, 10))
    ]
    log = pl.DataFrame(rows, schema=["who", "what", "at"], orient="row")
    log.write_parquet(folder / "log.parquet")
    items = pl.DataFrame(
        {
            "what": range(ITEMS),
            "year": [1980 + item for item in range(ITEMS)],
            "tags": [["a", "b"] if item % 2 else ["c"] for item in range(ITEMS)],
        }
    )
    items.write_parquet(folder / "items.parquet")
    source = {"source": str(folder / "log.parquet")}
    for name, model in MODELS.items():
        job = parse_job(
            {
                "name": name,
                "data": {
                    **source,
                    "split": {"by": "leave-one-out", "user": "who", "time": "at"},
                    "items": {"path": str(folder / "items.parquet")},
                },
                "interactions": {"user": "who", "item": "what", "time": "at"},
                "model": model,
                "train": {"epochs": 2, "batch_size": 64, "device": "cpu"},
            }
        )
        run = train(job, prepare(job, folder / "prepared"), runs=folder / "runs")
        export(run, folder / "releases")
    clicks = log.join(items, on="what").with_columns(
        label=(pl.col("year") % 3 == 0).cast(pl.Int8), hour=pl.col("at") % 24
    )
    clicks.write_parquet(folder / "clicks.parquet")
    columns = [{"name": name, "encoder": "vocabulary"} for name in ("what", "year", "hour")]
    job = parse_job(
        {
            "name": "ranker",
            "data": {
                "source": str(folder / "clicks.parquet"),
                "split": {"by": "ratio", "valid": 0.2, "test": 0.2},
            },
            "features": {"label": "label", "columns": columns},
            "model": {"type": "fm", "embedding_dim": 4},
            "train": {"epochs": 1, "batch_size": 64, "device": "cpu"},
            "export": {"context": ["hour"]},
        }
    )
    export(train(job, prepare(job, folder / "prepared"), runs=folder / "runs"), folder / "releases")
    return folder


@pytest.fixture(scope="module")
def ask(folder: Path) -> Iterator[Ask]:
    """Return a function that asks a service on the releases: path and body to the answer."""
    command = [sys.executable, "-m", "headwater.pipelines.cli", "serve", str(folder / "releases")]
    service = subprocess.Popen(
        [*command, "--port", "0", "--json"], stdout=subprocess.PIPE, text=True
    )
    assert service.stdout is not None
    url = json.loads(service.stdout.readline())["url"]

    def post(path: str, **body: Any) -> Any:
        request = urllib.request.Request(f"{url}{path}", json.dumps(body).encode(), method="POST")
        while True:
            try:
                with urllib.request.urlopen(request) as response:
                    return json.loads(response.read())
            except urllib.error.HTTPError as error:
                failure = json.loads(error.read())
                if error.code == 503:  # the releases are still being loaded
                    continue
                return failure

    for name in (*MODELS, "ranker"):
        while "error" in (answer := _probe(post, name)) and "being loaded" in answer["error"]:
            pass
    yield post
    service.terminate()
    assert service.wait() == 0
    service.stdout.close()


def _probe(post: Ask, name: str) -> Any:
    if name == "ranker":
        return post("/v1/rank", model=name, candidates=[{"what": 1}])
    query = {"user": "user 1"} if name == "lightgcn" else {"history": [1]}
    return post("/v1/recommend", model=name, queries=[query])


def queries_of(folder: Path, name: str) -> list[Any]:
    """Return real queries: users, or their histories."""
    log = pl.read_parquet(folder / "log.parquet").sort("who", "at", maintain_order=True)
    by_user = log.group_by("who", maintain_order=True).agg("what")
    return by_user.get_column("who" if name == "lightgcn" else "what").to_list()


@pytest.mark.parametrize("name", MODELS)
def test_lists_of_the_service_and_the_command_are_those_of_every_score(
    folder: Path, ask: Ask, name: str
) -> None:
    asked = queries_of(folder, name)
    key = "user" if name == "lightgcn" else "history"
    answer = ask("/v1/recommend", model=name, k=7, queries=[{key: each} for each in asked])
    online = [[each["item"] for each in one["items"]] for one in answer["answers"]]
    column = "who" if name == "lightgcn" else "what"
    pl.DataFrame({column: asked}).write_parquet(folder / f"{name}.parquet")
    recommend(folder / "releases" / name, folder / f"{name}.parquet", folder / "out.parquet", k=7)
    offline = pl.read_parquet(folder / "out.parquet")
    assert offline.get_column("items").to_list() == online
    assert offline.columns == [column, "items", "scores", "known"]
    retriever = load_release(folder / "releases" / name / "1", Retriever)
    for history, items, scores in zip(
        asked, online, offline.get_column("scores").to_list(), strict=True
    ):
        # All items in one list, without those of the history, are the scores of the model.
        dropped = [retriever.masked(history)]
        whole, _ = retriever.answer(
            retriever.arrays([history]), ITEMS, allowed=None, dropped=dropped
        )
        places, every = whole[0]
        order = sorted(range(len(places)), key=lambda at: (-every[at], places[at]))[:7]
        assert [retriever.items.ids[places[at]] for at in order] == items
        assert np.allclose([every[at] for at in order], scores, atol=1e-6)
        if key == "history":
            assert not {*items} & {*history}


@pytest.mark.parametrize("name", MODELS)
def test_a_filter_is_filled_whenever_enough_items_pass(folder: Path, ask: Ask, name: str) -> None:
    query = {"user": "user 3"} if name == "lightgcn" else {"history": [3, 7]}
    common = {"model": name, "queries": [query | {"seen": []}]}
    found = ask("/v1/recommend", **common, k=ITEMS)["answers"][0]["items"]
    assert len(found) == len({each["item"] for each in found})
    allowed = {item for item in range(ITEMS) if item % 2 and item >= 20}
    rules = {"filter": {"year": {"ge": 2000}, "tags": "a"}}
    passing = ask("/v1/recommend", **common, k=ITEMS, **rules)["answers"][0]["items"]
    assert [each["item"] for each in passing] == [e["item"] for e in found if e["item"] in allowed]
    some = ask("/v1/recommend", **common, k=4, **rules, block=[21], allow=[21, 23, 25, 2])
    assert {each["item"] for each in some["answers"][0]["items"]} <= {23, 25}
    none = ask("/v1/recommend", **common, filter={"year": 1})
    assert none["answers"][0]["items"] == []


@pytest.mark.parametrize("name", MODELS)
def test_a_query_of_which_nothing_is_known_gets_popular_items_and_is_told(
    folder: Path, ask: Ask, name: str
) -> None:
    unknown = {"user": "nobody"} if name == "lightgcn" else {"history": [777, None]}
    answer = ask("/v1/recommend", model=name, queries=[unknown], filter={"year": {"lt": 2000}}, k=5)
    items = load_release(folder / "releases" / name / "1", Retriever).items
    order = [items.ids[place] for place in items.by_events if items.ids[place] < 20][:5]
    found = answer["answers"][0]
    assert [each["item"] for each in found["items"]] == order
    assert "popularity" in found["fallback"]
    if name != "lightgcn":
        empty = ask("/v1/recommend", model=name, queries=[{"history": []}], k=5)
        assert "popularity" in empty["answers"][0]["fallback"]


def test_a_history_longer_than_the_model_reads_is_cut_to_its_newest(ask: Ask) -> None:
    long = [*range(30), 1, 2, 3, 4, 5]
    common = {"model": "sasrec", "k": 5}
    answers = [
        ask("/v1/recommend", **common, queries=[{"history": history, "seen": []}])["answers"]
        for history in (long, long[-5:])
    ]
    assert answers[0] == answers[1]


def test_a_ranker_orders_what_was_retrieved(ask: Ask) -> None:
    common = {"model": "sasrec", "k": 6, "explain": True, "candidates": 20}
    query = {"history": [3, 7], "context": {"hour": 3}}
    answer = ask("/v1/recommend", **common, queries=[query], ranker="ranker")
    assert answer["ranker"] == {"model": "ranker", "version": 1}
    items = answer["answers"][0]["items"]
    candidates = [{"what": each["item"], "year": 1980 + each["item"]} for each in items]
    scores = ask("/v1/rank", model="ranker", context={"hour": 3}, candidates=candidates)["scores"]
    assert np.allclose([each["rank_score"] for each in items], scores, atol=1e-6)
    assert scores == sorted(scores, reverse=True)
    assert max(each["retrieval_rank"] for each in items) <= 20
    assert {each["nearest"] for each in items} <= {3, 7}
    failure = ask("/v1/recommend", **common, queries=[{"history": [3]}], ranker="ranker")
    assert "$.queries[0]: ranker 'ranker' needs 'hour'" in failure["error"]


def test_items_like_one_are_the_nearest_by_cosine(folder: Path, ask: Ask) -> None:
    retriever = load_release(folder / "releases" / "sasrec" / "1", Retriever)
    place = int(retriever.items.places([5])[0])
    unit = retriever.unit(np.arange(ITEMS))
    cosine = unit @ unit[place]
    order = [int(each) for each in np.argsort(-cosine) if each != place][:4]
    found = ask("/v1/similar", model="sasrec", items=[5], k=4)["items"]
    assert [each["item"] for each in found] == [retriever.items.ids[each] for each in order]
    assert len(ask("/v1/similar", model="ease", items=[5], k=4)["items"]) == 4
    assert "no item 777" in ask("/v1/similar", model="ease", items=[777])["error"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            {"queries": [{"user": "x"}]},
            "expected 'history', which model 'sasrec' answers, found 'user'",
        ),
        ({"queries": []}, "length >= 1"),
        ({"queries": [{"history": [1]}], "filter": {"yaer": 1}}, "Did you mean 'year'?"),
        ({"queries": [{"history": ["x"]}]}, "$.queries: column 'what'"),
        ({"queries": [{"history": [1]}], "k": 0}, ">= 1"),
        ({"queries": [{"history": [1]}], "ranker": "ease"}, "expected the kind 'scorer'"),
        ({"queries": [{"history": [1], "context": {"a": 1}}]}, "the context is for a ranker"),
    ],
)
def test_a_wrong_request_is_named(ask: Ask, body: dict[str, Any], message: str) -> None:
    assert message in ask("/v1/recommend", model="sasrec", **body)["error"]


def test_swaps_of_retriever_and_ranker_never_mix_versions(folder: Path, ask: Ask) -> None:
    answers: list[Any] = []
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            query = {"history": [3, 7], "context": {"hour": 3}}
            common = {"model": "sasrec", "ranker": "ranker", "k": 3, "candidates": 10}
            answers.append(ask("/v1/recommend", **common, queries=[query]))

    def served(version: int) -> bool:
        wanted = (version, version)
        return any((e["version"], e["ranker"]["version"]) == wanted for e in answers[-8:])

    clients = [threading.Thread(target=client) for _ in range(4)]
    for each in clients:
        each.start()
    for version in range(2, 6):
        for name in ("sasrec", "ranker"):
            target = folder / "releases" / name
            part = target / ".part"
            shutil.copytree(target / "1", part)
            manifest = json.loads((part / "manifest.json").read_text())
            (part / "manifest.json").write_text(json.dumps(manifest | {"version": version}))
            part.rename(target / str(version))
            while name == "ranker" and not served(version):
                stop.wait(0.05)
    stop.set()
    for each in clients:
        each.join()
    assert all("error" not in each for each in answers), answers[-1]
    versions = {(each["version"], each["ranker"]["version"]) for each in answers}
    assert {version for version, _ in versions} >= {1, 5}
    for path in ("sasrec", "ranker"):
        for version in range(2, 6):
            shutil.rmtree(folder / "releases" / path / str(version))


@pytest.mark.parametrize("file", ["items.arrow", "vectors.npy", "query.onnx"])
def test_a_flipped_byte_is_refused(folder: Path, tmp_path: Path, file: str, capsys: Any) -> None:
    release = shutil.copytree(folder / "releases" / "sasrec" / "1", tmp_path / "1")
    content = bytearray((release / file).read_bytes())
    content[len(content) // 2] ^= 1
    (release / file).write_bytes(content)
    out = tmp_path / "out.parquet"
    assert main(["recommend", str(release), str(folder / "log.parquet"), str(out)]) == 2
    assert f"{file}: corrupt" in capsys.readouterr().err
    assert not out.exists()
