"""Runs, prepared data and releases that are damaged, incomplete or of another job are refused by name."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from headwater.pipelines.cli import main

HEADWATER = Path(sys.executable).with_name("headwater")

Check = Callable[..., str]


@pytest.fixture(scope="module")
def first(made: Callable[[str], Any]) -> Any:
    return made("finalmlp-fused")


@pytest.fixture
def inside_shop(shop: Any, first: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder in which the shop's job has run, as the current one."""
    monkeypatch.chdir(shop.path)
    return shop.path


@pytest.fixture
def flip() -> Iterator[Callable[[Path], None]]:
    """Give a function that flips one byte in the middle of a file; at the end all are as they were."""
    originals: dict[Path, bytes] = {}

    def damage(path: Path) -> None:
        content = bytearray(originals.setdefault(path, path.read_bytes()))
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    yield damage
    for path, content in originals.items():
        path.write_bytes(content)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_shard_with_one_flipped_byte(
    split: str, inside_shop: Path, first: Any, flip: Callable[[Path], None], refused: Check
) -> None:
    prepared = Path(json.loads((first.run / "metrics.json").read_text())["prepared"])
    shard = prepared / split / "shard-00000.arrow"
    flip(shard)
    says = (f"{prepared.name}/{split}/shard-00000.arrow: the shard is corrupt", "SHA-256")
    refused("run", "job.toml", says=says, inside=inside_shop)
    if split == "valid":
        refused("evaluate", "--run", first.run, says=says, inside=inside_shop)


@pytest.mark.parametrize("name", ["schema.json", "statistics.json", "train/manifest.json"])
def test_file_of_prepared_data_with_one_flipped_byte(
    name: str, inside_shop: Path, first: Any, flip: Callable[[Path], None], refused: Check
) -> None:
    prepared = Path(json.loads((first.run / "metrics.json").read_text())["prepared"])
    flip(prepared / name)
    says = (f"{prepared.name}/{name}: the file is corrupt", "prepare the data again")
    for command in (("train", "job.toml"), ("export", "--run", first.run)):
        refused(*command, says=says, inside=inside_shop)


def test_schema_that_changed_since_encoding(
    shop: Any, first: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Check
) -> None:
    # A run that was stopped, in a folder whose logs have grown since.
    run = tmp_path / "runs" / "shop" / "stopped"
    for path in first.run.rglob("*"):
        if path.is_file() and path.name != "metrics.json":
            copy = run / path.relative_to(first.run)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    job = run / "job.toml"
    job.write_text(job.read_text().replace(str(shop.path), str(tmp_path)))
    for name in ("users.csv", "items.parquet"):
        (tmp_path / name).write_bytes((shop.path / name).read_bytes())
    events = pl.read_parquet(shop.path / "events.parquet")
    events.head(3000).write_parquet(tmp_path / "events.parquet")
    monkeypatch.chdir(tmp_path)
    says = ("runs/shop/stopped: trained with schema", "the data changed since", "Train a new run")
    refused("train", "--resume", run.relative_to(tmp_path), says=says, inside=run)


def test_checkpoint_that_is_absent_or_damaged(
    inside_shop: Path, first: Any, flip: Callable[[Path], None], refused: Check
) -> None:
    index = json.loads((first.run / "checkpoint" / "index.json").read_text())
    (name,) = index["best"]["files"]
    weights = first.run / "checkpoint" / index["best"]["folder"] / name
    flip(weights)
    says = (f"{weights}: damaged", "SHA-256")
    for command in ("evaluate", "export"):
        refused(command, "--run", first.run, says=says, inside=inside_shop)
    aside = first.run.with_name("checkpoint.aside")
    (first.run / "checkpoint").rename(aside)
    try:
        for command in ("evaluate", "export"):
            says = (str(first.run), "checkpoint")
            refused(command, "--run", first.run, says=says, inside=inside_shop)
    finally:
        aside.rename(first.run / "checkpoint")


def test_run_that_is_none_or_not_complete(
    inside_shop: Path, shop: Any, first: Any, tmp_path: Path, refused: Check
) -> None:
    for command in ("evaluate", "export"):
        says = (f"{tmp_path}: not a run", "job.toml")
        refused(command, "--run", tmp_path, says=says, inside=tmp_path)
        refused(command, says=("a job file or --run RUN",), inside=inside_shop)
    refused("report", tmp_path, says=(str(tmp_path),), inside=tmp_path)
    refused("train", "--resume", tmp_path, says=(f"{tmp_path}: not a run",), inside=tmp_path)
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    (stopped / "job.toml").write_bytes((first.run / "job.toml").read_bytes())
    for command in ("evaluate", "export"):
        says = (str(stopped), "Training has not ended", "--resume")
        refused(command, "--run", stopped, says=says, inside=tmp_path)
    (tmp_path / "job.toml").write_text(shop.job.read_text().replace('"shop"', '"clicks"'))
    says = ("runs/clicks: no complete run", "headwater train")
    refused("export", tmp_path / "job.toml", says=says, inside=inside_shop)


def test_resume_of_a_complete_run_changes_nothing(
    inside_shop: Path,
    first: Any,
    snapshot: Callable[[Path], dict[str, str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = snapshot(inside_shop)
    assert main(["train", "--resume", str(first.run)]) == 0
    assert "training is complete" in capsys.readouterr().err
    assert snapshot(inside_shop) == before


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json"])
def test_score_with_a_release_of_which_one_byte_is_flipped(
    name: str, shop: Any, first: Any, flip: Callable[[Path], None], tmp_path: Path, refused: Check
) -> None:
    shop.joined.write_parquet(tmp_path / "in.parquet")
    flip(first.release / name)
    says = (str(first.release),)
    if name == "model.onnx":
        says = (f"{first.release / name}: corrupt", "SHA-256", "export the release again")
    arguments = ("score", first.release, tmp_path / "in.parquet", tmp_path / "out.parquet")
    refused(*arguments, says=says, inside=tmp_path)


def test_serve_refuses_a_release_of_which_one_byte_is_flipped(
    first: Any, flip: Callable[[Path], None], ask: Callable[..., tuple[int, Any]], tmp_path: Path
) -> None:
    name = first.release.parent.name
    (tmp_path / name).mkdir()
    (tmp_path / name / "1").symlink_to(first.release)
    flip(first.release / "model.onnx")
    with subprocess.Popen(
        [HEADWATER, "serve", tmp_path, "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as service:
        assert service.stdout is not None
        assert service.stderr is not None
        try:
            url = json.loads(service.stdout.readline())["url"]
            refusal = next(
                each
                for line in service.stderr
                if (each := json.loads(line))["event"] == "release refused"
            )
            assert f"{name}/1/model.onnx: corrupt" in refusal["error"]
            assert ask(f"{url}/v2/health/live")[0] == 200
            assert ask(f"{url}/v2/health/ready")[0] == 503
            status, answer = ask(f"{url}/v1/rank", {"model": name, "candidates": [{"item_id": 1}]})
            assert status == 503
            assert "refused" in answer["error"]
        finally:
            service.terminate()


SCORED: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "absent file": ("absent.parquet", "out.parquet", ("absent.parquet: no such file",)),
    "output of no known format": ("in.parquet", "out.xlsx", ("out.xlsx", ".parquet", ".csv")),
    "lists into a CSV": ("in.parquet", "out.csv", ("out.csv", "'tags'", ".parquet")),
    "column that is absent": ("less.parquet", "out.parquet", ("less.parquet: column 'price'",)),
    "folder that is absent": ("in.parquet", "no/out.parquet", ("no/out.parquet",)),
}


@pytest.mark.parametrize("case", SCORED)
def test_score_of_what_cannot_be_scored(
    case: str,
    shop: Any,
    first: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Check,
) -> None:
    monkeypatch.chdir(tmp_path)
    shop.joined.write_parquet("in.parquet")
    shop.joined.drop("price").write_parquet("less.parquet")
    source, out, says = SCORED[case]
    status = 1 if case == "folder that is absent" else 2
    refused("score", first.release, source, out, says=says, inside=tmp_path, status=status)


@pytest.mark.parametrize("command", ["score", "serve"])
def test_folder_that_holds_no_release(command: str, tmp_path: Path, refused: Check) -> None:
    if command == "serve":
        says = (f"{tmp_path / 'absent'}", "found nothing")
        refused("serve", tmp_path / "absent", says=says, inside=tmp_path)
    else:
        says = (f"{tmp_path}: expected a release",)
        refused("score", tmp_path, "in.parquet", "out.parquet", says=says, inside=tmp_path)
