"""The README does what it says: its commands run in their order, on data of the shape that it names."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from headwater.pipelines.cli import COMMANDS, main
from headwater.pipelines.job import load_job

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
HEADWATER = Path(sys.executable).with_name("headwater")
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:headwater|make|pip|\.) [^`]+)`")


def commands(text: str) -> list[str]:
    """Return the commands of a page in their order: lines of `sh` blocks, and code inside sentences."""
    found = [
        (match.start(), command)
        for match in FENCE.finditer(text)
        if match[1] == "sh"
        for command in _lines(match[2])
    ]
    prose = FENCE.sub(lambda block: " " * len(block[0]), text)
    found += [(match.start(), " ".join(match[1].split())) for match in INLINE.finditer(prose)]
    return [command for _, command in sorted(found, key=lambda each: each[0])]


def _lines(block: str) -> Iterator[str]:
    """Yield the commands of a block; one goes on until its quotes are closed."""
    command = ""
    for line in block.splitlines():
        command += line
        if command.count("'") % 2:
            command += "\n"
            continue
        yield re.sub(r"\s+#.*$", "", command)
        command = ""


def clicks(num_rows: int, seed: int) -> pl.DataFrame:
    """Return impressions as the README has them: `click` follows user, item and hour of the day."""
    random = np.random.default_rng(seed)
    user, item = random.integers(1, 40, num_rows), random.integers(1, 30, num_rows)
    minutes = np.sort(random.integers(0, 30 * 1440, num_rows))
    hour = minutes // 60 % 24
    taste = np.random.default_rng(1)
    logit = taste.normal(0, 2, 40)[user] + taste.normal(0, 2, 30)[item] + (hour - 12) / 6
    return pl.DataFrame(
        {
            "user_id": user,
            "item_id": item,
            "shown_at": np.datetime64("2026-03-01T00:00:00", "ms") + minutes * 60_000,
            "click": (random.random(num_rows) < 1 / (1 + np.exp(-logit))).astype(int),
        }
    )


def test_first_job_of_the_readme_runs_as_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    serving: Callable[..., Any],
    ask: Callable[..., tuple[int, Any]],
    wait_ready: Callable[[str], None],
) -> None:
    monkeypatch.chdir(tmp_path)
    clicks(3000, 2).write_csv("clicks.csv", datetime_format="%Y-%m-%dT%H:%M:%S")
    (described,) = re.findall(r"with the columns (.*?):\n", README, re.DOTALL)
    assert set(re.findall(r"`(\w+)`", described)) == set(clicks(1, 0).columns)
    clicks(50, 3).drop("click").write_parquet("new.parquet")
    done: set[str] = set()
    for command in commands(README):
        words = shlex.split(command)
        if words[0] == "headwater" and words[1] not in ("serve", "demo"):
            run_here(words[1:])
        elif words[0] == "curl":
            address, body = request_of(words)
            with serving(tmp_path / "releases") as url:
                wait_ready(f"{url}/v2/health/ready")
                status, answer = ask(address.replace("localhost:8080", url), body)
            assert status == 200, answer
            assert (answer["model"], len(answer["scores"])) == ("clicks", 2)
            manifest = json.loads(Path("releases/clicks/1/manifest.json").read_bytes())
            graph = manifest["graphs"]["score"]
            for role, given in (("context", body["context"]), ("candidate", body["candidates"][0])):
                taken = {each["name"] for each in graph["inputs"] if each["role"] == role}
                assert given.keys() == taken
        else:
            continue
        done.add(" ".join(words[:2]) if words[0] == "headwater" else words[0])
    named = {"init", "validate", "run", "report", "score", "doctor"}
    assert done == {"curl", *(f"headwater {name}" for name in named)}
    assert pl.read_parquet("scored.parquet")["prob"].is_between(0, 1).all()
    (python,) = (block for language, block in FENCE.findall(README) if language == "python")
    capsys.readouterr()
    names: dict[str, Any] = {}
    exec(python, names)  # as a reader would paste it
    metrics = names["evaluate"](names["run"])
    assert metrics.metrics["test"]["auc"] > 0.75
    assert (names["release"] / "manifest.json").is_file()
    # The model of one's own, as docs/models.md has it, on the same job.
    page = (ROOT / "docs" / "models.md").read_text()
    (model,) = (block for language, block in FENCE.findall(page) if language == "python")
    Path("mean.py").write_text(f"from __future__ import annotations\n{model}")
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["train", "clicks.toml", "--set", 'model={type="mean:Mean", embedding_dim=8}']) == 0


def run_here(arguments: list[str]) -> None:
    """Run a command in this process, its patterns expanded as a shell does."""
    expanded = [path for word in arguments for path in (matches(word) or [word])]
    assert main(expanded) == 0, arguments
    if arguments[0] == "init":
        # Twenty epochs show no more than two.
        job = Path("clicks.toml")
        text = job.read_text()
        assert "epochs = 20" in text
        job.write_text(text.replace("epochs = 20", "epochs = 2"))


def matches(pattern: str) -> list[str]:
    return sorted(map(str, Path().glob(pattern))) if "*" in pattern else []


def request_of(words: list[str]) -> tuple[str, dict[str, Any]]:
    """Return address and body of a curl command."""
    (address,) = (word for word in words if word.startswith("localhost"))
    return address, json.loads(words[words.index("-d") + 1])


def test_commands_that_the_readme_serves_and_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    every = commands(README)
    assert "headwater serve releases" in every
    assert "headwater init clicks.csv --out clicks.toml" in every
    assert "make demo" in every
    assert "make test" in every
    assert ". .venv/bin/activate" in every


@pytest.mark.parametrize("page", PAGES)
def test_commands_on_a_page_exist_with_their_options(
    page: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in commands((ROOT / page).read_text()):
        words = command.split()
        if words[0] != "headwater" or words[1].startswith("-"):
            continue
        assert words[1] in COMMANDS, command
        # The longest run of words that is a command, as `datasets get`.
        parts = takewhile(re.compile("[a-z]+").fullmatch, words[1:])
        assert main([*parts, "--help"]) == 0
        text = capsys.readouterr().out
        for option in re.findall(r"(?<=\s)--[a-z-]+", command):
            assert option in text or option in ("--json", "--help"), command


@pytest.mark.parametrize("page", PAGES)
def test_links_on_a_page_lead_to_files(page: str) -> None:
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", text)
    links += re.findall(r"`((?:docs|examples|infra|pipelines)/[\w./-]+\.\w+)`", text)
    missing = [link for link in links if not ((ROOT / page).parent / link).exists()]
    assert [link for link in missing if not (ROOT / link).exists()] == []


def test_make_demo_runs_the_demo(tmp_path: Path) -> None:
    # A dry run with a folder of its own, since the lines that look for what is installed run even so.
    (tmp_path / "venv").mkdir()
    shown = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", "demo", f"VENV={tmp_path / 'venv'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.splitlines()[-1] == f"{tmp_path / 'venv'}/bin/headwater demo"


def test_make_targets_on_the_pages_exist() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for page in PAGES:
        for command in commands((ROOT / page).read_text()):
            words = command.split()
            if words[0] == "make":
                named = [word for word in words[1:] if "=" not in word]
                assert set(named) <= set(targets), command


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Run the demo with one epoch; return its folder and its result."""
    folder = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        [HEADWATER, "demo", "--set", "train.epochs=1", "--json"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


def test_demo_goes_from_ratings_to_a_scored_request(demo: tuple[Path, dict[str, Any]]) -> None:
    folder, result = demo
    assert result["metrics"]["test"]["auc"] > 0.65
    assert (folder / result["report"]).is_file()
    assert (folder / result["release"] / "model.onnx").is_file()
    assert len(result["answer"]["scores"]) == 5
    assert result["answer"]["model"] == "movielens"
    assert (folder / result["items_release"] / "items.arrow").is_file()
    assert len(set(result["recommended"])) == 10
    assert all(isinstance(film, str) and film for film in result["recommended"])


def test_requests_of_the_serving_page_are_answered(
    demo: tuple[Path, dict[str, Any]],
    serving: Callable[..., Any],
    ask: Callable[..., tuple[int, Any]],
    wait_ready: Callable[[str], None],
) -> None:
    page = (ROOT / "docs" / "serving.md").read_text()
    curls = [shlex.split(each) for each in commands(page) if each.startswith("curl ")]
    (client,) = (block for language, block in FENCE.findall(page) if language == "python")
    lengths: list[int] = []
    with serving(demo[0] / "releases") as url:
        wait_ready(f"{url}/v2/models/movielens/ready")
        for words in curls:
            address, body = request_of(words)
            status, answer = ask(address.replace("localhost:8080", url), body)
            assert status == 200, answer
            lengths.append(len(answer.get("scores") or answer["outputs"][0]["data"]))
        names: dict[str, Any] = {}
        exec(client.replace("localhost:8080", url.removeprefix("http://")), names)
        names["client"].close()
    assert [*lengths, len(names["scores"])] == [3, 3, 3]


@pytest.mark.parametrize(
    "example", sorted(path.name for path in (ROOT / "examples").glob("*.toml"))
)
def test_example_jobs_are_valid_and_say_how_to_run_them(example: str) -> None:
    path = ROOT / "examples" / example
    job = load_job(path, ["data.root=/data"])
    assert f"headwater run examples/{example} --set data.root=FOLDER" in path.read_text()
    given = [job.data.source, job.data.train, *(join.path for join in job.data.join)]
    paths = [
        each for value in given for each in ([value] if isinstance(value, str) else value or [])
    ]
    assert all(each.startswith("/data/") for each in paths)
