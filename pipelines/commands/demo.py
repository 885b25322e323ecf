"""`headwater demo`: two models from end to end, on real ratings that it fetches by package name."""

from __future__ import annotations

import json as jsonlib
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from headwater.feature_store.errors import HeadwaterError
from headwater.pipelines.commands.steps import evaluate_and_report, summary
from headwater.pipelines.console import emit, note
from headwater.pipelines.options import AsJson, Set

if TYPE_CHECKING:
    import polars as pl

    from headwater.serving.manifest import Manifest

START_S = 60.0
"""Seconds within which the service must be ready."""
NUM_CANDIDATES = 5
NUM_LIKED = 20


def demo(
    *,
    root: Annotated[Path, Parameter(name="--in")] = Path(),
    set: Set = None,  # noqa: A002
    json: AsJson = False,
) -> None:
    """Fetch MovieLens-100K, train FinalMLP and item neighbours, release, serve and ask them.

    Parameters
    ----------
    root
        Folder for prepared data, runs and releases.
    """
    import polars as pl

    from headwater.pipelines import export, load_job, prepare, train
    from headwater.pipelines.datasets import get

    data = get("ml-100k")
    job = load_job(
        Path(__file__).with_name("demo.toml"), [f"data.root={data.as_posix()}", *(set or ())]
    )
    prepared = prepare(job, root / "prepared")
    run = train(job, prepared, runs=root / "runs")
    result = evaluate_and_report(run)
    release = export(run, root / "releases")

    items_job = load_job(
        Path(__file__).with_name("demo_items.toml"), [f"data.root={data.as_posix()}"]
    )
    items_run = train(items_job, prepare(items_job, root / "prepared"), runs=root / "runs")
    items_release = export(items_run, root / "releases")

    request = rank_request(release, pl.read_parquet(prepared.path / "sample.parquet"))
    wish = recommend_request(data)
    with serving(root / "releases", [job.name, items_job.name]) as address:
        answer = post(f"{address}/v1/rank", request)
        found = post(f"{address}/v1/recommend", wish)["answers"][0]["items"]
    films = names(data, [each["item"] for each in found])
    emit(
        {
            **result,
            "release": release,
            "request": request,
            "answer": answer,
            "items_release": items_release,
            "recommended": films,
        },
        as_json=json,
        text="\n".join(
            [
                summary(result),
                f"release  {release}",
                "",
                f"POST /v1/rank {jsonlib.dumps(request, ensure_ascii=False)}",
                f"200 {jsonlib.dumps(answer)}",
                "",
                f"POST /v1/recommend {jsonlib.dumps(wish, ensure_ascii=False)}",
                "200, found by the films before and ranked by FinalMLP:",
                *(f"  {place:2}  {film}" for place, film in enumerate(films, start=1)),
                "",
                f"Serve it yourself: headwater serve {root / 'releases'}",
            ]
        ),
    )


def rank_request(release: Path, rows: pl.DataFrame) -> dict[str, Any]:
    """Return a ranking request over real rows: the first row's context, and the first candidates."""
    from headwater.serving.manifest import SCORE
    from headwater.serving.release import read_manifest

    manifest: Manifest = read_manifest(release)
    inputs = manifest.graphs[SCORE].inputs
    context = [each.name for each in inputs if each.role == "context"]
    candidate = [each.name for each in inputs if each.role == "candidate"]
    return {
        "model": manifest.name,
        "context": rows.select(context).row(0, named=True),
        "candidates": rows.select(candidate).head(NUM_CANDIDATES).to_dicts(),
    }


def recommend_request(data: Path) -> dict[str, Any]:
    """Return a request for ten films for the first person: by the newest films that they liked."""
    import polars as pl

    ratings = pl.read_parquet(data / "ratings.parquet")
    person = pl.read_parquet(data / "users.parquet").sort("user_id").row(0, named=True)
    own = ratings.filter(pl.col("user_id") == person["user_id"]).sort("timestamp")
    liked = own.filter(pl.col("rating") >= 4).get_column("item_id").tail(NUM_LIKED).to_list()
    context = {key: person[key] for key in ("user_id", "age", "gender", "occupation")}
    return {
        "model": "movielens-items",
        "queries": [
            {
                "history": liked,
                "seen": own.get_column("item_id").to_list(),
                "context": context | {"timestamp": own.get_column("timestamp").max()},
            }
        ],
        "k": 10,
        "filter": {"release_year": {"ge": 1980}},
        "ranker": "movielens",
        "candidates": 50,
    }


def names(data: Path, films: list[int]) -> list[str]:
    """Return the titles of films."""
    import polars as pl

    items = pl.read_parquet(data / "items.parquet")
    titles = dict(items.select("item_id", "movie_title").rows())
    return [titles[film] for film in films]


@contextmanager
def serving(releases: Path, models: Sequence[str]) -> Generator[str]:
    """Run `headwater serve` in a process of its own; the value is its address, once models are ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    command = ["-m", "headwater.pipelines.cli", "serve", str(releases), "--port", str(port)]
    service = subprocess.Popen([sys.executable, *command])
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_ready(service, address, models)
        note(f"serving {releases} at {address}")
        yield address
    finally:
        service.terminate()
        service.wait()


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON answer to a JSON request."""
    request = urllib.request.Request(url, jsonlib.dumps(body).encode(), method="POST")
    with urllib.request.urlopen(request, timeout=10) as response:
        return jsonlib.loads(response.read())


def _wait_ready(service: subprocess.Popen[bytes], address: str, models: Sequence[str]) -> None:
    deadline_s = time.monotonic() + START_S
    while time.monotonic() < deadline_s:
        if service.poll() is not None:
            raise HeadwaterError(
                f"the service ended at its start with status {service.returncode}."
            )
        try:
            for model in models:
                with urllib.request.urlopen(f"{address}/v2/models/{model}/ready", timeout=1):
                    pass
            return
        except OSError:
            time.sleep(0.1)
    raise HeadwaterError(f"the service at {address} was not ready within {START_S:.0f} s.")
