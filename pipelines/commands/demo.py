"""`headwater demo`: the main job from end to end, on real ratings that it fetches by package name."""

from __future__ import annotations

import json as jsonlib
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator
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


def demo(
    *,
    root: Annotated[Path, Parameter(name="--in")] = Path(),
    set: Set = None,  # noqa: A002
    json: AsJson = False,
) -> None:
    """Fetch MovieLens-100K, train FinalMLP, write its report and release, serve it, and ask it once.

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

    request = rank_request(release, pl.read_parquet(prepared.path / "sample.parquet"))
    with serving(root / "releases") as address:
        answer = post(f"{address}/v1/rank", request)
    emit(
        {**result, "release": release, "request": request, "answer": answer},
        as_json=json,
        text="\n".join(
            [
                summary(result),
                f"release  {release}",
                "",
                f"POST /v1/rank {jsonlib.dumps(request, ensure_ascii=False)}",
                f"200 {jsonlib.dumps(answer)}",
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


@contextmanager
def serving(releases: Path) -> Generator[str]:
    """Run `headwater serve` in a process of its own; the value is its address, once it is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    command = ["-m", "headwater.pipelines.cli", "serve", str(releases), "--port", str(port)]
    service = subprocess.Popen([sys.executable, *command])
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_ready(service, address)
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


def _wait_ready(service: subprocess.Popen[bytes], address: str) -> None:
    deadline_s = time.monotonic() + START_S
    while time.monotonic() < deadline_s:
        if service.poll() is not None:
            raise HeadwaterError(
                f"the service ended at its start with status {service.returncode}."
            )
        try:
            with urllib.request.urlopen(f"{address}/v2/health/ready", timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    raise HeadwaterError(f"the service at {address} was not ready within {START_S:.0f} s.")
